//! The running digest of a stream that is read through a buffer.

use xxhash_rust::xxh3::Xxh3;

/// The digest of all bytes up to the end of a record, including those between records. Bytes are
/// hashed as late as possible, many at once.
#[derive(Default)]
pub(super) struct RunningDigest {
    state: Xxh3,
    /// The number of bytes of the buffer that are hashed.
    hashed: usize,
    /// The end of the last record in the buffer, if its bytes are still there.
    end: Option<usize>,
    /// The digest up to the end of the last record, if its bytes are no longer in the buffer.
    value: u64,
}

impl RunningDigest {
    /// Sets the end of the last record.
    #[inline]
    pub(super) fn end_record(&mut self, end: usize) {
        self.end = Some(end);
    }

    /// The digest up to the end of the last record.
    pub(super) fn digest_at_record_end(&mut self, buffer: &[u8]) -> u64 {
        if let Some(end) = self.end.take() {
            self.hash_until(buffer, end);
            self.value = self.state.digest();
        }
        self.value
    }

    /// Hashes the first bytes of the buffer before they are dropped.
    pub(super) fn drop_front(&mut self, buffer: &[u8], bytes: usize) {
        self.digest_at_record_end(buffer);
        self.hash_until(buffer, bytes);
        self.hashed -= bytes;
    }

    /// Hashes the bytes behind the first `kept` before they are dropped; all are of one record,
    /// which ends later.
    pub(super) fn drop_after(&mut self, filled: &[u8], retained_bytes: usize) {
        self.hash_until(filled, filled.len());
        self.hashed = retained_bytes;
    }

    fn hash_until(&mut self, buffer: &[u8], until: usize) {
        if let Some(bytes) = buffer.get(self.hashed..until) {
            self.state.update(bytes);
            self.hashed = until;
        }
    }
}
