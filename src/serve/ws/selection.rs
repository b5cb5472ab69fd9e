//! What a subscription is of, and the tokens that continue it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::model::OutputUnits;
use crate::serve::view::{Bounds, Select};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    Latest,
    Window,
}

#[derive(Debug, PartialEq)]
pub(super) enum Cities {
    All,
    /// Sorted, each once.
    Listed(Box<[Arc<str>]>),
    Inside(Bounds),
}

/// The cities and rows of a subscription, and the units that they are written in; equal where subscriptions get the same bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Selection {
    pub(super) cities: Cities,
    pub(super) rows: Rows,
    pub(super) units: OutputUnits,
    /// Of cities and rows: a token continues a subscription in any units.
    digest: u64,
}

// Bounds are never NaN.
impl Eq for Selection {}

impl Hash for Selection {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.digest);
    }
}

impl Selection {
    pub(super) fn new(cities: Cities, rows: Rows, units: OutputUnits) -> Selection {
        let mut digest = Xxh3::new();
        digest.update(&[rows as u8]);
        match &cities {
            Cities::All => digest.update(b"all"),
            // No key holds a line break.
            Cities::Listed(keys) => keys.iter().for_each(|key| {
                digest.update(b"\n");
                digest.update(key.as_bytes());
            }),
            Cities::Inside(Bounds { west, south, east, north }) => {
                digest.update(b"box");
                for side in [west, south, east, north] {
                    digest.update(&side.to_le_bytes());
                }
            }
        }
        Selection { cities, rows, units, digest: digest.digest() }
    }

    pub(super) fn select(&self) -> Select<'_> {
        match &self.cities {
            Cities::All => Select::All,
            Cities::Listed(keys) => Select::Listed(keys),
            Cities::Inside(bounds) => Select::Inside(*bounds),
        }
    }

    pub(super) fn listed(&self) -> &[Arc<str>] {
        match &self.cities {
            Cities::Listed(keys) => keys,
            _ => &[],
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }
}

/// How far ahead of this process another one can be: any further, and all of the cluster would have ended.
const MAX_AHEAD_MS: u64 = 60_000;

/// Makes and reads tokens: generation, epoch and subscription, as base64url.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    generation: u64,
}

/// Why a token does not continue a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    Malformed,
    Generation,
    Subscription,
    Expired,
    Behind,
}

impl Reset {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Reset::Malformed => "malformed",
            Reset::Generation => "generation",
            Reset::Subscription => "subscription",
            Reset::Expired => "expired",
            Reset::Behind => "behind",
        }
    }
}

impl Tokens {
    pub(super) fn new(generation: &str) -> Tokens {
        Tokens { generation: xxh3_64(generation.as_bytes()) }
    }

    pub(super) fn push(&self, out: &mut Vec<u8>, epoch: u64, subscription: u64) {
        let mut bytes = [0; 24];
        for (part, word) in bytes.chunks_exact_mut(8).zip([self.generation, epoch, subscription]) {
            part.copy_from_slice(&word.to_be_bytes());
        }
        let mut text = [0; 32];
        // 24 bytes are 32 characters.
        let _ = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        out.extend_from_slice(&text);
    }

    /// The epoch after which a subscription goes on: it may be somewhat after `as_of`, where another process has given the token.
    pub(super) fn epoch(&self, token: &str, subscription: u64, as_of: u64) -> Result<u64, Reset> {
        let bytes = Some(token).filter(|token| token.len() == 32);
        let bytes = bytes.and_then(|token| URL_SAFE_NO_PAD.decode(token).ok()).ok_or(Reset::Malformed)?;
        let word = |at: usize| bytes[at..at + 8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        match (word(0), word(8), word(16)) {
            (generation, ..) if generation != self.generation => Err(Reset::Generation),
            (_, _, digest) if digest != subscription => Err(Reset::Subscription),
            (_, epoch, _) if epoch > as_of + MAX_AHEAD_MS => Err(Reset::Malformed),
            (_, epoch, _) => Ok(epoch),
        }
    }
}
