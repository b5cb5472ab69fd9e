//! The bytes of a block: the fields of its header, and the layout of its columns.

/// Readings in a full block.
pub const BLOCK_READINGS: usize = 128;

// Offsets of the header's fields. The columns follow in this order, each beginning with a whole
// byte.
pub(super) const LEN: usize = 0;
pub(super) const FLAGS: usize = 1;
pub(super) const TIMES: usize = 2;
pub(super) const VALUES: usize = 3;
pub(super) const CATEGORIES: usize = 4;
pub(super) const REVISION_PRESENCE: usize = 5;
pub(super) const REVISIONS: usize = 6;
pub(super) const FIRST_CATEGORY: usize = 7;
pub(super) const FIRST_MILLIS: usize = 8;
pub(super) const LAST_MILLIS: usize = 16;
pub(super) const FIRST_VALUE: usize = 24;
pub(super) const SUM: usize = 32;
pub(super) const PEAK: usize = 40;
pub(super) const STRIDE: usize = 48;
pub(super) const HEADER_BYTES: usize = 52;
/// Only in a block with revisions.
pub(super) const FIRST_REVISION: usize = 52;
pub(super) const REVISION_STRIDE: usize = 60;
pub(super) const HEADER_WITH_REVISIONS_BYTES: usize = 68;

/// Flags: times are in whole seconds; there are revisions; the first reading has one.
pub(super) const TIMES_IN_SECONDS: u8 = 1;
pub(super) const HAS_REVISIONS: u8 = 2;
pub(super) const FIRST_HAS_REVISION: u8 = 4;

/// Padding, so that eight bytes can be read at the start of every code.
pub(super) const PADDING_BYTES: usize = 8;

/// How a column is packed: the width of its codes in bits, 0 to 57 or 64, and whether it has a
/// bitmap.
#[derive(Clone, Copy)]
pub(super) struct ColumnLayout(pub(super) u8);

const SPARSE_FLAG: u8 = 0x80;

impl ColumnLayout {
    /// The smaller layout of `len` codes, of which `nonzero` are not zero.
    #[inline]
    pub(super) fn smallest_for(len: usize, all_bits: u64, nonzero: usize) -> ColumnLayout {
        let width = match 64 - all_bits.leading_zeros() as usize {
            // Such a code fits in eight bytes only if it begins with a byte.
            58.. => 64,
            width => width,
        };
        let sparse = len + nonzero * width < len * width;
        ColumnLayout(width as u8 | if sparse { SPARSE_FLAG } else { 0 })
    }

    #[inline(always)]
    pub(super) fn width(self) -> usize {
        usize::from(self.0 & !SPARSE_FLAG)
    }

    #[inline(always)]
    pub(super) fn is_sparse(self) -> bool {
        self.0 & SPARSE_FLAG != 0
    }

    #[inline(always)]
    pub(super) fn mask(self) -> u64 {
        u64::MAX.checked_shr(64 - self.width() as u32).unwrap_or(0)
    }
}

#[inline(always)]
pub(super) fn bitmap_bytes(len: usize) -> usize {
    (len - 1).div_ceil(8)
}

/// The eight bytes that begin at a bit.
#[inline(always)]
pub(super) fn word_at_bit(bytes: &[u8], bit: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[bit / 8..bit / 8 + 8]);
    u64::from_le_bytes(word) >> (bit % 8)
}

#[inline(always)]
pub(super) fn zigzag(difference: i64) -> u64 {
    (difference << 1 ^ difference >> 63) as u64
}

#[inline(always)]
pub(super) fn unzigzag(code: u64) -> i64 {
    (code >> 1) as i64 ^ -((code & 1) as i64)
}
