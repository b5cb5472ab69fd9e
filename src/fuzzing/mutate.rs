//! Mutates valid inputs so little that most still pass the first stage of their decoder, so that
//! the later stages are tried.

/// Numbers by the output step of SplitMix64: the same inputs for the same seed on every machine.
pub struct Mutator {
    state: u64,
}

/// Tokens that decoders are known to fail on.
const HOSTILE_TOKENS: &[&[u8]] = &[
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"1e-999",
    b"0x1p3",
    b"NaN",
    b"inf",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud800",
    b"\\udfff\\ud800",
    b"\"",
    b"\"\"",
    b"\r\n",
    b"\n",
    b"\r",
    b",",
    b",,",
    b"[",
    b"]",
    b"{",
    b"}",
    b"{\"city\":",
    b"\"deleted\":true,",
    b":",
    b"\xEF\xBB\xBF",
    b"\xFF\xFE",
    b"\xC0\x80",
    b"\xED\xA0\x80",
    b"\xF4\x90\x80\x80",
    b"\0",
    b"\x1b[2J",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
    b"PAR1",
];

const HOSTILE_NUMBERS: &[&[u8]] = &[
    b"0",
    b"-1",
    b"1",
    b"140",
    b"140.00000000001",
    b"-130",
    b"105",
    b"260",
    b"1e308",
    b"1e309",
    b"4.9e-324",
    b"99999",
    b"9007199254740993",
    b"123456789012345678901234567890",
    b"0.1",
    b"00",
    b"1.",
    b".5",
    b"-",
    b"2147483648",
    b"65536",
];

const HOSTILE_TEXTS: &[&[u8]] = &[
    b"", b"x", b"2025-02-29T24:00:00Z", b"9999-12-31T23:59:59Z", b"0000-01-01T00:00:00+23:59", b"2025-01-01T00:00:00",
    b"2025-06-30T23:59:60Z", b"city", b"reading_at", b"temperature", b"delete", b"upsert", "\u{202e}x".as_bytes(),
    "\u{10FFFF}".as_bytes(), b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

impl Mutator {
    pub fn new(seed: u64) -> Mutator {
        Mutator { state: seed }
    }

    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next_u64() % limit as u64) as usize
    }

    fn one_of<'a>(&mut self, of: &[&'a [u8]]) -> &'a [u8] {
        of[self.below(of.len())]
    }

    /// One of the seeds with one to four changes. If `is_text`, two of three changes are of a
    /// number or of a quoted text.
    pub fn mutate_seed(&mut self, seeds: &[Vec<u8>], is_text: bool) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        let changes = 1 + (self.next_u64() & self.next_u64() & 3) as usize;
        for _ in 0..changes {
            if is_text && self.below(3) > 0 {
                self.change_value(&mut bytes);
            } else {
                self.change_bytes(&mut bytes, seeds);
            }
        }
        bytes
    }

    fn change_value(&mut self, bytes: &mut Vec<u8>) {
        let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'.' || *byte == b'-';
        let from = self.below(bytes.len() + 1);
        if self.below(2) == 0 {
            let Some(start) = bytes[from..].iter().position(is_number).map(|at| from + at) else { return };
            let end =
                bytes[start..].iter().position(|byte| !is_number(byte)).map_or(bytes.len(), |at| start + at);
            let number = self.one_of(HOSTILE_NUMBERS);
            bytes.splice(start..end, number.iter().copied());
        } else {
            let quotes: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'"').collect();
            if let Some(pair) = quotes.chunks_exact(2).nth(self.below(quotes.len() / 2 + 1)) {
                let text = self.one_of(HOSTILE_TEXTS);
                bytes.splice(pair[0] + 1..pair[1], text.iter().copied());
            }
        }
    }

    fn change_bytes(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let at = self.below(bytes.len() + 1);
        let end = bytes.len().min(at + 1 + self.below(8));
        match self.below(8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
            2 if at < bytes.len() => bytes[at] = self.next_u64() as u8,
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let other = &seeds[self.below(seeds.len())];
                let from = self.below(other.len() + 1);
                let piece = other[from..other.len().min(from + 1 + self.below(64))].to_vec();
                bytes.splice(at..end, piece);
            }
            6 if self.below(4) == 0 => bytes.truncate(at),
            _ => {
                let token = self.one_of(HOSTILE_TOKENS);
                bytes.splice(at..at, token.iter().copied());
            }
        }
    }
}
