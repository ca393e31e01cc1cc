//! From the metadata of a file to a tokenizer.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{kind, pre, sentencepiece};
use crate::gguf::{Gguf, GgufError, Metadata, TensorInfo};
use crate::text::TextSource;
use crate::text::bare;
use crate::text::special::SpecialTokens;

const MODEL: &str = "tokenizer.ggml.model";

/// Reads the file at `path`.
///
/// # Errors
/// [`GgufError`] naming the key that is missing or not supported.
pub fn read(path: &Path) -> Result<TextSource, GgufError> {
    let Gguf { metadata, tensors } = Gguf::open(path)?;
    let tokenizer = match metadata.text("tokenizer.huggingface.json")? {
        Some(json) => json.as_bytes().to_vec(),
        None => match bare_size(&metadata, &tensors)?.and_then(bare::of_size) {
            Some(json) => json,
            None => tokenizer(&metadata)?.to_string().into_bytes(),
        },
    };
    let template = metadata.text("tokenizer.chat_template")?;
    Ok(TextSource {
        tokenizer,
        special: special(&metadata)?,
        template: template.map(|source| (metadata.file.clone(), source.to_owned())),
        image_token: None,
    })
}

/// How many ids a model has that says it has no tokenizer.
fn bare_size(metadata: &Metadata, tensors: &[TensorInfo]) -> Result<Option<u64>, GgufError> {
    let none = matches!(metadata.text(MODEL)?, Some("none" | "no_vocab"));
    let embedding = tensors.iter().find(|info| info.name == "token_embd.weight");
    let rows = embedding.and_then(|info| info.shape.first());
    Ok(rows.filter(|_| none).map(|&rows| rows as u64))
}

fn id(metadata: &Metadata, role: &str) -> Result<Option<u32>, GgufError> {
    let id = metadata.count(&format!("tokenizer.ggml.{role}_token_id"))?;
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

fn special(metadata: &Metadata) -> Result<SpecialTokens, GgufError> {
    let mut eos_ids = Vec::new();
    for role in ["eos", "eot", "eom"] {
        eos_ids.extend(id(metadata, role)?.filter(|id| !eos_ids.contains(id)));
    }
    let (bos_id, pad_id) = (id(metadata, "bos")?, id(metadata, "padding")?);
    Ok(SpecialTokens { bos_id, pad_id, eos_ids, ..SpecialTokens::default() })
}

/// The lists of ggml.
struct Lists<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    kinds: Vec<f32>,
}

fn tokenizer(metadata: &Metadata) -> Result<Value, GgufError> {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let model = metadata.text(MODEL)?.ok_or_else(|| metadata.missing(MODEL))?;
    let tokens = metadata.texts(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
    let kinds = metadata.numbers("tokenizer.ggml.token_type")?.unwrap_or_default();
    let lists = Lists { metadata, tokens, kinds };
    match model {
        "gpt2" => lists.byte_level(),
        "llama" => lists.sentencepiece(),
        other => Err(metadata.unsupported(MODEL, other, "gpt2, llama")),
    }
}

impl Lists<'_> {
    fn kind(&self, id: usize) -> i64 {
        self.kinds.get(id).map_or(kind::NORMAL, |&kind| kind as i64)
    }

    fn vocab(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect()
    }

    fn added(&self) -> Vec<Value> {
        let added = |(id, token): (usize, &String)| {
            let special = match self.kind(id) {
                kind::CONTROL | kind::UNKNOWN => true,
                kind::USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": token, "special": special, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false,
            }))
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    fn byte_level(&self) -> Result<Value, GgufError> {
        const MERGES: &str = "tokenizer.ggml.merges";
        const PRE: &str = "tokenizer.ggml.pre";
        let merges = self.metadata.texts(MERGES)?.ok_or_else(|| self.metadata.missing(MERGES))?;
        let name = self.metadata.text(PRE)?.unwrap_or("default");
        let pre = pre::named(name)
            .ok_or_else(|| self.metadata.unsupported(PRE, name, &pre::NAMES.join(", ")))?;
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": pre.ignore_merges,
            "vocab": self.vocab(), "merges": merges,
        });
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
        self.whole(model, pre.normalizer, pre.pre_tokenizer, decoder, pre.ignore_merges)
    }

    fn sentencepiece(&self) -> Result<Value, GgufError> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = self.metadata.numbers(SCORES)?.ok_or_else(|| self.metadata.missing(SCORES))?;
        let prefix = self.metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let unknown = id(self.metadata, "unknown")?.unwrap_or(0) as usize;
        let pieces: Vec<(usize, &str, f32)> = (self.tokens.iter().zip(&scores).enumerate())
            .filter(|(id, _)| matches!(self.kind(*id), kind::NORMAL | kind::USER_DEFINED))
            .map(|(id, (token, score))| (id, token.as_str(), *score))
            .collect();
        let bytes = (0..self.tokens.len()).any(|id| self.kind(id) == kind::BYTE);
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": self.tokens.get(unknown),
            "fuse_unk": true, "byte_fallback": bytes, "ignore_merges": false,
            "vocab": self.vocab(), "merges": sentencepiece::merges(&pieces),
        });
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        let mut normalizers = vec![replace];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
        let decoder = json!({"type": "Sequence", "decoders": decoders});
        self.whole(model, normalizer, Value::Null, decoder, true)
    }

    fn whole(
        &self,
        model: Value,
        normalizer: Value,
        pre_tokenizer: Value,
        decoder: Value,
        usually_begins: bool,
    ) -> Result<Value, GgufError> {
        let flag = |key: &str| self.metadata.flag(&format!("tokenizer.ggml.{key}"));
        let begins = flag("add_bos_token")?.unwrap_or(usually_begins);
        let ends = flag("add_eos_token")?.unwrap_or(false);
        let token = |role: &str| -> Result<Option<(u32, &String)>, GgufError> {
            let id = id(self.metadata, role)?;
            Ok(id.and_then(|id| Some((id, self.tokens.get(id as usize)?))))
        };
        let before = if begins { token("bos")? } else { None };
        let after = if ends { token("eos")? } else { None };
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": around(before, after),
            "decoder": decoder,
            "model": model,
        }))
    }
}

/// A post-processor that puts tokens before and after a text.
fn around(before: Option<(u32, &String)>, after: Option<(u32, &String)>) -> Value {
    let special = |(_, token): (u32, &String)| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> =
        before.map(special).into_iter().chain([text]).chain(after.map(special)).collect();
    let tokens: Map<String, Value> = before
        .into_iter()
        .chain(after)
        .map(|(id, token)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let second = json!({"Sequence": {"id": "B", "type_id": 1}});
    let pair: Vec<Value> = single.iter().cloned().chain([second]).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}
