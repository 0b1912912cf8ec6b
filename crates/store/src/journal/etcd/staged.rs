//! Changes of any size as one change, within the bounds of a transaction of etcd.
//!
//! The parts of a change that is too large for one transaction are first written under `staged/ID/`, where
//! nobody reads them. One transaction then makes the change happen: it has the comparisons, and writes
//! `applying`. Then each part is applied, exactly once, in order, by whoever needs the rows: the leader
//! before its next batch, or the next leader before it reads. A leader that ends in the middle leaves all of
//! a change or nothing.

use std::time::Duration;

use prost::Message as _;

use super::client::{Client, change, equals, get, is_missing, nested, put, value};
use super::messages::{Compare, RequestOp, TxnRequest};
use crate::journal::engine::Unanswered;
use crate::journal::keys::{KeyChange, numbered};

/// The most operations of an inner transaction, and the most inner transactions of one transaction. etcd
/// counts the operations of a transaction together with those of the transactions around it, and allows 128
/// (`--max-txn-ops`).
const OPERATIONS: usize = 64;
const INNER: usize = 56;

/// The most bytes of a part. etcd allows requests of 1.5 MiB (`--max-request-bytes`).
const BYTES: usize = 1 << 20;

/// The key that says which change has happened, and how many of its parts are applied.
const APPLYING: &str = "applying";

/// A change that has happened.
pub(super) struct Written {
    pub(super) revision: i64,
    /// Whether it has parts that are not applied yet.
    pub(super) is_staged: bool,
}

/// Parts that have room in one transaction each, as inner transactions. At least one.
pub(super) fn parts(changes: Vec<KeyChange>) -> Vec<Vec<RequestOp>> {
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    let (mut inner, mut bytes) = (Vec::new(), 0);
    for operation in changes.into_iter().map(change) {
        let length = operation.encoded_len() + 16;
        let is_full = bytes + length > BYTES;
        if is_full || inner.len() == OPERATIONS {
            part.push(nested(std::mem::take(&mut inner)));
        }
        if is_full || part.len() == INNER {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += length;
        inner.push(operation);
    }
    part.push(nested(inner));
    parts.push(part);
    parts
}

/// Makes the change happen if all of `compare` holds, and no other change is being applied; `None` if not.
/// Parts that are staged again under the same `id` and comparisons have to be the same.
pub(super) fn write(
    client: &mut Client,
    id: &str,
    mut compare: Vec<Compare>,
    mut head: Vec<RequestOp>,
    mut parts: Vec<Vec<RequestOp>>,
    within: Duration,
) -> Result<Option<Written>, Unanswered> {
    compare.push(is_missing(client.key(APPLYING)));
    let is_staged = parts.len() > 1;
    if is_staged {
        head.push(put(client.key(APPLYING), format!("{id} 0 {}", parts.len()).into()));
        for (number, success) in (0..).zip(parts.drain(..)) {
            let part = TxnRequest { success, ..TxnRequest::default() }.encode_to_vec();
            let staged = vec![put(part_key(client, id, number), part)];
            if !client.transact(compare.clone(), staged, vec![], within)?.succeeded {
                return Ok(None);
            }
        }
    }
    head.extend(parts.into_iter().flatten());
    let answer = client.transact(compare, head, vec![], within)?;
    let revision = answer.header.unwrap_or_default().revision;
    Ok(answer.succeeded.then_some(Written { revision, is_staged }))
}

/// Applies what is left of a change that has happened.
pub(super) fn finish(client: &mut Client, within: Duration) -> Result<(), Unanswered> {
    while apply_next(client, within)? {}
    Ok(())
}

/// Applies the next part of the change that is being applied. Returns whether there is one.
pub(super) fn apply_next(client: &mut Client, within: Duration) -> Result<bool, Unanswered> {
    let read = client.read(vec![get(client.key(APPLYING))], within)?;
    let Some(state) = value(&read, 0) else { return Ok(false) };
    let damaged = || Unanswered::Failed("a change in parts cannot be read".to_owned());
    let (id, done, count) = applying(state).ok_or_else(damaged)?;
    // Where this comparison fails, another server has applied the part.
    let is_next = vec![equals(client.key(APPLYING), state.into())];
    let read = vec![get(part_key(client, id, done))];
    let part = client.transact(is_next.clone(), read, vec![], within)?;
    if !part.succeeded {
        return Ok(true);
    }
    let part = value(&part, 0).and_then(|part| TxnRequest::decode(part).ok());
    let mut operations = part.ok_or_else(damaged)?.success;
    if done + 1 < count {
        let next = format!("{id} {} {count}", done + 1);
        operations.push(put(client.key(APPLYING), next.into()));
    } else {
        let all = ["staged/", APPLYING].map(|name| KeyChange::remove_all(client.key(name)));
        operations.extend(all.map(change));
    }
    client.transact(is_next, operations, vec![], within).map(|_| true)
}

/// The id of the change that is being applied, and how many of how many parts are applied.
fn applying(state: &[u8]) -> Option<(&str, u64, u64)> {
    let mut fields = std::str::from_utf8(state).ok()?.split(' ');
    Some((fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn part_key(client: &Client, id: &str, number: u64) -> Vec<u8> {
    numbered(&client.key(&format!("staged/{id}/")), number)
}
