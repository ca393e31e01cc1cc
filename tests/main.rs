//! Behaviour tests, by theme.

mod parity;
