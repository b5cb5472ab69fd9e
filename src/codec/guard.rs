//! A decoder that panics costs the record that it panics at, and no other.

use crate::model::{Reason, Refusal};
use crate::panics::{self, Scope, fail_point};

/// What a record is refused with if its decoder panics; the log has the place.
pub(super) const BUG: &str =
    "a bug of swelter: its decoder panicked at this record; please report it with the record";

/// Decodes a record, or refuses it if that panics. What the decoder keeps from record to record must not matter to the next one.
#[inline]
pub(super) fn guarded<T>(decode: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let decode = || {
        fail_point("decode");
        decode()
    };
    panics::catch(Scope::Record, decode).unwrap_or_else(|_| Err(Refusal::new(Reason::NotDecodable, BUG)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_panic_refuses_the_record() {
        let refusal = guarded::<()>(|| panic!("as the test asks")).unwrap_err();
        assert_eq!((refusal.reason, &*refusal.detail), (Reason::NotDecodable, BUG));
        assert_eq!(guarded(|| Ok(7)).unwrap(), 7);
    }
}
