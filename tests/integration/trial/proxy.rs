//! A TCP proxy that can cut off what goes through it, or keep a copy.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const OPEN: u8 = 0;
/// Connections stay, and nothing goes through.
const STALLED: u8 = 1;
/// Connections are closed as they come.
const CUT: u8 = 2;
const ENDED: u8 = 3;

const TICK: Duration = Duration::from_millis(10);

/// What has gone one way through a connection.
type Record = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
struct Shared {
    state: AtomicU8,
    /// Both ways of every connection, where a copy is kept.
    records: Option<Mutex<Vec<Record>>>,
    /// Both ends of every connection.
    streams: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn state(&self) -> u8 {
        self.state.load(Ordering::SeqCst)
    }

    fn close_all(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Leads to one port. Its threads end with it.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// To a port of this host, where nobody has to listen yet.
    pub fn to(target: u16) -> Proxy {
        Proxy::start(target, Shared::default())
    }

    /// One that keeps all that goes through it.
    pub fn recording(target: u16) -> Proxy {
        Proxy::start(target, Shared { records: Some(Mutex::default()), ..Shared::default() })
    }

    /// By connection and way.
    pub fn records(&self) -> Vec<Vec<u8>> {
        let records = self.shared.records.as_ref().unwrap().lock().unwrap();
        records.iter().map(|record| record.lock().unwrap().clone()).collect()
    }

    fn start(target: u16, shared: Shared) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(shared);
        let of_acceptor = Arc::clone(&shared);
        let acceptor = Some(thread::spawn(move || accept(&listener, target, &of_acceptor)));
        Proxy { port, shared, acceptor }
    }

    fn set(&self, state: u8) {
        self.shared.state.store(state, Ordering::SeqCst);
        if state == CUT || state == ENDED {
            self.shared.close_all();
        }
    }

    pub fn cut(&self) {
        self.set(CUT);
    }

    pub fn stall(&self) {
        self.set(STALLED);
    }

    pub fn resume(&self) {
        self.set(OPEN);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(ENDED);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        // What was accepted meanwhile.
        self.shared.close_all();
    }
}

fn accept(listener: &TcpListener, target: u16, shared: &Arc<Shared>) {
    while shared.state() != ENDED {
        let Ok((from, _)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        if shared.state() == CUT {
            continue;
        }
        // Where nobody listens the connection ends, as it would without a proxy.
        if let Ok(to) = TcpStream::connect(("127.0.0.1", target)) {
            let _ = join(&from, &to, shared);
        }
    }
}

fn join(from: &TcpStream, to: &TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    for stream in [from, to] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        shared.streams.lock().unwrap().push(stream.try_clone()?);
    }
    for (from, to) in [(from, to), (to, from)] {
        let (from, to, shared) = (from.try_clone()?, to.try_clone()?, Arc::clone(shared));
        let record = shared.records.as_ref().map(|records| {
            let record = Record::default();
            records.lock().unwrap().push(Arc::clone(&record));
            record
        });
        thread::spawn(move || pump(from, to, &shared, record.as_ref()));
    }
    Ok(())
}

/// Until its source ends.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, record: Option<&Record>) {
    let mut buffer = [0; 16 * 1024];
    let wait = || {
        while shared.state() == STALLED {
            thread::sleep(TICK);
        }
    };
    loop {
        wait();
        match from.read(&mut buffer) {
            // The other direction goes on.
            Ok(0) => return drop(to.shutdown(Shutdown::Write)),
            Ok(length) => {
                if let Some(record) = record {
                    record.lock().unwrap().extend_from_slice(&buffer[..length]);
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
fn what_goes_through_can_be_held_and_cut() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::to(server.local_addr().unwrap().port());
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", proxy.port)).unwrap();
        stream.set_read_timeout(Some(crate::process::DEADLINE)).unwrap();
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

    proxy.stall();
    client.write_all(b"c").unwrap();
    served.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(served.read(&mut byte).is_err(), "nothing goes through");
    proxy.resume();
    served.set_read_timeout(Some(crate::process::DEADLINE)).unwrap();
    served.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"c");

    proxy.cut();
    assert_eq!(client.read(&mut byte).unwrap_or(0), 0, "it has ended");
    assert_eq!(served.read(&mut byte).unwrap_or(0), 0, "it has ended");
    assert_eq!(connect().read(&mut byte).unwrap_or(0), 0, "no new one");
    proxy.resume();
    let mut client = connect();
    let mut served = server.accept().unwrap().0;
    client.write_all(b"d").unwrap();
    served.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"d");
}
