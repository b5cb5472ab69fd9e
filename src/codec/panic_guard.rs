//! A decoder that panics costs the record that it panics at, and no other.

use crate::model::{Reason, Refusal};
use crate::panics::{self, PanicScope, panic_point};

/// What a record is refused with if its decoder panics; the log has the place.
pub(super) const DECODER_PANIC_DETAIL: &str =
    "a bug of swelter: its decoder panicked at this record; please report it with the record";

/// Decodes a record, or refuses it if that panics. What the decoder keeps from record to record must not matter to the next one.
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
