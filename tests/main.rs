//! Behaviour, by theme; one target, so that it links once.

mod architecture;
mod chat;
mod completions;
mod crash;
mod http;
mod engine_equality;
mod leases;
mod openapi;
mod parity;
mod runner;
mod store;
mod support;
mod text;
mod training;
