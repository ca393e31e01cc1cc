//! The decoder against numbers of torch, transformers and peft: see `golden/README.md`.

mod differences;
mod four_bit;
pub mod golden;
mod llava;
mod loading;
mod lora;
mod models;
mod optimisers;
