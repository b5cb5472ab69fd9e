//! Ports of this host that are free.

use std::net::TcpListener;

/// So many ports that are free now.
pub fn free_ports(count: usize) -> Vec<u16> {
    // Held until all are taken, so that they differ.
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// The first of so many free ports in a row.
pub fn consecutive_free_ports(count: u16) -> u16 {
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).ok();
    loop {
        let lowest = free(0).unwrap();
        let first = lowest.local_addr().unwrap().port();
        let all = (1..count).map(|next| first.checked_add(next).and_then(free)).collect::<Option<Vec<_>>>();
        if all.is_some() {
            return first;
        }
    }
}
