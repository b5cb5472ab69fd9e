//! A TCP proxy that can cut or stall its connections, or record them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;

const STATE_OPEN: u8 = 0;
/// Connections stay open, and no bytes are forwarded.
const STATE_STALLED: u8 = 1;
/// Connections are closed as they come.
const STATE_CUT: u8 = 2;
const STATE_ENDED: u8 = 3;

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The bytes of one direction of a connection.
type CapturedBytes = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct ProxyState {
    state: AtomicU8,
    /// Both directions of every connection, if they are recorded.
    records: Option<Mutex<Vec<CapturedBytes>>>,
    /// Both ends of every connection.
    streams: Mutex<Vec<TcpStream>>,
}

impl ProxyState {
    fn state(&self) -> u8 {
        self.state.load(Ordering::SeqCst)
    }

    fn close_all(&self) {
        for stream in self.streams.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Leads to one port. Its threads end with it.
pub struct Proxy {
    pub port: u16,
    shared: Arc<ProxyState>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// To a port of this host, which need not be open yet.
    pub fn to(target: u16) -> Proxy {
        Proxy::start(target, ProxyState::default())
    }

    /// A proxy that records all bytes.
    pub fn recording(target: u16) -> Proxy {
        Proxy::start(target, ProxyState { records: Some(Mutex::default()), ..ProxyState::default() })
    }

    /// By connection and direction.
    pub fn captured_bytes(&self) -> Vec<Vec<u8>> {
        let records = self.shared.records.as_ref().unwrap().lock();
        records.iter().map(|record| record.lock().clone()).collect()
    }

    fn start(target: u16, shared: ProxyState) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(shared);
        let of_acceptor = Arc::clone(&shared);
        let acceptor = Some(thread::spawn(move || accept(&listener, target, &of_acceptor)));
        Proxy { port, shared, acceptor }
    }

    fn set_state(&self, state: u8) {
        self.shared.state.store(state, Ordering::SeqCst);
        if state == STATE_CUT || state == STATE_ENDED {
            self.shared.close_all();
        }
    }

    pub fn cut_connections(&self) {
        self.set_state(STATE_CUT);
    }

    pub fn stall_connections(&self) {
        self.set_state(STATE_STALLED);
    }

    pub fn resume_connections(&self) {
        self.set_state(STATE_OPEN);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set_state(STATE_ENDED);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        // A connection that was accepted meanwhile.
        self.shared.close_all();
    }
}

fn accept(listener: &TcpListener, target: u16, shared: &Arc<ProxyState>) {
    while shared.state() != STATE_ENDED {
        let Ok((from, _)) = listener.accept() else {
            thread::sleep(POLL_INTERVAL);
            continue;
        };
        if shared.state() == STATE_CUT {
            continue;
        }
        // If the port is closed the connection ends, as it would without a proxy.
        if let Ok(to) = TcpStream::connect(("127.0.0.1", target)) {
            let _ = connect_streams(&from, &to, shared);
        }
    }
}

fn connect_streams(from: &TcpStream, to: &TcpStream, shared: &Arc<ProxyState>) -> std::io::Result<()> {
    for stream in [from, to] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(POLL_INTERVAL))?;
        shared.streams.lock().push(stream.try_clone()?);
    }
    for (from, to) in [(from, to), (to, from)] {
        let (from, to, shared) = (from.try_clone()?, to.try_clone()?, Arc::clone(shared));
        let record = shared.records.as_ref().map(|records| {
            let record = CapturedBytes::default();
            records.lock().push(Arc::clone(&record));
            record
        });
        thread::spawn(move || copy_stream(from, to, &shared, record.as_ref()));
    }
    Ok(())
}

/// Until its source ends.
fn copy_stream(mut from: TcpStream, mut to: TcpStream, shared: &ProxyState, record: Option<&CapturedBytes>) {
    let mut buffer = [0; 16 * 1024];
    let wait = || {
        while shared.state() == STATE_STALLED {
            thread::sleep(POLL_INTERVAL);
        }
    };
    loop {
        wait();
        match from.read(&mut buffer) {
            // The other direction stays open.
            Ok(0) => return drop(to.shutdown(Shutdown::Write)),
            Ok(length) => {
                if let Some(record) = record {
                    record.lock().extend_from_slice(&buffer[..length]);
                }
                wait();
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[test]
fn proxy_stalls_and_cuts_connections() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::to(server.local_addr().unwrap().port());
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
        stream.set_read_timeout(Some(crate::support::WAIT_TIMEOUT)).unwrap();
        stream
    };
    let mut client = connect();
    let mut served = server.accept().unwrap().0;
    let mut byte = [0];
    client.write_all(b"a").unwrap();
    served.read_exact(&mut byte).unwrap();
    served.write_all(b"b").unwrap();
    client.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"b");

    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut byte).unwrap(), 0, "one direction has ended");

    proxy.stall_connections();
    client.write_all(b"c").unwrap();
    served.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(served.read(&mut byte).is_err(), "nothing goes through");
    proxy.resume_connections();
    served.set_read_timeout(Some(crate::support::WAIT_TIMEOUT)).unwrap();
    served.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"c");

    proxy.cut_connections();
    assert_eq!(client.read(&mut byte).unwrap_or(0), 0, "it has ended");
    assert_eq!(served.read(&mut byte).unwrap_or(0), 0, "it has ended");
    assert_eq!(connect().read(&mut byte).unwrap_or(0), 0, "no new one");
    proxy.resume_connections();
    let mut client = connect();
    let mut served = server.accept().unwrap().0;
    client.write_all(b"d").unwrap();
    served.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"d");
}
