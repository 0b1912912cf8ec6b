//! An attack with services that the policy does not name.

use wire::framing::frame as message;

use crate::calls::borrow_request;
use crate::connection::Reads;
use crate::load::{BORROW, granted, keyed, spread};
use crate::stage::Stage;

/// A generous limit for the number of such services in which one indexer has leases at a time.
const MOST: usize = 1_000;

/// Borrows a lease of each of many services that have no entry in the policy.
pub(super) async fn invented(stage: &mut Stage) -> anyhow::Result<()> {
    let services = stage.pick(5_000, 50_000);
    stage.leases_after = None;
    stage.begin()?;
    let (link, block) = (stage.link(), keyed(BORROW));
    let done = spread(&link, Reads::Answers, 8, services, 100, move |number| {
        let service = format!("invented-{number}");
        (block.clone(), message(&borrow_request(&service, "inventor", "")))
    });
    let done = done.await?;
    stage.end().await?;
    let granted = granted(&done.answers).len();
    stage.note(format!("{granted} of {services} invented services had a lease granted"));
    if granted > MOST {
        stage.fault(format!(
            "one indexer holds leases of {granted} services that the policy does not name, and may \
             of {MOST} at most"
        ));
    }
    Ok(())
}
