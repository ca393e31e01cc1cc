//! Behaviour, by theme; one target, so that it links once.

mod architecture;
mod crash;
mod leases;
mod store;
mod support;
