//! Dead letters as they are read back.

use std::str;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::model::{EventTime, RecordAddress, RetryInfo};

/// A record that was refused, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where the refused record stands.
    pub address: RecordAddress,
    /// When its log took it, or it was written, where that is known.
    pub arrived_at: Option<EventTime>,
    /// A reason code; of another version perhaps.
    pub reason: String,
    pub detail: String,
    /// Where it was sent again before it was refused.
    pub retry: Option<RetryInfo>,
    /// When a log first took it.
    pub first_seen: Option<EventTime>,
    pub key: Option<Vec<u8>>,
    /// A tombstone has none.
    pub value: Option<Vec<u8>>,
}

impl DeadLetter {
    pub fn attempt(&self) -> u32 {
        self.retry.as_ref().map_or(0, |retried| retried.attempt)
    }

    /// What says of the record that is sent once more where it comes from.
    pub fn next_retry(&self) -> RetryInfo {
        match &self.retry {
            Some(retried) => RetryInfo { attempt: retried.attempt.saturating_add(1), ..retried.clone() },
            None => {
                RetryInfo { origin: self.address.to_string().into(), attempt: 1, first_seen: self.first_seen }
            }
        }
    }

    /// Whether it withdraws a reading, as far as it can be read as JSON: such a letter is not sent again.
    pub fn is_withdrawal(&self) -> bool {
        #[derive(Deserialize)]
        struct Intent {
            #[serde(default)]
            deleted: serde_json::Value,
            #[serde(default)]
            op: serde_json::Value,
        }
        let Some(value) = &self.value else { return true };
        let intent = serde_json::from_slice::<Intent>(value);
        intent.is_ok_and(|intent| intent.deleted == true || intent.op == "delete")
    }
}

/// Bytes as JSON has them: as text where they are UTF-8, else in base64.
fn text_or_base64(bytes: Option<&[u8]>) -> (Option<String>, Option<String>) {
    match bytes.map(|bytes| (str::from_utf8(bytes), bytes)) {
        None => (None, None),
        Some((Ok(text), _)) => (Some(text.to_owned()), None),
        Some((Err(_), bytes)) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// The bytes of such fields; nothing where they are not there or no base64.
pub fn decode_text_or_base64(text: Option<String>, base64: Option<&str>) -> Option<Vec<u8>> {
    text.map(String::into_bytes).or_else(|| STANDARD.decode(base64?).ok())
}

/// A letter as `export` writes it, for a person to edit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDeadLetter {
    /// As the configuration calls it.
    pub source: String,
    pub position: String,
    pub reason: String,
    pub detail: String,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_seen_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_base64: Option<String>,
}

impl ExportedDeadLetter {
    pub fn from_dead_letter(source: &str, letter: &DeadLetter) -> ExportedDeadLetter {
        let ((key, key_base64), (raw, raw_base64)) =
            (text_or_base64(letter.key.as_deref()), text_or_base64(letter.value.as_deref()));
        ExportedDeadLetter {
            source: source.to_owned(),
            position: letter.address.to_string(),
            reason: letter.reason.clone(),
            detail: letter.detail.clone(),
            attempt: letter.attempt(),
            origin: letter.retry.as_ref().map(|retried| retried.origin.to_string()),
            first_seen_at: letter.first_seen.map(|time| time.to_string()),
            key,
            key_base64,
            raw,
            raw_base64,
        }
    }

    /// The record's bytes.
    pub fn record_bytes(&self) -> Option<Vec<u8>> {
        decode_text_or_base64(self.raw.clone(), self.raw_base64.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn dead_letter_lines_keep_exact_bytes(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            value in prop::option::of(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                ".*".prop_map(String::into_bytes),
            ]),
            (source, partition, position) in ("[a-z./-]{1,20}", any::<u32>(), any::<u64>()),
        ) {
            let place = RecordAddress { source: source.into(), partition, position };
            let letter = DeadLetter {
                address: place.clone(),
                arrived_at: None,
                reason: "bad_time".into(),
                detail: String::new(),
                retry: None,
                first_seen: None,
                key,
                value: value.clone(),
            };
            let line = serde_json::to_string(&ExportedDeadLetter::from_dead_letter("s", &letter)).unwrap();
            let line: ExportedDeadLetter = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(line.record_bytes(), value);
            prop_assert_eq!(line.position.parse::<RecordAddress>(), Ok(place));
        }

        #[test]
        fn arbitrary_text_is_a_record_address_or_refused(text in ".{0,30}") {
            if let Ok(place) = text.parse::<RecordAddress>() {
                prop_assert_eq!(place.to_string().parse::<RecordAddress>(), Ok(place));
            }
        }
    }

    #[test]
    fn withdrawals_are_recognized_in_any_spelling() {
        let letter = |value: Option<&str>| DeadLetter {
            address: RecordAddress { source: "s".into(), partition: 0, position: 0 },
            arrived_at: None,
            reason: String::new(),
            detail: String::new(),
            retry: None,
            first_seen: None,
            key: None,
            value: value.map(|value| value.as_bytes().to_vec()),
        };
        for value in [None, Some(r#"{"deleted": true}"#), Some(r#"{"city":7,"op":"delete"}"#)] {
            assert!(letter(value).is_withdrawal(), "{value:?}");
        }
        for value in ["", "{}", "[", r#"{"deleted": false}"#, r#"{"deleted":"yes"}"#, r#"{"op":"upsert"}"#] {
            assert!(!letter(Some(value)).is_withdrawal(), "{value:?}");
        }
    }
}
