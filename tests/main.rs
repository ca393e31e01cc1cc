//! Behaviour, by theme; one target, so that it links once.

mod architecture;
mod chat;
mod completions;
mod crash;
mod http;
mod leases;
mod openapi;
mod parity;
mod store;
mod support;
mod text;
mod training;
