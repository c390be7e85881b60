//! Randomness, as an argument.

use ring::rand::SecureRandom;

/// A source of cryptographically secure random bytes.
pub trait Random {
    /// Fills `out` with unpredictable bytes.
    ///
    /// # Errors
    /// [`RandomError`] when the source cannot give them; `out` must then not be used.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), RandomError>;
}

/// The source of random bytes failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the source of random bytes gave none; nothing was sealed")]
pub struct RandomError;

/// The operating system's random bytes.
#[derive(Debug)]
pub struct SystemRandom(ring::rand::SystemRandom);

impl SystemRandom {
    /// A handle to the operating system's random bytes.
    #[must_use]
    pub fn new() -> Self {
        Self(ring::rand::SystemRandom::new())
    }
}

impl Default for SystemRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl Random for SystemRandom {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), RandomError> {
        self.0.fill(out).map_err(|ring::error::Unspecified| RandomError)
    }
}
