//! Behaviour, by theme; one target, so that it links once.

mod adapters;
mod architecture;
mod chat;
mod completions;
mod crash;
mod demo;
mod engine_equality;
mod failing;
mod files;
mod fine_tuning;
mod http;
mod hub;
mod leases;
mod listener;
mod openapi;
mod parity;
mod pictures;
mod runner;
mod store;
mod support;
mod text;
mod training;
mod training_pictures;
