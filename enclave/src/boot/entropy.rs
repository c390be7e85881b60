//! Randomness: the security module's own, checked and mixed into the kernel's.
//!
//! All keys of this program come from the kernel's generator (`getrandom`, through ring and aws-lc), which blocks until
//! it has been seeded; on Nitro the driver's `nsm-hwrng` and the image's init seed it. No generator of our own is kept.
//! What is done here is to see that the module gives randomness at all, before the first key, and to write some of it
//! to `/dev/urandom`: that mixes it in for every later key, whatever the kernel had before. It adds no credit, so a bad
//! module can weaken nothing.

use std::io::Write;

use attestation::nsm::Nsm;
use zeroize::Zeroizing;

/// Draws from the module, checks that two draws differ, and mixes them in. Blocks.
pub(super) fn mix(nsm: &dyn Nsm) -> Result<EntropyMixed, EntropyError> {
    let mut first = Zeroizing::new([0_u8; DRAW_BYTES]);
    let mut second = Zeroizing::new([0_u8; DRAW_BYTES]);
    nsm.random(&mut *first).map_err(|_| EntropyError::Module)?;
    nsm.random(&mut *second).map_err(|_| EntropyError::Module)?;
    if *first == *second || is_constant(&*first) || is_constant(&*second) {
        return Err(EntropyError::NotRandom);
    }
    let mut pool = std::fs::OpenOptions::new().write(true).open(POOL).map_err(|_| EntropyError::Pool)?;
    pool.write_all(&*first).and_then(|()| pool.write_all(&*second)).map_err(|_| EntropyError::Pool)?;
    Ok(EntropyMixed(()))
}

/// Proof that the module gives randomness and that the kernel has got some of it.
#[must_use]
pub(super) struct EntropyMixed(());

fn is_constant(bytes: &[u8]) -> bool {
    bytes.windows(2).all(|pair| matches!(pair, [one, other] if one == other))
}

/// Why no key can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntropyError {
    /// The module gave nothing.
    #[error("the security module gave no randomness")]
    Module,
    /// What the module gave is constant or repeats.
    #[error("what the security module gives is not random")]
    NotRandom,
    /// The kernel did not take it.
    #[error("/dev/urandom cannot be written to; is it missing in the image?")]
    Pool,
}

/// The device gives at most 256 bytes at a time; 64 are twice what any key of ours needs.
const DRAW_BYTES: usize = 64;
const POOL: &str = "/dev/urandom";

#[cfg(test)]
mod tests {
    use attestation::nsm::{Exchange, NsmError};
    use aws_nitro_enclaves_nsm_api::api::{Request, Response};

    use super::*;

    struct Module(fn() -> Vec<u8>);

    impl Exchange for Module {
        fn exchange(&self, _: Request) -> Result<Response, NsmError> {
            Ok(Response::GetRandom { random: (self.0)() })
        }
    }

    #[test]
    fn a_module_that_repeats_itself_is_refused() {
        assert_eq!(mix(&Module(|| (0..64).collect())).err(), Some(EntropyError::NotRandom));
        assert_eq!(mix(&Module(|| vec![0; 64])).err(), Some(EntropyError::NotRandom));
    }

    #[test]
    fn a_module_that_gives_nothing_is_refused() {
        assert_eq!(mix(&Module(Vec::new)).err(), Some(EntropyError::Module));
    }

    #[test]
    fn good_randomness_is_mixed_in() {
        let random = || {
            let mut bytes = vec![0; 64];
            ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).unwrap();
            bytes
        };
        assert!(mix(&Module(random)).is_ok());
    }
}
