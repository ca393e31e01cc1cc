//! Behaviour, by theme; one target, so that it links once.

mod architecture;
mod crash;
mod demo;
mod engine_equality;
mod leases;
mod parity;
mod runner;
mod store;
mod support;
mod text;
mod training;
