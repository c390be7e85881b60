//! Bytes that are wiped.

use zeroize::Zeroize;

/// A growing buffer of secret bytes: wiped when it is dropped, and when it moves to a larger allocation.
///
/// It has no `Debug`, no `Display` and no `Clone`, so that it cannot be printed or copied by accident.
#[derive(Default)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room for `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Takes over a vector: from now on it is wiped.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Appends `more`. An allocation that becomes too small is wiped before it is given back.
    pub fn extend(&mut self, more: &[u8]) {
        self.make_room(more.len());
        self.0.extend_from_slice(more);
    }

    /// Appends `count` times `byte`.
    pub fn extend_with(&mut self, byte: u8, count: usize) {
        self.make_room(count);
        self.0.resize(self.0.len().saturating_add(count), byte);
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be changed in place.
    pub fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets and wipes all bytes; keeps the allocation.
    pub fn clear(&mut self) {
        self.0.zeroize();
    }

    /// Removes the first `count` bytes (all, when there are fewer) and returns them.
    #[must_use]
    pub fn take_front(&mut self, count: usize) -> Self {
        let count = count.min(self.0.len());
        let (front, rest) = self.0.split_at(count);
        let (taken, kept) = (Self(front.to_vec()), rest.len());
        self.0.copy_within(count.., 0);
        // What lies behind the kept bytes is wiped here, not at the next write.
        self.0.iter_mut().skip(kept).for_each(|byte| *byte = 0);
        self.0.truncate(kept);
        taken
    }

    /// Empties the buffer *without* wiping it, for a buffer that is at once filled again up to the old length.
    pub(crate) fn rewind(&mut self) {
        self.0.clear();
    }

    /// Makes sure that `more` bytes fit without growing.
    pub(crate) fn make_room(&mut self, more: usize) {
        let needed = self.0.len().saturating_add(more);
        if needed > self.0.capacity() {
            let mut larger = Vec::with_capacity(needed.max(self.0.capacity().saturating_mul(2)));
            larger.extend_from_slice(&self.0);
            self.0.zeroize();
            self.0 = larger;
        }
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::SecretBytes;

    #[test]
    fn a_buffer_keeps_its_bytes_as_it_grows_and_gives_them_back_in_order() {
        let mut buffer = SecretBytes::with_capacity(1);
        for n in 0..100_u8 {
            buffer.extend(&[n; 3]);
        }
        buffer.extend_with(7, 2);
        assert_eq!(buffer.len(), 302);
        assert_eq!(buffer.take_front(4).as_bytes(), [0, 0, 0, 1]);
        assert_eq!(buffer.len(), 298);
        assert_eq!(&buffer.as_bytes()[..3], [1, 1, 2]);
        assert_eq!(buffer.take_front(1_000).len(), 298);
        assert!(buffer.is_empty());
    }
}
