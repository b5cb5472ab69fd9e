//! The running digest of a stream that is read through a buffer.

use xxhash_rust::xxh3::Xxh3;

/// Of all bytes up to the end of a record, whatever lies between records included. Bytes are taken as late as possible, many at once.
#[derive(Default)]
pub(super) struct RunningDigest {
    state: Xxh3,
    /// Bytes of the buffer that are taken.
    taken: usize,
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
    pub(super) fn value(&mut self, buffer: &[u8]) -> u64 {
        if let Some(end) = self.end.take() {
            self.take(buffer, end);
            self.value = self.state.digest();
        }
        self.value
    }

    /// The first bytes of the buffer are to go.
    pub(super) fn leave(&mut self, buffer: &[u8], bytes: usize) {
        self.value(buffer);
        self.take(buffer, bytes);
        self.taken -= bytes;
    }

    /// What lies behind the first `kept` bytes of the buffer is to go, all of one record that does not end there.
    pub(super) fn cut(&mut self, filled: &[u8], kept: usize) {
        self.take(filled, filled.len());
        self.taken = kept;
    }

    fn take(&mut self, buffer: &[u8], upto: usize) {
        if let Some(bytes) = buffer.get(self.taken..upto) {
            self.state.update(bytes);
            self.taken = upto;
        }
    }
}
