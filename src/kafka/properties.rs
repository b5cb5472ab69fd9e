//! Properties of librdkafka that are configured.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

/// Those that decide what is read, written and committed.
const OURS: [&str; 19] = [
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

/// Why a property cannot be set, without its value, which may be a secret.
pub fn check(name: &str, value: &str) -> Result<(), String> {
    if OURS.contains(&name) {
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
        Err(KafkaError::ClientConfig(_, _, name, _)) if is_secret(&name) => {
            Err("is not a property of librdkafka, or cannot have this value".into())
        }
        Err(KafkaError::ClientConfig(_, problem, ..)) => Err(format!("is refused by librdkafka: {problem}")),
        Err(error) => Err(format!("is refused by librdkafka: {error}")),
    }
}

/// Whether the value of a property must not be shown.
pub fn is_secret(name: &str) -> bool {
    ["password", "passphrase", "secret", "oauthbearer.config", "key.pem"]
        .iter()
        .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_those_of_librdkafka_and_not_ours() {
        assert_eq!(check("security.protocol", "SASL_PLAINTEXT"), Ok(()));
        assert_eq!(check("sasl.password", "x"), Ok(()));
        for (name, value, problem) in [
            ("enable.idempotence", "false", "is set by swelter itself, since"),
            ("bootstrap.servers", "a:1", "is set by swelter itself: write brokers"),
            ("security.protocl", "SSL", "is refused by librdkafka: No such configuration property"),
            ("security.protocol", "TLS", "is refused by librdkafka: Invalid value"),
        ] {
            let error = check(name, value).unwrap_err();
            assert!(error.starts_with(problem), "{name}: {error}");
        }
        assert!(!check("sasl.passwords", "hunter2").unwrap_err().contains("hunter2"));
    }

    #[test]
    fn our_properties_exist() {
        for name in OURS {
            let problem = match ClientConfig::new().set(name, "?").create_native_config() {
                Err(KafkaError::ClientConfig(_, problem, ..)) => problem,
                _ => String::new(),
            };
            assert!(!problem.contains("No such"), "{name}: {problem}");
        }
    }

    #[test]
    fn secrets_are_known_by_name() {
        for name in ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"] {
            assert!(is_secret(name), "{name}");
        }
        assert!(!is_secret("sasl.username") && !is_secret("ssl.ca.location"));
    }
}
