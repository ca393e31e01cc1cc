//! Behaviour, by theme; one target, so that it links once.

mod architecture;
mod leases;
mod parity;
mod store;
mod support;
