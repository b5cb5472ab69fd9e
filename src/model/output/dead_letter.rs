//! Dead letters as they are read back, retried and exported.

use std::str;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::model::{EventTime, RecordAddress, RetryInfo};

/// A refused record, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The address of the refused record.
    pub address: RecordAddress,
    /// When the log appended the record, or when the record was written, if known.
    pub arrived_at: Option<EventTime>,
    /// A reason code, perhaps of another version.
    pub reason: String,
    pub detail: String,
    /// Set if the record had been retried before it was refused.
    pub retry: Option<RetryInfo>,
    /// When a log first had the record.
    pub first_seen: Option<EventTime>,
    pub key: Option<Vec<u8>>,
    /// `None` for a tombstone.
    pub value: Option<Vec<u8>>,
}

impl DeadLetter {
    pub fn attempt(&self) -> u32 {
        self.retry.as_ref().map_or(0, |retry| retry.attempt)
    }

    /// The retry information for the next retry of the record.
    pub fn next_retry(&self) -> RetryInfo {
        match &self.retry {
            Some(retry) => RetryInfo { attempt: retry.attempt.saturating_add(1), ..retry.clone() },
            None => {
                RetryInfo { origin: self.address.to_string().into(), attempt: 1, first_seen: self.first_seen }
            }
        }
    }

    /// Whether the record withdraws a reading, as far as it can be read as JSON: withdrawals are
    /// not retried.
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

/// Bytes in JSON: as text if they are UTF-8, else in base64.
fn text_or_base64(bytes: Option<&[u8]>) -> (Option<String>, Option<String>) {
    match bytes.map(|bytes| (str::from_utf8(bytes), bytes)) {
        None => (None, None),
        Some((Ok(text), _)) => (Some(text.to_owned()), None),
        Some((Err(_), bytes)) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// The bytes of such fields; `None` if both are absent, or the base64 is invalid.
pub fn decode_text_or_base64(text: Option<String>, base64: Option<&str>) -> Option<Vec<u8>> {
    text.map(String::into_bytes).or_else(|| STANDARD.decode(base64?).ok())
}

/// A dead letter as `export` writes it, for a person to edit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDeadLetter {
    /// The source's name in the configuration.
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
    pub fn from_dead_letter(source: &str, dead_letter: &DeadLetter) -> ExportedDeadLetter {
        let ((key, key_base64), (raw, raw_base64)) =
            (text_or_base64(dead_letter.key.as_deref()), text_or_base64(dead_letter.value.as_deref()));
        ExportedDeadLetter {
            source: source.to_owned(),
            position: dead_letter.address.to_string(),
            reason: dead_letter.reason.clone(),
            detail: dead_letter.detail.clone(),
            attempt: dead_letter.attempt(),
            origin: dead_letter.retry.as_ref().map(|retry| retry.origin.to_string()),
            first_seen_at: dead_letter.first_seen.map(|time| time.to_string()),
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
            let address = RecordAddress { source: source.into(), partition, position };
            let dead_letter = DeadLetter {
                address: address.clone(),
                arrived_at: None,
                reason: "bad_time".into(),
                detail: String::new(),
                retry: None,
                first_seen: None,
                key,
                value: value.clone(),
            };
            let line = serde_json::to_string(&ExportedDeadLetter::from_dead_letter("s", &dead_letter)).unwrap();
            let line: ExportedDeadLetter = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(line.record_bytes(), value);
            prop_assert_eq!(line.position.parse::<RecordAddress>(), Ok(address));
        }

        #[test]
        fn arbitrary_text_is_a_record_address_or_refused(text in ".{0,30}") {
            if let Ok(address) = text.parse::<RecordAddress>() {
                prop_assert_eq!(address.to_string().parse::<RecordAddress>(), Ok(address));
            }
        }
    }

    #[test]
    fn withdrawals_are_recognized_in_any_spelling() {
        let dead_letter = |value: Option<&str>| DeadLetter {
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
            assert!(dead_letter(value).is_withdrawal(), "{value:?}");
        }
        for value in ["", "{}", "[", r#"{"deleted": false}"#, r#"{"deleted":"yes"}"#, r#"{"op":"upsert"}"#] {
            assert!(!dead_letter(Some(value)).is_withdrawal(), "{value:?}");
        }
    }
}
