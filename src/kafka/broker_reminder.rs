//! Brings a client back that has forgotten all its brokers.
//!
//! librdkafka forgets each broker that is not in a metadata response. A broker that its controller
//! takes for gone may list none, not even itself; then the client has no broker left and stands
//! still for good (<https://github.com/confluentinc/librdkafka/issues/5301>). A [`BrokerReminder`]
//! adds the configured brokers again.

use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::client::Client;

use super::{KafkaCluster, native};

/// How long a client may get no response before its brokers are added again. The interval doubles
/// each time, up to the longest: adding known brokers does no harm, but librdkafka keeps every
/// entry.
const FIRST_REMINDER_AFTER: Duration = Duration::from_secs(5);
const MAX_REMINDER_INTERVAL: Duration = Duration::from_secs(300);
/// How long the cluster may take to respond to a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Since when a client has had no response, and when its brokers are added again.
pub struct BrokerReminder {
    cluster: KafkaCluster,
    silent_since: Instant,
    /// How long the silence may last.
    remind_after: Duration,
}

impl BrokerReminder {
    /// A reminder whose silence begins now.
    pub fn for_cluster(cluster: &KafkaCluster) -> BrokerReminder {
        BrokerReminder {
            cluster: cluster.clone(),
            silent_since: Instant::now(),
            remind_after: FIRST_REMINDER_AFTER,
        }
    }

    /// Notes that a response has come.
    pub fn record_response(&mut self) {
        self.silent_since = Instant::now();
        self.remind_after = FIRST_REMINDER_AFTER;
    }

    /// Adds the brokers if a response has been due for too long.
    pub fn remind_if_silent<C: ClientContext>(&mut self, client: &Client<C>) {
        if self.silent_since.elapsed() >= self.remind_after {
            native::add_brokers(client, &self.cluster.brokers);
            self.silent_since = Instant::now();
            self.remind_after = (self.remind_after * 2).min(MAX_REMINDER_INTERVAL);
        }
    }

    /// Requests the topic's metadata if nothing has come for too long, since there may be nothing
    /// to come, and adds the brokers if the cluster does not respond. False if it does not.
    pub fn probe_if_silent<C: ClientContext>(&mut self, client: &Client<C>, topic: &str) -> bool {
        if self.silent_since.elapsed() < self.remind_after {
            return true;
        }
        let has_responded = client.fetch_metadata(Some(topic), PROBE_TIMEOUT).is_ok();
        if has_responded {
            self.record_response();
        } else {
            self.remind_if_silent(client);
        }
        has_responded
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use rdkafka::producer::{BaseProducer, Producer};

    use super::*;

    const API_VERSIONS: i16 = 18;
    const METADATA: i16 = 3;
    /// So many that the client forgets the broker before it has read them all.
    const PARTITIONS: i32 = 2_000;

    /// A broker that answers requests about a cluster of which it is the only member.
    struct Broker {
        port: u16,
        /// The next metadata response lists no broker.
        is_gone: AtomicBool,
    }

    impl Broker {
        fn start() -> Arc<Broker> {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let broker = Arc::new(Broker { port, is_gone: false.into() });
            let serving = Arc::clone(&broker);
            thread::spawn(move || {
                for connection in listener.incoming() {
                    let serving = Arc::clone(&serving);
                    thread::spawn(move || serving.serve(connection.unwrap()));
                }
            });
            broker
        }

        fn serve(&self, mut connection: TcpStream) -> io::Result<()> {
            loop {
                let mut size = [0; 4];
                connection.read_exact(&mut size)?;
                let mut request = vec![0; u32::from_be_bytes(size) as usize];
                connection.read_exact(&mut request)?;
                let [k0, k1, v0, v1, correlation @ ..] = *request.first_chunk::<8>().unwrap();
                let is_gone = match i16::from_be_bytes([k0, k1]) {
                    METADATA => self.is_gone.swap(false, Ordering::SeqCst),
                    _ => false,
                };
                let response = match (i16::from_be_bytes([k0, k1]), i16::from_be_bytes([v0, v1])) {
                    (METADATA, _) => self.metadata(is_gone),
                    // In the format of version 0, which the client uses from then on.
                    (_, version) => versions(if version == 0 { 0 } else { 35 }),
                };
                let size = u32::try_from(4 + response.len()).unwrap().to_be_bytes();
                connection.write_all(&[&size, &correlation[..], &response].concat())?;
            }
        }

        /// A response of version 1: brokers, the controller, topics.
        fn metadata(&self, is_gone: bool) -> Vec<u8> {
            let mut response = vec![0, 0, 0, u8::from(!is_gone)];
            if !is_gone {
                response.extend(1i32.to_be_bytes());
                response.extend([&9i16.to_be_bytes(), &b"127.0.0.1"[..]].concat());
                response.extend(i32::from(self.port).to_be_bytes());
                response.extend((-1i16).to_be_bytes());
            }
            let leader: i32 = if is_gone { -1 } else { 1 };
            response.extend([leader, 1].map(i32::to_be_bytes).concat());
            // No error, its name, not an internal one.
            response.extend([&[0, 0, 0, 5], &b"topic"[..], &[0], &PARTITIONS.to_be_bytes()].concat());
            for partition in 0..PARTITIONS {
                // No error, its number, its leader, no replicas.
                response.extend([0, 0]);
                response.extend([partition, leader, 0, 0].map(i32::to_be_bytes).concat());
            }
            response
        }
    }

    fn versions(error: i16) -> Vec<u8> {
        let supported = [[METADATA, 0, 1], [API_VERSIONS, 0, 0]];
        let mut response = error.to_be_bytes().to_vec();
        response.extend(2i32.to_be_bytes());
        response.extend(supported.into_iter().flatten().flat_map(i16::to_be_bytes));
        response
    }

    #[test]
    fn client_that_lost_its_brokers_finds_them_again() {
        let broker = Broker::start();
        let cluster = KafkaCluster { brokers: format!("127.0.0.1:{}", broker.port), properties: [].into() };
        let producer: BaseProducer = cluster.client_config().create().unwrap();
        let client = producer.client();
        let finds = |wait| client.fetch_metadata(Some("topic"), wait).map(|found| found.brokers().len());
        let deadline = Instant::now() + Duration::from_secs(60);
        while finds(Duration::from_secs(10)) != Ok(1) {
            assert!(Instant::now() < deadline, "the client does not find the broker");
        }
        // Several responses may be needed: it depends on which of the client's threads is first.
        while finds(Duration::from_secs(5)).is_ok() {
            assert!(
                Instant::now() < deadline,
                "the client finds brokers by itself: a reminder is no longer needed"
            );
            broker.is_gone.store(true, Ordering::SeqCst);
        }
        broker.is_gone.store(false, Ordering::SeqCst);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut reminder = BrokerReminder::for_cluster(&cluster);
        while finds(Duration::from_secs(2)) != Ok(1) {
            assert!(Instant::now() < deadline, "the client does not find the broker again");
            reminder.probe_if_silent(client, "topic");
        }
    }
}
