//! A simulated Nitro Secure Module that really signs: registers, locks, limits and documents as the hardware has them.
//!
//! [`Module`] is the state; [`serve`] answers requests over a socket, in CBOR as the device takes them; [`Client`] is the
//! other end, for an enclave program under the simulated hypervisor.

pub(crate) mod document;
mod module;
mod wire;

pub use module::{Module, ModuleError, ModuleSettings, Registers};
pub use wire::{Client, serve};
