//! Behaviour, by theme; one target, so that it links once.

mod architecture;
mod crash;
mod leases;
mod parity;
mod store;
mod support;
mod text;
mod training;
