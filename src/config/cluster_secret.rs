//! The secret of a cluster between hosts: made by `swelter cluster secret`, never chosen by a
//! person, so that nobody can guess it from what the processes say to each other.
//!
//! It is the prefix, then 32 random bytes and the first 4 bytes of the SHA-256 of prefix and bytes,
//! in base64url.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use ring::rand::{SecureRandom as _, SystemRandom};

const SECRET_PREFIX: &str = "swelter_cluster_";
const RANDOM_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterSecretKind {
    /// By [`make_cluster_secret`].
    Generated,
    /// As if by it, but not all of it, or changed.
    Mistyped,
    /// Somebody may have thought it up.
    Chosen,
}

/// Makes a secret that nobody can guess.
///
/// # Errors
///
/// If the system gives no random numbers.
pub fn make_cluster_secret() -> Result<String, String> {
    let mut bytes = [0u8; RANDOM_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(|_| "the system gives no random numbers".to_owned())?;
    Ok(encode_secret(&bytes))
}

fn encode_secret(bytes: &[u8]) -> String {
    let all = [bytes, &secret_checksum(bytes)].concat();
    format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(all))
}

fn secret_checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let whole = digest::digest(&digest::SHA256, &[SECRET_PREFIX.as_bytes(), bytes].concat());
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&whole.as_ref()[..CHECKSUM_BYTES]);
    checksum
}

/// Tells a secret that was made from one that was chosen.
pub fn cluster_secret_kind(secret: &str) -> ClusterSecretKind {
    let Some(encoded) = secret.strip_prefix(SECRET_PREFIX) else { return ClusterSecretKind::Chosen };
    let is_whole = URL_SAFE_NO_PAD.decode(encoded).is_ok_and(|bytes| {
        bytes.len() == RANDOM_BYTES + CHECKSUM_BYTES
            && bytes[RANDOM_BYTES..] == secret_checksum(&bytes[..RANDOM_BYTES])
    });
    if is_whole { ClusterSecretKind::Generated } else { ClusterSecretKind::Mistyped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_secret_is_distinguished_from_chosen_and_mistyped() {
        let made = make_cluster_secret().unwrap();
        assert_eq!(cluster_secret_kind(&made), ClusterSecretKind::Generated);
        assert_ne!(made, make_cluster_secret().unwrap());
        for chosen in ["", "s3cr3t", &made[1..], &made[SECRET_PREFIX.len()..]] {
            assert_eq!(cluster_secret_kind(chosen), ClusterSecretKind::Chosen, "{chosen}");
        }
        let (start, end) = made.split_at(SECRET_PREFIX.len() + 5);
        let changed = if end.starts_with('A') { "B" } else { "A" };
        for mistyped in [
            &made[..made.len() - 1],
            &format!("{made}A"),
            &format!("{start}{changed}{}", &end[1..]),
            &format!("{made} "),
            SECRET_PREFIX,
        ] {
            assert_eq!(cluster_secret_kind(mistyped), ClusterSecretKind::Mistyped, "{mistyped}");
        }
    }

    /// What was given to a cluster stays valid in every later version.
    #[test]
    fn secret_encoding_is_stable() {
        let expected = "swelter_cluster_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcnqYEg";
        assert_eq!(encode_secret(&[7; RANDOM_BYTES]), expected);
        assert_eq!(cluster_secret_kind(expected), ClusterSecretKind::Generated);
    }
}
