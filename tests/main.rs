//! Behaviour, by theme; one target, so that it links once.

mod architecture;
mod text;
