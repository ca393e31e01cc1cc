//! The decoder against numbers of torch, transformers and peft: see `golden/README.md`.

mod differences;
mod formats;
mod four_bit;
mod golden;
mod loading;
mod lora;
mod malformed;
mod models;
mod optimisers;
