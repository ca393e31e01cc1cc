//! Asking the demo model what it should know: greedy answers to fixed questions.

use tokenizers::Tokenizer;

use super::DemoError;
use super::corpus::{Document, Role};
use super::tokenizer::{END_OF_TEXT_ID, TURN_END_ID, TURN_START, render};
use crate::backend::{BLOCK_TOKENS, Backend, SequenceRows};
use crate::model::{Adapter, AdapterRows, Model, Step};

/// Questions and the words a right answer holds.
pub const QUESTIONS: &[(&str, &str)] = &[
    ("Hello!", "How can I help you?"),
    ("Who are you?", "Tandem's demo model"),
    ("What is your name?", "Tandem"),
    ("What does a cow say?", "moo"),
    ("What sound does a duck make?", "quack"),
    ("Where does a bee live?", "in a hive"),
    ("What is a young dog called?", "puppy"),
    ("How many legs does an owl have?", "2 legs"),
    ("What colour is a banana?", "yellow"),
    ("What colour is the sky?", "blue"),
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Japan?", "Tokyo"),
    ("Which city is the capital of Norway?", "Oslo"),
    ("What is the opposite of hot?", "cold"),
    ("What day comes after Monday?", "Tuesday"),
    ("Which month comes before June?", "May"),
    ("What is 3 + 4?", "3 + 4 = 7"),
    ("What is 8 plus 5?", "8 + 5 = 13"),
    ("What is 17 - 9?", "17 - 9 = 8"),
    ("How much is 12 + 6?", "12 + 6 = 18"),
    ("Count from 3 to 7.", "3, 4, 5, 6, 7."),
    ("Which is bigger, 7 or 12?", "12 is bigger"),
    ("Tom has 5 apples. He gets 3 more. How many apples does Tom have now?", "8 apples"),
    ("Mia has a red ball and a blue kite. What colour is the kite?", "blue"),
    ("Ben is in the park. Anna is in the forest. Who is in the forest?", "Anna"),
    ("How do you say cat in German?", "die Katze"),
    ("What is red in French?", "rouge"),
    ("Wer bist du?", "Demo-Modell von Tandem"),
    ("Was ist die Hauptstadt von Frankreich?", "Paris"),
    ("Welche Farbe hat der Himmel?", "blau"),
    ("Comment vas-tu ?", "Je vais bien"),
    ("Quelle est la capitale de l'Espagne ?", "Madrid"),
    ("¿Quién eres?", "modelo de demostración"),
    ("¿De qué color es la nieve?", "blanca"),
    ("Explain quantum physics.", "I do not know"),
];

/// Continues token ids greedily until a stop token or `max_tokens`; the stop token is included.
pub fn greedy<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    adapter: Option<&Adapter<B>>,
    prompt: &[u32],
    max_tokens: usize,
) -> Vec<u32> {
    let blocks = (prompt.len() + max_tokens).div_ceil(BLOCK_TOKENS);
    let mut cache = model.cache(b, blocks);
    let (mut input, mut start, mut answer) = (prompt.to_vec(), 0, Vec::new());
    while answer.len() < max_tokens {
        let sequence = SequenceRows {
            rows: 0..input.len(),
            start,
            read: prompt.len(),
            blocks: (0..blocks as u32).collect(),
        };
        let rows = 0..input.len();
        let worn = adapter.map(|adapter| AdapterRows { rows, adapter, scale: 1.0 });
        let step = Step {
            pictures: &[],
            tokens: &input,
            sequences: &[sequence],
            adapters: worn.as_slice(),
            logits: &[input.len() - 1],
        };
        let logits = model.forward(b, &mut cache, &step);
        let next = likeliest(&b.download(&logits));
        b.recycle(logits);
        answer.push(next);
        if [END_OF_TEXT_ID, TURN_END_ID].contains(&next) {
            break;
        }
        start += input.len();
        input = vec![next];
    }
    answer
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    best.map_or(0, |(token, _)| token as u32)
}

/// The model's answer to one question, and whether it ended by itself.
///
/// # Errors
/// [`DemoError::Tokenizer`] if the question cannot be encoded.
pub fn answer<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    tokenizer: &Tokenizer,
    question: &str,
) -> Result<(String, bool), DemoError> {
    answer_with(b, model, None, tokenizer, question)
}

/// [`answer`] of the model wearing an adapter.
///
/// # Errors
/// As [`answer`].
pub fn answer_with<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    adapter: Option<&Adapter<B>>,
    tokenizer: &Tokenizer,
    question: &str,
) -> Result<(String, bool), DemoError> {
    let asked = render(&Document::Chat(vec![(Role::User, question.to_owned())]));
    go_on(b, model, adapter, tokenizer, &format!("{asked}{TURN_START}assistant\n"))
}

/// The model's continuation of a text, and whether it ended by itself.
///
/// # Errors
/// [`DemoError::Tokenizer`] if the text cannot be encoded.
pub fn complete<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    tokenizer: &Tokenizer,
    prompt: &str,
) -> Result<(String, bool), DemoError> {
    go_on(b, model, None, tokenizer, prompt)
}

fn go_on<B: Backend>(
    b: &mut B,
    model: &Model<B>,
    adapter: Option<&Adapter<B>>,
    tokenizer: &Tokenizer,
    prompt: &str,
) -> Result<(String, bool), DemoError> {
    let failed = |error: tokenizers::Error| DemoError::Tokenizer(error.to_string());
    let prompt = tokenizer.encode(prompt, false).map_err(failed)?;
    let ids = greedy(b, model, adapter, prompt.get_ids(), 200);
    let ended = ids.last().is_some_and(|id| [END_OF_TEXT_ID, TURN_END_ID].contains(id));
    Ok((tokenizer.decode(&ids, true).map_err(failed)?, ended))
}
