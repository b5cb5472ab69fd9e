//! The cities and rows that a subscription selects, and the tokens that resume it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::model::OutputUnits;
use crate::serve::view::{CityFilter, GeoBounds};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscriptionKind {
    Latest,
    Window,
}

#[derive(Debug, PartialEq)]
pub(super) enum CitySelection {
    All,
    /// Sorted, each once.
    Listed(Box<[Arc<str>]>),
    Inside(GeoBounds),
}

/// The cities and rows of a subscription, and the units of its messages. Subscriptions of equal
/// selection get the same bytes.
#[derive(Debug, PartialEq)]
pub(super) struct Selection {
    pub(super) cities: CitySelection,
    pub(super) kind: SubscriptionKind,
    pub(super) units: OutputUnits,
    /// A digest of cities and rows, without units: a token resumes a subscription in any units.
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
    pub(super) fn new(cities: CitySelection, kind: SubscriptionKind, units: OutputUnits) -> Selection {
        let mut digest = Xxh3::new();
        digest.update(&[kind as u8]);
        match &cities {
            CitySelection::All => digest.update(b"all"),
            // No key contains a line break.
            CitySelection::Listed(keys) => keys.iter().for_each(|key| {
                digest.update(b"\n");
                digest.update(key.as_bytes());
            }),
            CitySelection::Inside(GeoBounds { west, south, east, north }) => {
                digest.update(b"box");
                for side in [west, south, east, north] {
                    digest.update(&side.to_le_bytes());
                }
            }
        }
        Selection { cities, kind, units, digest: digest.digest() }
    }

    pub(super) fn city_filter(&self) -> CityFilter<'_> {
        match &self.cities {
            CitySelection::All => CityFilter::All,
            CitySelection::Listed(keys) => CityFilter::Listed(keys),
            CitySelection::Inside(bounds) => CityFilter::Inside(*bounds),
        }
    }

    pub(super) fn listed_cities(&self) -> &[Arc<str>] {
        match &self.cities {
            CitySelection::Listed(keys) => keys,
            _ => &[],
        }
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest
    }
}

/// How far the epoch of another process can be ahead of this one, in ms: a process that falls
/// further behind ends the whole cluster.
const MAX_AHEAD_MS: u64 = 60_000;

/// Makes and reads resume tokens: digest of the generation, epoch, and digest of the selection, as
/// base64url.
#[derive(Clone, Copy)]
pub(super) struct ResumeTokens {
    generation: u64,
}

/// Why a token does not resume a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResetReason {
    Malformed,
    Generation,
    Subscription,
    Expired,
    ClientBehind,
}

impl ResetReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ResetReason::Malformed => "malformed",
            ResetReason::Generation => "generation",
            ResetReason::Subscription => "subscription",
            ResetReason::Expired => "expired",
            ResetReason::ClientBehind => "behind",
        }
    }
}

impl ResumeTokens {
    pub(super) fn new(generation: &str) -> ResumeTokens {
        ResumeTokens { generation: xxh3_64(generation.as_bytes()) }
    }

    pub(super) fn push_token(&self, out: &mut Vec<u8>, epoch: u64, subscription: u64) {
        let mut bytes = [0; 24];
        for (part, word) in bytes.chunks_exact_mut(8).zip([self.generation, epoch, subscription]) {
            part.copy_from_slice(&word.to_be_bytes());
        }
        let mut text = [0; 32];
        // 24 bytes are 32 characters.
        let _ = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        out.extend_from_slice(&text);
    }

    /// The epoch after which the subscription continues. It may be a little after `as_of` if
    /// another process has made the token.
    pub(super) fn resume_epoch(
        &self,
        token: &str,
        subscription: u64,
        as_of: u64,
    ) -> Result<u64, ResetReason> {
        let bytes = Some(token).filter(|token| token.len() == 32);
        let bytes =
            bytes.and_then(|token| URL_SAFE_NO_PAD.decode(token).ok()).ok_or(ResetReason::Malformed)?;
        let word = |at: usize| bytes[at..at + 8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
        match (word(0), word(8), word(16)) {
            (generation, ..) if generation != self.generation => Err(ResetReason::Generation),
            (_, _, digest) if digest != subscription => Err(ResetReason::Subscription),
            (_, epoch, _) if epoch > as_of + MAX_AHEAD_MS => Err(ResetReason::Malformed),
            (_, epoch, _) => Ok(epoch),
        }
    }
}
