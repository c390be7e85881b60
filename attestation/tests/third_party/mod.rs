//! The trials of each area of `tests/VECTORS.md` that concerns this package.

pub(crate) mod cose;
pub(crate) mod documents;
