//! Connections that have not said all yet: how many there may be, and who makes way when there are more.
//!
//! Whoever has not proved that it knows the secret can be made to go. Of those the next one is taken from the network that has the most of
//! them, at random: strangers at a few addresses make way for each other and not for processes at others, and of strangers
//! and processes at one address a process, which needs a few milliseconds and tries again until `cluster.connect_time`, gets through
//! before long, in whatever order and however fast strangers come.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections that may say who they are at once.
pub(super) const MAX_GUESTS: usize = 64;
/// The same, with those that were told to go and whose threads have not noticed.
const MAX_THREADS: usize = 2 * MAX_GUESTS;
/// Bits of an IPv6 address that are a network's: whoever has one address has all of it.
const NETWORK_BITS: u32 = 64;

/// A connection that has not said all yet.
pub(super) struct Guest {
    /// As long as it has not: then it is somebody else's, or closed.
    socket: Mutex<Option<TcpStream>>,
    network: u128,
    pub proven: AtomicBool,
    /// It was told to go.
    leaves: AtomicBool,
}

impl Guest {
    pub fn new(socket: TcpStream, from: IpAddr) -> Guest {
        let socket = Mutex::new(Some(socket));
        Guest {
            socket,
            network: network(from),
            proven: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
        }
    }

    /// It has said all, or is refused: nobody shuts its socket down any more.
    pub fn finish(&self) {
        drop(self.socket().take());
    }

    fn socket(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn can_be_told_to_go(&self) -> bool {
        !self.proven.load(Ordering::Relaxed) && !self.leaves.load(Ordering::Relaxed)
    }

    fn tell_to_go(&self) {
        self.leaves.store(true, Ordering::Relaxed);
        if let Some(socket) = &*self.socket() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => {
            u128::from(address) >> (u128::BITS - NETWORK_BITS) << (u128::BITS - NETWORK_BITS)
        }
    }
}

/// All that are there at once.
#[derive(Default)]
pub(super) struct Guests(Vec<Arc<Guest>>);

impl Guests {
    /// Whether there is room for the one that comes; one that has proved nothing is told to go where there is not.
    pub fn make_room(&mut self) -> bool {
        self.0.retain(|guest| guest.socket().is_some());
        let staying = self.0.iter().filter(|guest| !guest.leaves.load(Ordering::Relaxed)).count();
        if self.0.len() >= MAX_THREADS || staying < MAX_GUESTS {
            return self.0.len() < MAX_THREADS;
        }
        let next = self.next_to_go(RandomState::new().hash_one(0));
        next.inspect(|guest| guest.tell_to_go()).is_some()
    }

    pub fn add(&mut self, guest: Arc<Guest>) {
        self.0.push(guest);
    }

    /// Any of the network that has the most.
    fn next_to_go(&self, random: u64) -> Option<&Guest> {
        let strangers: Vec<&Guest> =
            self.0.iter().map(AsRef::as_ref).filter(|guest| guest.can_be_told_to_go()).collect();
        let of = |network: u128| strangers.iter().filter(move |guest| guest.network == network);
        let most = strangers.iter().map(|guest| guest.network).max_by_key(|network| of(*network).count())?;
        let count = of(most).count() as u64;
        of(most).nth((random % count) as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn guest(from: &str) -> (Arc<Guest>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(Guest::new(socket, from.parse().unwrap())), listener.accept().unwrap().0)
    }

    #[test]
    fn guests_of_the_network_that_has_the_most_make_way() {
        let mut guests = Guests::default();
        let mut ends = Vec::new();
        let mut add = |guests: &mut Guests, from: &str| {
            let (guest, end) = guest(from);
            guests.add(Arc::clone(&guest));
            ends.push(end);
            guest
        };
        // Addresses of one network of IPv6 are one, and so are the two ways to write one of IPv4.
        let proven = add(&mut guests, "2001:db8::1");
        proven.proven.store(true, Ordering::Relaxed);
        let alone = [add(&mut guests, "10.0.0.1"), add(&mut guests, "2001:db8:1::1")];
        for host in 2..20 {
            add(&mut guests, &format!("2001:db8::{host}"));
        }
        for _ in 0..10 {
            add(&mut guests, "10.0.0.2");
            add(&mut guests, "::ffff:10.0.0.2");
        }
        let sizes = |guests: &Guests| {
            let of = |network: u128| {
                guests.0.iter().filter(move |guest| guest.network == network && guest.can_be_told_to_go())
            };
            let of = |address: &str| of(network(address.parse().unwrap())).count();
            [of("2001:db8::7"), of("10.0.0.2")]
        };
        assert_eq!(sizes(&guests), [18, 20]);
        for random in 0..34 {
            guests.next_to_go(random * 7).unwrap().tell_to_go();
        }
        assert_eq!(sizes(&guests), [2, 2]);
        assert!(alone.iter().all(|guest| guest.can_be_told_to_go()), "those that were alone are still there");
        while let Some(guest) = guests.next_to_go(3) {
            guest.tell_to_go();
        }
        assert!(!proven.leaves.load(Ordering::Relaxed), "who has proved itself stays");
    }

    #[test]
    fn guests_are_bounded_with_those_that_leave() {
        let mut guests = Guests::default();
        let mut ends = Vec::new();
        let mut added = Vec::new();
        while guests.make_room() {
            let (guest, end) = guest("127.0.0.1");
            guests.add(Arc::clone(&guest));
            added.push(guest);
            ends.push(end);
        }
        assert_eq!(added.len(), MAX_THREADS);
        added.iter().find(|guest| guest.leaves.load(Ordering::Relaxed)).unwrap().finish();
        assert!(guests.make_room(), "once one has left");
    }
}
