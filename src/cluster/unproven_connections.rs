//! Limits the unproven connections, and chooses which one to close if there are too many.
//!
//! A connection that has not proved that it knows the secret may be closed. The one to close is
//! chosen at random from the network that has the most of them. Strangers at a few addresses
//! therefore displace each other and not processes at other addresses. If strangers and a process
//! share an address, the process, which needs a few milliseconds and retries until
//! `cluster.connect_time`, soon gets through, in whatever order and however fast strangers connect.

use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::model::random_u64;

/// Connections that may shake hands at the same time.
pub(super) const MAX_UNPROVEN: usize = 64;
/// The same, including closed ones whose threads have not exited yet.
const MAX_THREADS: usize = 2 * MAX_UNPROVEN;
/// Bits of an IPv6 address that name a network: a host that has one of its addresses has all.
const NETWORK_BITS: u32 = 64;

/// A connection that has not proved which process it is.
pub(super) struct UnprovenConnection {
    /// The socket; none after the proof, when another owner has it, or after it was closed.
    socket: Mutex<Option<TcpStream>>,
    network: u128,
    pub proven: AtomicBool,
    /// It was closed for a newer connection.
    leaves: AtomicBool,
}

impl UnprovenConnection {
    pub fn new(socket: TcpStream, from: IpAddr) -> UnprovenConnection {
        let socket = Mutex::new(Some(socket));
        UnprovenConnection {
            socket,
            network: network(from),
            proven: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
        }
    }

    /// The connection was admitted or refused; its socket is not shut down any more.
    pub fn finish(&self) {
        drop(self.socket().take());
    }

    fn socket(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.socket.lock()
    }

    fn is_evictable(&self) -> bool {
        !self.proven.load(Ordering::Relaxed) && !self.leaves.load(Ordering::Relaxed)
    }

    fn evict(&self) {
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

/// All unproven connections.
#[derive(Default)]
pub(super) struct UnprovenConnections(Vec<Arc<UnprovenConnection>>);

impl UnprovenConnections {
    /// Returns whether another connection may be accepted; if not, closes an unproven one.
    pub fn evict_if_full(&mut self) -> bool {
        self.0.retain(|connection| connection.socket().is_some());
        let staying = self.0.iter().filter(|connection| !connection.leaves.load(Ordering::Relaxed)).count();
        if self.0.len() >= MAX_THREADS || staying < MAX_UNPROVEN {
            return self.0.len() < MAX_THREADS;
        }
        let next = self.choose_eviction(random_u64());
        next.inspect(|connection| connection.evict()).is_some()
    }

    pub fn add(&mut self, connection: Arc<UnprovenConnection>) {
        self.0.push(connection);
    }

    /// A random connection of the network that has the most.
    fn choose_eviction(&self, random: u64) -> Option<&UnprovenConnection> {
        let evictable: Vec<&UnprovenConnection> =
            self.0.iter().map(AsRef::as_ref).filter(|connection| connection.is_evictable()).collect();
        let of = |network: u128| evictable.iter().filter(move |connection| connection.network == network);
        let most = evictable
            .iter()
            .map(|connection| connection.network)
            .max_by_key(|network| of(*network).count())?;
        let count = of(most).count() as u64;
        of(most).nth((random % count) as usize).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn guest(from: &str) -> (Arc<UnprovenConnection>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (Arc::new(UnprovenConnection::new(socket, from.parse().unwrap())), listener.accept().unwrap().0)
    }

    #[test]
    fn full_table_evicts_from_largest_network() {
        let mut guests = UnprovenConnections::default();
        let mut ends = Vec::new();
        let mut add = |guests: &mut UnprovenConnections, from: &str| {
            let (guest, end) = guest(from);
            guests.add(Arc::clone(&guest));
            ends.push(end);
            guest
        };
        // Addresses of one IPv6 network count as one, and so do both notations of an IPv4 address.
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
        let sizes = |guests: &UnprovenConnections| {
            let of = |network: u128| {
                guests.0.iter().filter(move |guest| guest.network == network && guest.is_evictable())
            };
            let of = |address: &str| of(network(address.parse().unwrap())).count();
            [of("2001:db8::7"), of("10.0.0.2")]
        };
        assert_eq!(sizes(&guests), [18, 20]);
        for random in 0..34 {
            guests.choose_eviction(random * 7).unwrap().evict();
        }
        assert_eq!(sizes(&guests), [2, 2]);
        assert!(alone.iter().all(|guest| guest.is_evictable()), "those that were alone are still there");
        while let Some(guest) = guests.choose_eviction(3) {
            guest.evict();
        }
        assert!(!proven.leaves.load(Ordering::Relaxed), "who has proved itself stays");
    }

    #[test]
    fn closing_connections_count_against_limit() {
        let mut guests = UnprovenConnections::default();
        let mut ends = Vec::new();
        let mut added = Vec::new();
        while guests.evict_if_full() {
            let (guest, end) = guest("127.0.0.1");
            guests.add(Arc::clone(&guest));
            added.push(guest);
            ends.push(end);
        }
        assert_eq!(added.len(), MAX_THREADS);
        added.iter().find(|guest| guest.leaves.load(Ordering::Relaxed)).unwrap().finish();
        assert!(guests.evict_if_full(), "once one has left");
    }
}
