//! A fleet of servers in virtual time, from one seed (spec §8).
//!
//! Three servers, four clients and one database run in one thread. Every event, from a timer to the arrival
//! of a message, is one step. The seed decides all of it, so the same seed gives the same events again.
//! `scripts/simulate` runs it; the tests of this crate make a million steps.
//!
//! # What is real, and what is a model
//!
//! Real: `lease::Ledger` and `lease::StoreClock`, `store::fleet::Leadership` and `store::fleet::Fence`, and
//! the core of the client library (`tgm_session::simulation`) with its keep-alives, batches over one
//! stream, borrow ids, returns, and the end of a lease after 95 % of its TTL.
//!
//! A model, as close to the code as possible:
//!
//! - `server/leading.rs` is the thread of the leadership and what it does to the store
//!   (`store/src/leading.rs`, `store/src/shared/terms.rs`, `rewriting.rs`).
//! - `server/committing.rs` is the journal thread with its committer (`store/src/shared/committing.rs`,
//!   `store/src/journal/postgres/committer.rs`).
//! - `server/applying.rs` is what the store does for a call (`store/src/shared/granting.rs`,
//!   `keeping_alive.rs`).
//! - `server/forwarding.rs` is spec §8 point 6: a standby passes a call to the leader that it knows, with
//!   the id and the epoch of the term. It holds a call for at most 2 s, sends it again only if it was certainly not
//!   applied or has a borrow id, and reports what became of a grant.
//! - `client.rs` has the tries of a borrow, as `client/src/tgm/borrow.rs`.
//! - `database.rs` has the two rows, the journal, row locks with time-outs, and a history that a promotion
//!   cuts off.
//!
//! # What goes wrong
//!
//! Messages are lost or late, to the database by up to 12 s. A transaction holds its locks for up to 15 s:
//! its server was stopped in the middle, or a replica does not confirm. Servers and clients are stopped for
//! up to 12 and 24 s, and killed. A server is told to stop or to hand over, to a successor that may be gone.
//! A ledger does not answer. A server is cut off from the database, or from everybody else. The database is
//! away, or a stale replica is promoted: its history goes back by up to 40 commits, those of the leadership
//! row included. All clocks run at rates of their own, up to 2 % too fast or too slow.
//!
//! Now and then the faults pause. When they have paused for 35 s, a batch has to be committed within
//! leader-ttl and 2 s more.
//!
//! # What is held after each step
//!
//! - No scope is above its limit, counting the leases that clients believe to hold (spec §8 point 4). A client
//!   believes in a worker no longer than in its session, and in no lease that its server denies to know.
//! - No client learns of a grant or a return that was not committed. No leader denies a lease that was
//!   acknowledged and has not ended, and none reads a lease whose return was acknowledged.
//! - A lease is gone one second after its end, by the time that its leader was active.
//! - At most one server may act as the leader. One leader id commits in one epoch; only the leader of the
//!   row commits, batch after batch, and never an attempt that was resolved.
//! - No serial number is acknowledged for two leases.
//! - A server takes over only a row that it has seen unchanged for leader-ttl and a tenth, without a failure
//!   or a gap, or one that was released to it. A leader that is valid and finds that the database has lost
//!   its writes does not give up. No leader misses writes that are not lost.
//!
//! # What the database loses
//!
//! The model knows which commits a promotion cuts off, and what a rewriting brings back or replaces. A
//! lease is excused from the checks while the database lacks its grant, or its end, and only then. A rewriting may
//! replace what another leader acknowledged only if the database had lost the takeover of the one that
//! rewrites. A leader whose takeover is lost may go on for one leader-ttl beside another one: what clients
//! believe after its answers is not counted. All else is checked, and when a leader writes its journal again, the
//! checks hold for its leases again.
//!
//! # Mutations
//!
//! `scripts/simulate --mutations` breaks one check after the other in a copy of the workspace. Each is
//! noticed with the seed of this table, in at most 100,000 steps. That of `commit-without-attempt` does no harm, because a
//! batch is sent again unchanged; the promise of spec §8 point 1 is broken all the same.
//!
//! | mutation | seed | what is broken |
//! | --- | --- | --- |
//! | `takeover-without-renewals` | 1 | a takeover does not compare the renewals |
//! | `takeover-without-sequence` | 6 | a takeover does not compare the sequence |
//! | `takeover-without-identity` | 6 | a takeover compares neither epoch, leader ids nor address |
//! | `commit-without-leader` | 73 | a commit does not compare the leader id |
//! | `commit-without-sequence` | 26 | a commit does not compare the sequence |
//! | `commit-without-attempt` | 2 | a commit does not compare the attempt |
//! | `no-own-validity` | 4 | a leader acts however long ago it renewed |
//! | `validity-from-the-answer` | 9 | validity counts from the answer to a renewal, and not from its sending |
//! | `no-renewals` | 1 | a renewal leaves the row as it is |
//! | `no-tenth` | 3 | a standby waits for leader-ttl without a tenth more |
//! | `half-ttl-at-takeover` | 1 | a new leader gives half a TTL |
//! | `expiry-while-lapsed` | 182 | leases expire while the leadership has lapsed |
//! | `no-full-ttl-after-a-lapse` | 1 | a leader that regains its row gives no full TTL |
//! | `failed-reads-count-on` | 4 | a failed read does not start the count anew |
//! | `gaps-count-on` | 1 | a gap between answers does not start the count anew |
//! | `acts-after-release` | 1 | a leader acts on after it has sent a release |
//! | `sequence-at-the-answer` | 2 | an answer is judged by the batch committed when it arrives, not when the request was sent |
//! | `writes-lost-unnoticed` | 5 | a lower sequence is not noticed |
//! | `lost-takeover-deposes` | 6 | a valid leader that finds a lower epoch gives up |
//! | `stale-release-is-taken-over` | 8 | a release that the database was set back to is taken over at once |
//! | `rewritten-after-a-lapse` | 163 | a leader that has lapsed writes over a row that others have used |
//! | `rewritten-without-content` | 2 | a rewriting leaves the journal empty |
//! | `rewritten-without-comparing` | 24 | a rewriting compares no row |
//! | `answers-before-the-commit` | 1 | answers do not wait for the commit |
//! | `unknown-commits-are-dropped` | 1 | a commit that did not happen counts as committed |
//! | `belief-of-a-whole-ttl` | 1 | a client believes for its whole TTL |
//!
//! Not every comparison is needed for safety. These are made because a row is compared as a whole, and the
//! script checks that the first ten seeds show no fault without them:
//!
//! | mutation | why it is no fault |
//! | --- | --- |
//! | `takeover-without-epoch` | each epoch that follows another one has another leader id, which is compared too |
//! | `takeover-without-leader` | the leader id of the journal row changes together with it, and is compared too |
//! | `takeover-without-leader_ttl` | leader-ttl changes only in a takeover, together with the leader id |
//! | `takeover-without-address` | the address changes only in a takeover, together with the leader id |
//! | `takeover-without-released` | a row that was released meanwhile may be taken over all the more, and a release is never taken back |
//! | `takeover-without-successor` | the successor changes only in a release, and whoever takes over an expired row needs no permission |
//! | `takeover-without-journal-leader` | both rows change their leader id in one transaction, and that of the leadership row is compared |
//! | `takeover-without-attempt` | a takeover gives the journal row another leader id, after which no attempt of an earlier leader can commit |
//! | `no-numbers-left-out` | a serial number is repeated only if the database has lost its first use, or nobody heard of that |
//! | `blocker-stays` | the transactions of the model end by themselves within 15 s, so this costs only time |

mod client;
mod clock;
mod database;
mod event;
mod message;
mod server;
mod sim;
mod tables;
mod truth;
mod world;

pub use truth::Counts;
pub use world::{Violation, tell};

/// So many steps are made with one seed. More steps go on with the next seed.
pub const STEPS_PER_SEED: u64 = 100_000;

/// Makes `steps` steps in the world of one seed.
///
/// # Errors
///
/// The first promise that is broken.
pub fn run(seed: u64, steps: u64) -> Result<Counts, Box<Violation>> {
    world::World::new(seed).run(steps)
}
