//! Catches a decoder's panic: it costs the record that it happened at, and no other.

use crate::model::{Reason, Refusal};
use crate::panics::{self, PanicScope, panic_point};

/// The detail of the refusal if a decoder panics; the log has the location.
pub(super) const DECODER_PANIC_DETAIL: &str =
    "a bug of swelter: its decoder panicked at this record; please report it with the record";

/// Decodes a record, or refuses it if the decoder panics. No state that the decoder keeps between
/// records may affect the next one.
#[inline]
pub(super) fn catch_decoder_panic<T>(decode: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let decode = || {
        panic_point("decode");
        decode()
    };
    panics::catch_panic(PanicScope::Record, decode)
        .unwrap_or_else(|_| Err(Refusal::new(Reason::NotDecodable, DECODER_PANIC_DETAIL)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_panic_refuses_the_record() {
        let refusal = catch_decoder_panic::<()>(|| panic!("as the test asks")).unwrap_err();
        assert_eq!((refusal.reason, &*refusal.detail), (Reason::NotDecodable, DECODER_PANIC_DETAIL));
        assert_eq!(catch_decoder_panic(|| Ok(7)).unwrap(), 7);
    }
}
