//! Reads the bytes of a datum, value by value.

/// What is wrong with a datum.
pub(super) type DatumFault = &'static str;

const CUT_SHORT: DatumFault = "it ends too soon";

#[derive(Clone, Copy)]
pub(super) struct DatumCursor<'a> {
    rest: &'a [u8],
}

impl<'a> DatumCursor<'a> {
    pub(super) fn new(datum: &'a [u8]) -> DatumCursor<'a> {
        DatumCursor { rest: datum }
    }

    /// The number of bytes that are left.
    pub(super) fn remaining_bytes(&self) -> usize {
        self.rest.len()
    }

    #[inline]
    pub(super) fn take_bytes(&mut self, count: usize) -> Result<&'a [u8], DatumFault> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(bytes)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DatumFault> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(*bytes)
    }

    /// Zigzag, 7 bits a byte, the least significant first.
    #[inline]
    pub(super) fn long(&mut self) -> Result<i64, DatumFault> {
        if let [byte @ 0..0x80, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(unzigzag(u64::from(*byte)));
        }
        let mut bits = 0u64;
        for (at, &byte) in self.rest.iter().enumerate() {
            if at == 9 && byte > 1 {
                return Err("a number has more than 64 bits");
            }
            bits |= u64::from(byte & 0x7F) << (7 * at);
            if byte < 0x80 {
                self.rest = &self.rest[at + 1..];
                return Ok(unzigzag(bits));
            }
        }
        Err(CUT_SHORT)
    }

    #[inline]
    pub(super) fn int(&mut self) -> Result<i32, DatumFault> {
        i32::try_from(self.long()?).map_err(|_| "an int has more than 32 bits")
    }

    #[inline]
    pub(super) fn boolean(&mut self) -> Result<bool, DatumFault> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err("a boolean is neither 0 nor 1"),
        }
    }

    #[inline]
    pub(super) fn float(&mut self) -> Result<f32, DatumFault> {
        self.array().map(f32::from_le_bytes)
    }

    #[inline]
    pub(super) fn double(&mut self) -> Result<f64, DatumFault> {
        self.array().map(f64::from_le_bytes)
    }

    /// Reads bytes behind their length.
    #[inline]
    pub(super) fn bytes(&mut self) -> Result<&'a [u8], DatumFault> {
        let len = usize::try_from(self.long()?).map_err(|_| "a length is negative")?;
        self.take_bytes(len)
    }

    #[inline]
    pub(super) fn text(&mut self) -> Result<&'a str, DatumFault> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "text is not UTF-8")
    }

    /// Reads the index of one of `count` branches or symbols.
    #[inline]
    pub(super) fn read_index(&mut self, count: usize) -> Result<usize, DatumFault> {
        usize::try_from(self.long()?)
            .ok()
            .filter(|&choice| choice < count)
            .ok_or("the number of a union's branch or an enum's symbol is out of range")
    }
}

fn unzigzag(bits: u64) -> i64 {
    (bits >> 1) as i64 ^ -((bits & 1) as i64)
}
