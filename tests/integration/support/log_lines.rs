//! The lines of a log as JSON objects.

use std::collections::BTreeSet;

/// Fails if a line of a log has a key twice, as with two fields called `process`.
pub fn check_log_keys(log: &str) {
    for line in log.split_inclusive('\n').filter(|line| line.starts_with('{') && line.ends_with('\n')) {
        let LogKeys(keys) = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let unique: BTreeSet<&String> = keys.iter().collect();
        assert_eq!(unique.len(), keys.len(), "a key is there twice: {line}");
    }
}

/// The keys of an object; those that are there twice are in the list twice.
struct LogKeys(Vec<String>);

impl<'de> serde::Deserialize<'de> for LogKeys {
    fn deserialize<D: serde::Deserializer<'de>>(json: D) -> Result<LogKeys, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = LogKeys;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<LogKeys, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(LogKeys(keys))
            }
        }
        json.deserialize_map(Visitor)
    }
}

#[test]
#[should_panic = "a key is there twice"]
fn log_line_with_a_key_twice_is_found() {
    check_log_keys("{\"level\":\"INFO\",\"process\":1}\n{\"process\":1,\"process\":2}\n");
}
