//! Who asks, as far as the engine has to know.

/// Who asks. The engine is fair between customers, and between the tenants of each; it knows no key and no name, only digests that its
/// caller makes. Who has none asks as [`Asker::NOBODY`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Whose key it is. Names are for customers to choose; keys are not.
    pub customer: [u8; 32],
    /// Which of the customer's tenants it is; at the same time the digest of both, so that it says whose it is.
    pub tenant: [u8; 32],
    /// Between which requests keys and values of a shared beginning may be used again; none, if of this request nothing may be kept.
    pub prefixes: Option<PrefixScope>,
}

/// Requests whose beginnings may be shared: those that were given the same value. What is computed for one is never used for a
/// request of another scope.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixScope(pub [u8; 32]);

impl Asker {
    /// Somebody unknown: all of them share one place in the turns, and nothing is kept for them.
    pub const NOBODY: Self = Self { customer: [0; 32], tenant: [0; 32], prefixes: None };
}
