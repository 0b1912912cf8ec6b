//! Measures what a lease costs in memory, with an allocator that counts.

use benches::ledger;
use cap::Cap;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

/// Leases of the run, unless the first argument says otherwise.
const LEASES: usize = 1_000_000;

fn main() -> anyhow::Result<()> {
    let leases = std::env::args().nth(1).map_or(Ok(LEASES), |count| count.parse())?;
    let bytes = ledger::memory(leases, || ALLOCATOR.allocated())?;
    println!("{}", serde_json::to_string(&bytes)?);
    Ok(())
}
