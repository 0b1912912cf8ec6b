//! A million steps in the normal test run, and the promise that a seed can be replayed.

use simulation::{Counts, STEPS_PER_SEED};

const SEEDS: u64 = 10;

#[test]
fn a_million_steps_break_no_promise() {
    let mut total = Counts::default();
    for seed in 1..=SEEDS {
        match simulation::run(seed, STEPS_PER_SEED) {
            Ok(counts) => total.add(counts),
            Err(violation) => panic!("{violation:#?}"),
        }
    }
    // Everything that can go wrong did.
    let Counts { grants, returns, kept_alive, terms, forwarded, .. } = total;
    let Counts { promotions, rewritten, grants_lost, regained, blocked, resolved, .. } = total;
    let common = [grants, returns, kept_alive, forwarded];
    let rare = [terms, promotions, rewritten, grants_lost, regained, blocked, resolved];
    assert!(common.iter().all(|count| *count > 1_000), "{total:?}");
    assert!(rare.iter().all(|count| *count > 10), "{total:?}");
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let first = simulation::tell(7, 30_000);
    assert!(first.len() > 10 && first == simulation::tell(7, 30_000));
    assert_ne!(first, simulation::tell(8, 30_000));
}
