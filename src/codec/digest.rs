//! The running digest of a stream that is read through a buffer.

use xxhash_rust::xxh3::Xxh3;

/// Of all bytes up to the end of a record, whatever lies between records included. Bytes are taken as late as possible, many at once.
#[derive(Default)]
pub(super) struct RunningDigest {
    state: Xxh3,
    /// Bytes of the buffer that are taken.
    hashed: usize,
    /// Where in the buffer the last record ends, if it is still there.
    end: Option<usize>,
    /// Up to the end of a record that is not there any more.
    value: u64,
}

impl RunningDigest {
    /// The last record that was given ends there.
    #[inline]
    pub(super) fn end_record(&mut self, end: usize) {
        self.end = Some(end);
    }

    /// Up to the end of the last record.
    pub(super) fn digest_at_record_end(&mut self, buffer: &[u8]) -> u64 {
        if let Some(end) = self.end.take() {
            self.hash_until(buffer, end);
            self.value = self.state.digest();
        }
        self.value
    }

    /// The first bytes of the buffer are to go.
    pub(super) fn drop_front(&mut self, buffer: &[u8], bytes: usize) {
        self.digest_at_record_end(buffer);
        self.hash_until(buffer, bytes);
        self.hashed -= bytes;
    }

    /// What lies behind the first `kept` bytes of the buffer is to go, all of one record that does not end there.
    pub(super) fn drop_after(&mut self, filled: &[u8], kept: usize) {
        self.hash_until(filled, filled.len());
        self.hashed = kept;
    }

    fn hash_until(&mut self, buffer: &[u8], until: usize) {
        if let Some(bytes) = buffer.get(self.hashed..until) {
            self.state.update(bytes);
            self.hashed = until;
        }
    }
}
