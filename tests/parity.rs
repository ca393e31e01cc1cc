//! The decoder against numbers of torch, transformers and peft: see `golden/README.md`.

mod golden;
mod lora;
mod models;
