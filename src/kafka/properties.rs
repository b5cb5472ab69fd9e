//! Checks of librdkafka's properties in a configuration.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

/// Properties that decide what is read, written and committed, so a configuration may not set them.
const RESERVED_PROPERTIES: [&str; 19] = [
    "acks",
    "allow.auto.create.topics",
    "auto.offset.reset",
    "bootstrap.servers",
    "client.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partitioner",
    "request.required.acks",
    "transaction.timeout.ms",
    "transactional.id",
];

/// Why a property cannot be set; without its value, which may be a secret.
pub fn check_property(name: &str, value: &str) -> Result<(), String> {
    if RESERVED_PROPERTIES.contains(&name) {
        let instead = match name {
            "bootstrap.servers" | "metadata.broker.list" => ": write brokers",
            "group.id" => ": write group",
            "partitioner" => ": write partitioner without properties",
            "transaction.timeout.ms" => ": write transaction_timeout",
            _ => ", since exactly once depends on it: leave it out",
        };
        return Err(format!("is set by swelter itself{instead}"));
    }
    match ClientConfig::new().set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(_, _, name, _)) if is_secret_property(&name) => {
            Err("is not a property of librdkafka, or cannot have this value".into())
        }
        Err(KafkaError::ClientConfig(_, problem, ..)) => Err(format!("is refused by librdkafka: {problem}")),
        Err(error) => Err(format!("is refused by librdkafka: {error}")),
    }
}

/// Whether the value of a property is a secret.
pub fn is_secret_property(name: &str) -> bool {
    ["password", "passphrase", "secret", "oauthbearer.config", "key.pem"]
        .iter()
        .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_properties_must_exist_and_not_be_managed() {
        assert_eq!(check_property("security.protocol", "SASL_PLAINTEXT"), Ok(()));
        assert_eq!(check_property("sasl.password", "x"), Ok(()));
        for (name, value, problem) in [
            ("enable.idempotence", "false", "is set by swelter itself, since"),
            ("bootstrap.servers", "a:1", "is set by swelter itself: write brokers"),
            ("security.protocl", "SSL", "is refused by librdkafka: No such configuration property"),
            ("security.protocol", "TLS", "is refused by librdkafka: Invalid value"),
        ] {
            let error = check_property(name, value).unwrap_err();
            assert!(error.starts_with(problem), "{name}: {error}");
        }
        assert!(!check_property("sasl.passwords", "hunter2").unwrap_err().contains("hunter2"));
    }

    #[test]
    fn managed_properties_exist_in_librdkafka() {
        for name in RESERVED_PROPERTIES {
            let problem = match ClientConfig::new().set(name, "?").create_native_config() {
                Err(KafkaError::ClientConfig(_, problem, ..)) => problem,
                _ => String::new(),
            };
            assert!(!problem.contains("No such"), "{name}: {problem}");
        }
    }

    #[test]
    fn secret_properties_are_recognized_by_name() {
        for name in ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"] {
            assert!(is_secret_property(name), "{name}");
        }
        assert!(!is_secret_property("sasl.username") && !is_secret_property("ssl.ca.location"));
    }
}
