//! Where the super-blocks of a packed matrix lie.

use crate::format::Format;
use crate::store::LINE;
use crate::{BLOCK_INPUTS, SUPER};

/// Finds the super-blocks of the tiles of a matrix (see [`Format`]).
///
/// Tiles lie in bands of [`BAND`], of which the last one may have fewer: first super-block 0 of all its tiles, then super-block 1, and
/// so on. A few rows of activations are multiplied in that order: memory is read from beginning to end, as the processor's own
/// prefetching wants it, while the activations that belong to a super-block stay in the first cache for all tiles of the band.
///
/// After each super-block of a band, those of all its tiles, a line of the cache lies free: else all super-blocks of a tile would, in
/// some formats, lie at the same place of a page, which makes products slower.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) format: Format,
    pub(crate) inputs: usize,
    pub(crate) tiles: usize,
}

impl Layout {
    /// Bytes of all tiles, and of the lines between them that lie free.
    pub(crate) const fn bytes(&self) -> usize {
        let gaps = self.tiles.div_ceil(BAND).saturating_mul(self.supers()).saturating_mul(LINE);
        self.tiles.saturating_mul(self.format.tile_bytes(self.inputs)).saturating_add(gaps)
    }

    /// Super-blocks of a tile.
    pub(crate) const fn supers(&self) -> usize {
        self.inputs.div_ceil(SUPER_INPUTS)
    }

    /// Inputs of a super-block: the last one may have fewer.
    #[inline(always)]
    pub(crate) fn inputs_of(&self, index: usize) -> usize {
        SUPER_INPUTS.min(self.inputs - index * SUPER_INPUTS)
    }

    /// Bytes of a super-block.
    #[inline(always)]
    pub(crate) fn bytes_of(&self, index: usize) -> usize {
        self.format.super_bytes(self.inputs_of(index))
    }

    /// The first byte of a super-block of a tile.
    #[inline(always)]
    pub(crate) fn offset(&self, tile: usize, index: usize) -> usize {
        let first = tile / BAND * BAND;
        let band = first * self.format.tile_bytes(self.inputs) + first / BAND * self.supers() * LINE;
        let before = index * (self.tiles_of_band(first) * self.format.super_bytes(SUPER_INPUTS) + LINE);
        band + before + (tile - first) * self.bytes_of(index)
    }

    /// Cuts the tiles from `tile` on out of the bytes of the matrix, as many as are wanted: of each its super-blocks.
    pub(crate) fn cut<'a>(&self, bytes: &'a mut [u8], tile: usize, tiles: usize) -> Vec<Vec<&'a mut [u8]>> {
        let end = self.tiles.min(tile.saturating_add(tiles));
        if tile >= end {
            return Vec::new();
        }
        let mut cut: Vec<_> = (tile..end).map(|_| Vec::with_capacity(self.supers())).collect();
        let mut left = &mut bytes[self.offset(tile / BAND * BAND, 0)..];
        for first in (tile / BAND * BAND..end).step_by(BAND) {
            for index in 0..self.supers() {
                for of_band in first..first + self.tiles_of_band(first) {
                    let (part, after) = left.split_at_mut(self.bytes_of(index));
                    if let Some(cut) = of_band.checked_sub(tile).and_then(|place| cut.get_mut(place)) {
                        cut.push(part);
                    }
                    left = after;
                }
                left = &mut left[LINE..];
            }
        }
        cut
    }

    #[inline(always)]
    fn tiles_of_band(&self, first: usize) -> usize {
        BAND.min(self.tiles - first)
    }
}

/// Tiles of a band. The results of twelve rows with so many tiles, and the activations of a super-block, are half of the first cache of
/// most cores.
pub(crate) const BAND: usize = 16;
/// Inputs of a super-block.
pub(crate) const SUPER_INPUTS: usize = SUPER * BLOCK_INPUTS;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LANES;

    #[test]
    fn what_is_cut_out_lies_where_it_is_looked_for_and_no_two_overlap() {
        for format in Format::ALL {
            for (inputs, tiles) in [(256, 1), (768, 16), (512, 17), (2048, 35), (288, 40)] {
                if inputs % format.inputs_of_block() != 0 {
                    continue;
                }
                let layout = Layout { format, inputs, tiles };
                assert_eq!(layout.bytes(), format.packed_bytes(tiles * LANES, inputs));
                let mut bytes = vec![0; layout.bytes()];
                let start = bytes.as_ptr().addr();
                for (tile, count) in [(0, tiles), (tiles / 2, tiles), (tiles - 1, 1), (tiles / 3, 2)] {
                    let mut end = 0;
                    let mut places = Vec::new();
                    for (tile, cut) in (tile..).zip(layout.cut(&mut bytes, tile, count)) {
                        assert_eq!(cut.iter().map(|part| part.len()).sum::<usize>(), format.tile_bytes(inputs));
                        for (index, part) in cut.iter().enumerate() {
                            assert_eq!(part.as_ptr().addr() - start, layout.offset(tile, index), "{format:?} {tile}");
                            places.push((layout.offset(tile, index), part.len()));
                        }
                    }
                    assert_eq!(places.len(), count.min(tiles - tile) * layout.supers());
                    places.sort_unstable();
                    for (place, length) in places {
                        assert!(place >= end && place + length <= layout.bytes());
                        end = place + length;
                    }
                }
            }
        }
    }
}
