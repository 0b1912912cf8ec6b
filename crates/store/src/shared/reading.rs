//! Listing leases, pools and usage part by part; the lock is released after each part.

use lease::{LeaseNumber, Ledger, ListedLease, PoolCount};

use super::Shared;
use crate::{LeaseFilter, LeasePage, MAX_PAGE, Order, Unavailable, UsageCount};

/// The most leases that are copied while the lock is held once.
const COPY_AT_ONCE: usize = 250;

/// Selects the first leases in one of the two orders.
struct Selection {
    order: Order,
    limit: usize,
    /// How many were offered.
    offered: usize,
    /// The leases that may be among the first, with their rank: up to twice as many as asked for.
    /// Serial numbers are unique, so the rank alone decides every comparison.
    kept: Vec<(u64, LeaseNumber)>,
    /// The highest rank that may still be among the first.
    bound: u64,
}

impl Selection {
    fn new(order: Order, limit: usize) -> Self {
        Self { order, limit, offered: 0, kept: Vec::with_capacity(2 * limit), bound: u64::MAX }
    }

    /// A number that rises in the order.
    const fn rank(&self, number: LeaseNumber) -> u64 {
        match self.order {
            Order::Newest => !number.serial(),
            Order::Oldest => number.serial(),
        }
    }

    fn offer(&mut self, number: LeaseNumber) {
        let rank = self.rank(number);
        self.offered += 1;
        if self.limit == 0 || rank > self.bound {
            return;
        }
        self.kept.push((rank, number));
        // Half of them are dropped at a time. A heap would take longer for each lease.
        if self.kept.len() == 2 * self.limit {
            let (_, &mut (last, _), _) = self.kept.select_nth_unstable(self.limit - 1);
            self.kept.truncate(self.limit);
            self.bound = last;
        }
    }

    /// Returns the first leases in order, and whether there are more.
    fn finish(mut self) -> (Vec<LeaseNumber>, bool) {
        self.kept.sort_unstable();
        self.kept.truncate(self.limit);
        let left_out = self.offered > self.kept.len();
        (self.kept.into_iter().map(|(_, number)| number).collect(), left_out)
    }
}

impl Shared {
    /// Reads part after part. `read` returns the content of one part, or `None` after the last one.
    /// `collect` runs without the lock.
    fn walk<R>(
        &self,
        read: impl Fn(&Ledger, u32) -> Option<R>,
        mut collect: impl FnMut(R),
    ) -> Result<(), Unavailable> {
        self.tick();
        for part in 0.. {
            match self.read(|ledger| read(ledger, part))? {
                Some(found) => collect(found),
                None => break,
            }
        }
        Ok(())
    }

    pub(crate) fn leases(
        &self,
        filter: &LeaseFilter,
        order: Order,
        after: Option<LeaseNumber>,
        limit: usize,
    ) -> Result<LeasePage, Unavailable> {
        let mut selection = Selection::new(order, limit.min(MAX_PAGE));
        let mut total = 0;
        let read = |ledger: &Ledger, part| {
            let matching = ledger.listed(part)?.filter(|lease| filter.matches(lease));
            Some(matching.map(|lease| lease.number).collect::<Vec<_>>())
        };
        self.walk(read, |matching| {
            total += matching.len() as u64;
            for number in matching {
                if after.is_none_or(|after| selection.rank(number) > selection.rank(after)) {
                    selection.offer(number);
                }
            }
        })?;
        let (numbers, left_out) = selection.finish();
        let mut leases = Vec::with_capacity(numbers.len());
        for some in numbers.chunks(COPY_AT_ONCE) {
            leases.extend(self.read(|ledger| {
                let listed = some.iter().filter_map(|&number| ledger.find(number));
                listed.map(ListedLease::from).collect::<Vec<_>>()
            })?);
        }
        let next = numbers.last().copied().filter(|_| left_out);
        Ok(LeasePage { total, leases, next })
    }

    pub(crate) fn find(&self, number: LeaseNumber) -> Result<Option<ListedLease>, Unavailable> {
        self.tick();
        self.read(|ledger| ledger.find(number).map(ListedLease::from))
    }

    pub(crate) fn pools(&self) -> Result<Vec<PoolCount>, Unavailable> {
        let mut pools = Vec::new();
        let read = |ledger: &Ledger, part| {
            Some(ledger.pools(part)?.map(PoolCount::from).collect::<Vec<_>>())
        };
        self.walk(read, |part| pools.extend(part))?;
        pools.sort_by(|a, b| (&a.organization, &a.service).cmp(&(&b.organization, &b.service)));
        keep_latest(&mut pools, |a, b| a.organization == b.organization && a.service == b.service);
        Ok(pools)
    }

    pub(crate) fn usage(&self) -> Result<Vec<UsageCount>, Unavailable> {
        let mut counts = Vec::new();
        let read = |ledger: &Ledger, part| {
            let usage = ledger.usage(part)?.map(|(organization, metric, used)| UsageCount {
                organization: organization.into(),
                metric: metric.into(),
                used,
            });
            Some(usage.collect::<Vec<_>>())
        };
        self.walk(read, |part| counts.extend(part))?;
        counts.sort_by(|a, b| (&a.organization, &a.metric).cmp(&(&b.organization, &b.metric)));
        keep_latest(&mut counts, |a, b| a.organization == b.organization && a.metric == b.metric);
        Ok(counts)
    }
}

/// Removes duplicates from a sorted list and keeps the last of each: an entry that was removed and
/// added again during the walk may have been read at both places.
fn keep_latest<T>(sorted: &mut Vec<T>, same: impl Fn(&T, &T) -> bool) {
    sorted.dedup_by(|later, earlier| {
        let same = same(later, earlier);
        if same {
            std::mem::swap(later, earlier);
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use lease::LeaseId;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_repeated_items_the_last_one_is_kept() {
        let mut sorted = vec![("a", 1), ("b", 2), ("b", 3), ("b", 4), ("c", 5), ("c", 6)];
        keep_latest(&mut sorted, |a, b| a.0 == b.0);
        assert_eq!(sorted, [("a", 1), ("b", 4), ("c", 6)]);
    }

    proptest! {
        #[test]
        fn a_selection_is_the_start_of_everything_in_order(
            serials in prop::collection::btree_set(0..1_000_u64, 0..60),
            shuffle: u64,
            limit in 0..20_usize,
        ) {
            let mut numbers: Vec<LeaseNumber> =
                serials.iter().map(|&serial| LeaseId::new(0, serial, [0; 12]).number()).collect();
            for order in [Order::Newest, Order::Oldest] {
                let mut selection = Selection::new(order, limit);
                numbers.sort_by_key(|number| number.serial().wrapping_mul(shuffle | 1));
                numbers.iter().for_each(|&number| selection.offer(number));
                numbers.sort_by_key(|&number| selection.rank(number));
                let first = numbers.iter().copied().take(limit).collect::<Vec<_>>();
                prop_assert_eq!(selection.finish(), (first, numbers.len() > limit));
            }
        }
    }
}
