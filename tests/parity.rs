//! The decoder against numbers of torch, transformers and peft: see `golden/README.md`.

mod differences;
mod feature_layers;
mod formats;
mod four_bit;
pub mod golden;
mod llava;
mod loading;
mod lora;
mod malformed;
mod models;
mod optimisers;
