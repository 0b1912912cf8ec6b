//! What `scripts/bench` runs: a reference server, load generators, the pool of the client
//! library and the ledger alone.
//!
//! Every figure is shown beside a reference measured in the same run on the same machine, because a
//! figure alone says more about the machine than about the server. `docs/benchmarks.md` explains
//! each table.

pub mod database;
pub mod disk;
pub mod fill;
pub mod fleet;
pub mod gateway;
pub mod h2load;
pub mod http;
pub mod ids;
pub mod ledger;
pub mod pairs;
pub mod pool;
pub mod process;
pub mod raw;
pub mod reference;
pub mod report;
pub mod run;
