//! What the end-to-end tests and the demonstration share: the whole system as separate processes, with taps on every link.

pub mod by_hand;
pub mod memory;
pub mod programs;
pub mod relay;
pub mod search;
pub mod stack;
pub mod tap;
