//! A loop without anything between: what copying such rows costs by itself.

use bytes::Bytes;
use futures_util::SinkExt;
use swelter::internals::model::EncodedBatch;
use tokio_postgres::Client;

use crate::database::Database;

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: &[u8] = &[0xff, 0xff];
/// Tables, by the code of the table whose rows they get, and their statements.
const TABLES: [(u8, &str); 3] = [(1, "bare_reading"), (2, "bare_arrival"), (3, "bare_now")];

/// What a transaction copies: the data of each table.
pub struct BareTransaction(Vec<(&'static str, Bytes)>);

impl BareTransaction {
    /// The new rows of the batches. Changed readings are not copied, all current rows are.
    pub fn of_batches(batches: &[EncodedBatch]) -> BareTransaction {
        let table = |(code, table): (u8, &'static str)| {
            let mut data = HEADER.to_vec();
            for record in batches.iter().flat_map(EncodedBatch::records) {
                let is_new = record.topic & 0x40 == 0 || code == 3;
                if record.topic & 0x3f == code && is_new {
                    data.extend_from_slice(record.value.unwrap_or_default());
                }
            }
            data.extend_from_slice(TRAILER);
            (table, Bytes::from(data))
        };
        BareTransaction(TABLES.map(table).into())
    }

    pub async fn write(&self, client: &Client) {
        client.batch_execute("begin").await.unwrap();
        for (table, data) in &self.0 {
            let sink = client.copy_in::<_, Bytes>(&format!("copy {table} from stdin (format binary)")).await;
            let mut sink = Box::pin(sink.unwrap());
            sink.send(data.clone()).await.unwrap();
            sink.as_mut().finish().await.unwrap();
        }
        client.batch_execute("update shard set epoch = coalesce(epoch, 0) + 1; commit").await.unwrap();
    }
}

/// Tables with the indexes of ours, without partitions, and one without an index for current rows.
pub fn make_tables(database: &Database) {
    let tables = "create table bare_reading (like reading including all); \
                  create table bare_arrival (like arrival including all); create table bare_now (like now)";
    database.runtime.block_on(database.client.batch_execute(tables)).unwrap();
}
