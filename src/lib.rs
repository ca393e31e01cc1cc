//! Tandem: one server that answers OpenAI-style completions and fine-tunes the model it serves,
//! on one device, from one resident copy of its weights.
//!
//! # The map
//! ```text
//! main > app > api > engine, jobs > catalog > store, artifacts        async; no tensors
//!                        |   ^
//!               commands v   | events        worker::WorkerHandle
//!              worker > train, sample > model > backend > kernels     its own threads; no async
//! bench measures the lower half by itself, or a server from outside
//! text, pictures, peft, gguf and domain lie below both halves and import neither; so does hub, which
//! config asks for models at start
//! ```
//!
//! Three invariants carry the design. Above the handle there is no tensor; below it there is no
//! `.await`, no SQL and no HTTP. SQL lives in `store`, status codes in `api`, `unsafe` in `kernels`
//! and at the door to NVIDIA's libraries; only `app` and `bench` choose a device, and nothing else
//! above `backend` knows it. A command carries everything its work needs, so the device thread asks
//! nobody anything.
//! `tests/architecture.rs` holds each module to this picture.

// The emulated GPU of the tests stands outside and inside of the library.
#[cfg(test)]
extern crate self as tandem;

pub mod api;
pub mod app;
pub mod artifacts;
pub mod backend;
pub mod bench;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod demo;
pub mod domain;
pub mod engine;
pub mod gguf;
pub mod hub;
pub mod jobs;
pub mod kernels;
pub mod model;
pub mod peft;
pub mod pictures;
pub mod sample;
pub mod store;
pub mod telemetry;
pub mod text;
pub mod train;
pub mod worker;
