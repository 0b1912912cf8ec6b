use std::fs;

use lease::{BorrowId, LeaseId, Used, WallTime};
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};

use super::*;

/// Larger than a new file, so that a file is compacted only if its tables had many rows.
const WORTH: u64 = 512 << 10;

/// The rows that fill one table, and the rows that empty it again.
struct Case {
    table: &'static str,
    full: (Vec<Change>, Vec<OperatorRecord>),
    empty: (Vec<Change>, Vec<OperatorRecord>),
}

const NUMBER: u64 = 3_000;

/// A text of 200 bytes.
fn long(number: u64) -> Box<str> {
    format!("{number:0>200}").into()
}

/// A journal without rows that writes to its file.
fn open(path: &Path) -> FileJournal {
    let mut journal = FileJournal::open(path, false).unwrap();
    let ledger = lease::Ledger::new(lease::Config::default());
    journal.load(&mut Restored { ledger, records: Default::default() }).unwrap();
    journal
}

fn later() -> Timestamp {
    Timestamp::from_nanos(1_000)
}

fn usage() -> Case {
    let used = |number| Change::Used {
        organization: long(number),
        metric: "m".into(),
        used: Used::default(),
    };
    let unused = |number| Change::Unused { organization: long(number), metric: "m".into() };
    Case {
        table: "usage",
        full: ((0..NUMBER).map(used).collect(), Vec::new()),
        empty: ((0..NUMBER).map(unused).collect(), Vec::new()),
    }
}

/// Rows with long keys and short values.
fn overrides() -> Case {
    let change = |number, value| {
        let key = OverrideKey { subject: Subject::Organization, id: long(number), service: None };
        OperatorRecord::Override(OverrideChange { key, value })
    };
    let set = || Override { value: 1, set_at: WallTime::default(), note: "".into() };
    Case {
        table: "overrides",
        full: (Vec::new(), (0..NUMBER).map(|number| change(number, Some(set()))).collect()),
        empty: (Vec::new(), (0..NUMBER).map(|number| change(number, None)).collect()),
    }
}

/// Rows that contain only numbers.
fn lingering() -> Case {
    let id = |number| LeaseId::new(0, number, [0; 12]);
    let lingers = |number| Change::Lingers { id: id(number), until: later() };
    let end = lease::End::Lingered;
    Case {
        table: "lingering",
        full: ((0..20 * NUMBER).map(lingers).collect(), Vec::new()),
        empty: (
            (0..20 * NUMBER).map(|number| Change::Ended { id: id(number), end }).collect(),
            Vec::new(),
        ),
    }
}

/// Remembered facts, which are forgotten when their time is over.
fn remembered() -> Case {
    let ended = |number| Change::BorrowEnded {
        indexer: Some(long(0)),
        id: BorrowId(number),
        fingerprint: None,
        until: later(),
    };
    Case {
        table: "remembered",
        full: ((0..u128::from(NUMBER)).map(ended).collect(), Vec::new()),
        empty: (Vec::new(), Vec::new()),
    }
}

#[test]
fn a_file_full_of_rows_is_not_compacted_and_an_emptied_file_is() {
    for Case { table, full, empty } in [usage(), overrides(), lingering(), remembered()] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.redb");
        let size = || fs::metadata(&path).unwrap().len();
        let mut journal = open(&path);
        journal.compact_if_mostly_empty(WORTH).unwrap();
        journal.commit(&Rows::collect(full.0, full.1), Stamp::default()).unwrap();
        let filled = size();
        assert!(filled > WORTH, "{table}: {filled}");
        journal.compact_if_mostly_empty(WORTH).unwrap();
        assert_eq!(size(), filled, "{table}: nothing to be gained");

        let emptied = Rows::collect(empty.0, empty.1);
        journal.commit(&emptied, Stamp { time: later(), next_serial: 1 }).unwrap();
        // One commit forgets a bounded number of facts whose time is over, so several are needed.
        for time in 1..5 {
            let time = later() + std::time::Duration::from_nanos(time);
            journal.commit(&Rows::default(), Stamp { time, next_serial: 1 }).unwrap();
        }
        journal.compact_if_mostly_empty(WORTH).unwrap();
        assert!(size() < filled / 2, "{table}: {} of {filled} are left", size());
        assert!(journal.bytes_in_rows().unwrap() < 1_000, "{table}");
    }
}

#[test]
fn audit_entries_count_among_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = open(&folder.path().join("s.redb"));
    let before = journal.bytes_in_rows().unwrap();
    let entry = AuditEntry {
        number: 1,
        at: WallTime::default(),
        from: long(1),
        action: long(2),
        note: long(3),
        ended: 0,
    };
    let rows = Rows::collect(Vec::new(), vec![OperatorRecord::Audit(entry)]);
    journal.commit(&rows, Stamp::default()).unwrap();
    assert!(journal.bytes_in_rows().unwrap() - before > 600);
}
