//! Data of a binary COPY, in pieces that are sent one after the other.

use bytes::Bytes;

use super::tuple::{COPY_HEADER, COPY_TRAILER, sized_fields};

/// A piece of about this size is one message to the server.
const PIECE_BYTES: usize = 256 * 1024;

/// Concatenated tuples.
#[derive(Debug, Default)]
pub(super) struct CopyData {
    pieces: Vec<Vec<u8>>,
    rows: u64,
}

impl CopyData {
    pub fn push(&mut self, tuple: &[u8]) {
        if self.pieces.last().is_none_or(|piece| piece.len() + tuple.len() > PIECE_BYTES) {
            // The first piece also has the header; most transactions have one piece.
            let room = if self.pieces.is_empty() { COPY_HEADER.len() + tuple.len() } else { PIECE_BYTES };
            let mut piece = Vec::with_capacity(room);
            if self.pieces.is_empty() {
                piece.extend_from_slice(COPY_HEADER);
            }
            self.pieces.push(piece);
        }
        if let Some(piece) = self.pieces.last_mut() {
            piece.extend_from_slice(tuple);
        }
        self.rows += 1;
    }

    pub fn clear(&mut self) {
        self.pieces.clear();
        self.rows = 0;
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The tuples that were pushed.
    pub fn tuples(&self) -> impl Iterator<Item = &[u8]> {
        let first = self.pieces.first().map(|piece| &piece[COPY_HEADER.len()..]);
        let pieces = first.into_iter().chain(self.pieces.iter().skip(1).map(Vec::as_slice));
        pieces.flat_map(split_tuples)
    }

    /// The messages, with the header and the trailer.
    pub fn into_messages(mut self) -> impl Iterator<Item = Bytes> {
        if let Some(piece) = self.pieces.last_mut() {
            piece.extend_from_slice(COPY_TRAILER);
        }
        self.pieces.into_iter().map(Bytes::from)
    }
}

/// The tuples of a piece.
pub(super) fn split_tuples(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = piece;
    std::iter::from_fn(move || {
        let fields = i16::from_be_bytes(*rest.first_chunk::<2>()?);
        let length: usize = sized_fields(rest).take(fields as usize).map(<[u8]>::len).sum();
        let (tuple, after) = rest.split_at_checked(2 + length)?;
        rest = after;
        Some(tuple)
    })
}

impl<'a> FromIterator<&'a [u8]> for CopyData {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(tuples: I) -> CopyData {
        let mut data = CopyData::default();
        tuples.into_iter().for_each(|tuple| data.push(tuple));
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::postgres::tuple::TupleWriter;

    #[test]
    fn pieces_together_are_one_copy() {
        for rows in [1, 3, 10_000] {
            let tuple = |row: i64| {
                let mut tuple = Vec::new();
                let text = "é".repeat(row as usize % 60);
                TupleWriter::begin(3, &mut tuple).bigint(row).text(Some(&text)).bigint(None);
                tuple
            };
            let tuples: Vec<Vec<u8>> = (0..rows).map(tuple).collect();
            let data: CopyData = tuples.iter().map(Vec::as_slice).collect();
            assert!(data.tuples().eq(tuples.iter().map(Vec::as_slice)));
            assert_eq!(data.rows(), rows as u64);
            let messages: Vec<Bytes> = data.into_messages().collect();
            assert!(messages.iter().all(|message| message.len() <= PIECE_BYTES + COPY_TRAILER.len()));
            assert_eq!(messages.concat(), [&COPY_HEADER[..], &tuples.concat(), COPY_TRAILER].concat());
        }
    }
}
