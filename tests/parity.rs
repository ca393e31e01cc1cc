//! The decoder against numbers of torch, transformers and peft: see `golden/README.md`.

mod differences;
mod golden;
mod loading;
mod lora;
mod models;
