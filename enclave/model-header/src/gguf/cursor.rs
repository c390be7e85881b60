//! A place in the file that only moves over bytes that are there.

use super::GgufError;

#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a [u8]) -> Self {
        Self { file, rest: file }
    }

    pub(super) fn position(&self) -> usize {
        self.file.len() - self.rest.len()
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8], GgufError> {
        let parts = usize::try_from(count).ok().and_then(|count| self.rest.split_at_checked(count));
        let (taken, rest) = parts.ok_or(GgufError::Truncated { at: self.position(), wanted: count })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The bytes from here to `end`, a later place in the same file.
    pub(super) fn until(&self, end: &Cursor<'a>) -> &'a [u8] {
        self.rest.get(..self.rest.len().saturating_sub(end.rest.len())).unwrap_or_default()
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let truncated = GgufError::Truncated { at: self.position(), wanted: N as u64 };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A text with its length in front.
    pub(super) fn text(&mut self, limit: u64) -> Result<&'a str, GgufError> {
        let count = super::limited("bytes of a text", self.u64()?, limit)?;
        let at = self.position();
        std::str::from_utf8(self.take(count)?).map_err(|_| GgufError::NotUtf8 { at })
    }
}
