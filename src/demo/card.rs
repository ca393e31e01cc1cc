//! The model card of a demo model.

use std::fmt::Write;

use serde_json::{Value, json};

use super::scratch::{BATCH_TOKENS, Options, Summary};
use super::shape::Shape;

/// `README.md` beside the weights.
pub fn text(options: &Options, summary: &Summary) -> String {
    let shape = Shape::DEMO;
    let minutes = summary.elapsed.as_secs_f64() / 60.0;
    let threads = match options.threads {
        0 => "all cores".to_owned(),
        n => format!("{n} threads"),
    };
    let (right, asked) = summary.answered;
    let mut card = format!(
        "# Tandem's demo model\n\n\
         A toy to try the server with: a Llama-family decoder of {:.2} million parameters that \
         knows a small invented world and nothing else. It greets, says who it is, answers simple \
         questions, does small sums, and tells short stories, in English and a little German, \
         French and Spanish. Do not use it for anything that matters.\n\n\
         - Shape: {} layers, hidden size {}, {} query and {} key-value heads of {}, MLP {}, \
         vocabulary {}, context {} tokens, tied embeddings; weights in bf16.\n\
         - Data: a generated corpus (`src/demo/corpus/`, seed {}), {:.1} million tokens seen once, of conversations only the answers learned; \
         no text from anywhere else. One sample in 32, chosen by a hash of what it says, is held \
         out and never trained on.\n\
         - Training: all weights from random ones, {} steps of about {} tokens, AdamW, cosine \
         schedule; {:.0} minutes on {} of a CPU.\n\
         - Made by: `tandem train --from-scratch --seed {} --steps {} --out DIR`\n\
         - It answers {right} of {asked} fixed questions right (greedy; `src/demo/exam.rs`).\n\n\
         Mean loss per token in the last training step: {:.3}. On held-out samples \
         (of a conversation, on the answers alone):\n\n\
         | kind | held-out loss | tokens |\n| --- | ---: | ---: |\n",
        summary.parameters as f64 / 1e6,
        shape.num_layers,
        shape.hidden_size,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.intermediate_size,
        shape.vocab_size,
        shape.context_length,
        options.seed,
        summary.tokens as f64 / 1e6,
        summary.steps,
        BATCH_TOKENS,
        minutes,
        threads,
        options.seed,
        summary.steps,
        summary.train_loss,
    );
    for (kind, (loss, tokens)) in &summary.held_out {
        writeln!(card, "| {} | {loss:.3} | {tokens} |", kind.as_str()).expect("a string takes it");
    }
    card
}

/// The held-out losses as data, for the test that measures them again.
pub fn held_out(summary: &Summary) -> Value {
    let entries = summary.held_out.iter().map(|(kind, (loss, tokens))| {
        (kind.as_str().to_owned(), json!({ "loss": loss, "tokens": tokens }))
    });
    Value::Object(entries.collect())
}
