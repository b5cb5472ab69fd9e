//! Posted readings of other processes, which go to the log of process 0.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Desk, locked};
use crate::cluster::SendError;
use crate::cluster::message::{AppendedParts, Message};
use crate::model::{
    AppendCallback, AppendError, AppendReport, AppendedRange, Appender, NewRecord, Reason, Refusal,
};

/// Appends that wait for their acknowledgement.
#[derive(Default)]
pub(super) struct Appends {
    waiting: HashMap<u64, (AppendCallback, usize, usize)>,
    records: usize,
    bytes: usize,
}

/// Appends to the log of process 0.
pub(super) struct Forward {
    desk: Arc<Desk>,
    records: usize,
    bytes: usize,
}

impl Forward {
    /// Not more records and bytes than this wait for their acknowledgement.
    pub fn new(desk: Arc<Desk>, records: usize, bytes: usize) -> Forward {
        Forward { desk, records, bytes }
    }
}

impl Appender for Forward {
    fn append(&self, records: Vec<NewRecord>, done: AppendCallback) {
        let bytes = records.iter().map(|record| record.bytes.len()).sum::<usize>();
        let count = records.len();
        let mut appends = locked(&self.desk.appends);
        let fits = appends.records + count <= self.records && appends.bytes + bytes <= self.bytes;
        let links = self.desk.links.get().filter(|_| fits || appends.waiting.is_empty());
        let Some(links) = links else {
            drop(appends);
            return done(Err(AppendError::Busy));
        };
        let call = self.desk.calls.fetch_add(1, Ordering::Relaxed);
        // Under the lock, so that what one connection appends keeps its order.
        let unsent = match links.try_send(0, &Message::Append { call, records }) {
            Ok(()) => {
                appends.records += count;
                appends.bytes += bytes;
                appends.waiting.insert(call, (done, count, bytes));
                return;
            }
            Err(unsent) => unsent,
        };
        drop(appends);
        done(Err(match unsent {
            SendError::Full => AppendError::Busy,
            SendError::TooLong => AppendError::Failed(unsent.to_string().into()),
        }));
    }
}

impl Desk {
    pub(super) fn append(self: &Arc<Desk>, process: usize, call: u64, records: Vec<NewRecord>) {
        let Some(appender) = self.appender.get() else {
            let result = Err(AppendError::Busy);
            return self.send(process, &Message::Appended { call, result });
        };
        let desk = Arc::clone(self);
        appender.append(
            records,
            Box::new(move |result| {
                desk.send(process, &Message::Appended { call, result: result.map(parts_of) });
            }),
        );
    }

    pub(super) fn appended(&self, call: u64, result: Result<AppendedParts, AppendError>) {
        let mut appends = locked(&self.appends);
        let Some((done, records, bytes)) = appends.waiting.remove(&call) else { return };
        appends.records -= records;
        appends.bytes -= bytes;
        drop(appends);
        done(result.map(report_of));
    }
}

fn parts_of(report: AppendReport) -> AppendedParts {
    let AppendReport { ranges: positions, refusals: refused } = report;
    let place = |AppendedRange { partition, first, end }| (partition, first, end);
    let number =
        |reason: Reason| Reason::ALL.iter().position(|other| *other == reason).unwrap_or_default() as u8;
    let part = |(index, refusal): (u32, Refusal)| (index, number(refusal.reason), refusal.detail);
    AppendedParts {
        positions: positions.into_iter().map(place).collect(),
        refused: refused.into_iter().map(part).collect(),
    }
}

fn report_of(parts: AppendedParts) -> AppendReport {
    let AppendedParts { positions, refused } = parts;
    let place = |(partition, first, end)| AppendedRange { partition, first, end };
    let reason = |number: u8| Reason::ALL.get(usize::from(number)).copied().unwrap_or(Reason::NotDecodable);
    let refusal = |(index, number, detail): (u32, u8, String)| (index, Refusal::new(reason(number), detail));
    AppendReport {
        ranges: positions.into_iter().map(place).collect(),
        refusals: refused.into_iter().map(refusal).collect(),
    }
}
