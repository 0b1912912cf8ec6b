//! A store file of format 1, as the first version wrote it, row by row.

use lease::{BorrowId, KeptAlive, LeaseId, Reason, Request, Terms};
use redb::{Database, ReadableDatabase as _, TableDefinition};
use store::testing::{Disk, ManualClock, entry, note, set};
use store::{Error, LeaseFilter, Options, Order, Recovered, Store};

const META: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("meta");
const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");
const LINGERING: TableDefinition<'_, u64, u64> = TableDefinition::new("lingering");
const REMEMBERED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("remembered");
const USAGE: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("usage");

/// The keys of a session, its worker, a lingering lease and a revoked one.
const KEYS: [&str; 4] = [
    "AAAAAAAAAAEAAAAARBDQZtEFY1SauL1J",
    "AAAAAAAAAAIAAAAB_daVYSWEEkMm8W-L",
    "AAAAAAAAAAMAAAACGWNk-2LYQYLCcTM4",
    "AAAAAAAAAAQAAAAD_81JU-nvyn5erXz_",
];

const LEASE_ROWS: [&str; 3] = [
    "120c4410d066d10563549ab8bd492209696e64657865722d312a03743172320461636d653a056b65792d314207\
     74726163652d61490000b49376e2fa185080b09dc2df015a1b09776655443322110011ffeeddccbbaa99881\
     9f6fa0cf2dde24886",
    "0801120cfdd695612584124326f16f8b18012209696e64657865722d312a03743277320461636d65420774726\
     163652d61490000b49376e2fa185080b09dc2df01",
    "0802120c196364fb62d84182c27133382a037431723206676c6f626578490000b49376e2fa185080b09dc2df01",
];

const REMEMBERED_ROWS: [(&str, &str); 2] = [
    (
        "18fae302467d70000000000000000004",
        "0a1b09040000000000000010031a0cffcd4953e9efca7e5ead7cff2801",
    ),
    (
        "18fae302467d7000ff696e64657865722d31ff7265706f72742d31",
        "12150a09696e64657865722d3112087265706f72742d31",
    ),
];

const USAGE_ROW: &str = "08ed9d96011100000000000004401884be01210000000000000440";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().map(|digit| digit.to_digit(16).unwrap()).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

fn database(disk: &Disk) -> Database {
    redb::Builder::new().create_with_backend(disk.clone()).unwrap()
}

/// A store of format 1; `lease_rows` are kept from the first serial number on.
fn first_format(lease_rows: &[Vec<u8>]) -> Disk {
    let disk = Disk::default();
    let database = database(&disk);
    let transaction = database.begin_write().unwrap();
    {
        let mut leases = transaction.open_table(LEASES).unwrap();
        for (serial, row) in (1..).zip(lease_rows) {
            leases.insert(serial, row.as_slice()).unwrap();
        }
        let mut lingering = transaction.open_table(LINGERING).unwrap();
        lingering.insert(3, 1_800_000_600_000_000_000).unwrap();
        let mut remembered = transaction.open_table(REMEMBERED).unwrap();
        for (key, row) in REMEMBERED_ROWS {
            remembered.insert(bytes(key).as_slice(), bytes(row).as_slice()).unwrap();
        }
        let mut usage = transaction.open_table(USAGE).unwrap();
        usage.insert(("acme", "egress_bytes"), bytes(USAGE_ROW).as_slice()).unwrap();
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert("format", (1, 0)).unwrap();
        meta.insert("stamp", (1_800_000_000_000_000_000, 5)).unwrap();
    }
    transaction.commit().unwrap();
    disk
}

fn format_of(disk: &Disk) -> u64 {
    let database = database(disk);
    let meta = database.begin_read().unwrap().open_table(META).unwrap();
    meta.get("format").unwrap().unwrap().value().0
}

fn open(disk: &Disk) -> Result<Store, Error> {
    let options = Options { clock: ManualClock::new(), ..Options::default() };
    Recovered::on_backend(disk.clone(), options)?.resume()
}

fn rows() -> Vec<Vec<u8>> {
    LEASE_ROWS.map(bytes).to_vec()
}

#[tokio::test]
async fn a_store_of_the_first_format_keeps_everything_and_accepts_new_records() {
    let disk = first_format(&rows());
    let store = open(&disk).unwrap();
    assert_eq!(store.audit(None, 10), []);
    assert!(store.overrides().is_empty());
    store.record(Some(set("acme", 40)), entry("set the limit of acme")).await.unwrap();
    store.close().unwrap();
    assert_eq!(format_of(&disk), 3);

    let store = open(&disk).unwrap();
    assert_eq!(store.overrides().len(), 1);
    assert_eq!(note(&store.audit(None, 10)), ["set the limit of acme"]);
    let ids = KEYS.map(|key| key.parse::<LeaseId>().unwrap());
    let keep = |at: usize, caller| store.keep_alive(ids[at], caller);
    for at in [0, 1] {
        assert!(matches!(keep(at, Some("indexer-1")).await, Ok(KeptAlive::Extended { .. })));
    }
    assert_eq!(keep(2, None).await, Ok(KeptAlive::Failed));
    assert_eq!(keep(3, None).await, Ok(KeptAlive::Revoked(Reason::Operator.into())));
    let page = store.leases(LeaseFilter::default(), Order::Oldest, None, 10).await.unwrap();
    let lingers: Vec<bool> = page.leases.iter().map(|lease| lease.lingers).collect();
    assert_eq!(lingers, [false, false, true]);
    assert_eq!(page.leases[0].workers, 1);
    let used = store.used("acme").await.unwrap();
    assert_eq!((&*used[0].0, used[0].1.month.1), ("egress_bytes", 2.5));
    // The borrow id is known, and serial numbers go on.
    let request = Request::session("t1r", "acme")
        .trace("trace-a")
        .api_key("key-1")
        .indexer("indexer-1")
        .borrow_id(BorrowId(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff));
    let again = store.borrow(&request, &Terms::default()).await.unwrap();
    assert_eq!(again.grant.id, ids[0]);
    again.delivery.complete();
    let fresh = store.borrow(&Request::session("t1r", "acme"), &Terms::default()).await.unwrap();
    assert_eq!(fresh.grant.id.serial(), 5);
}

#[test]
fn the_new_format_is_durable_before_the_store_starts() {
    let disk = first_format(&rows());
    drop(Recovered::on_backend(disk.clone(), Options::default()).unwrap());
    let crashed = disk.after_power_loss(|_| false);
    assert_eq!(format_of(&crashed), 3);
    assert_eq!(Recovered::on_backend(crashed, Options::default()).unwrap().leases(), 3);
}

#[test]
fn a_store_of_the_first_format_that_cannot_be_read_stays_as_it_was() {
    let mut damaged = rows();
    damaged[1] = b"no row".to_vec();
    let disk = first_format(&damaged);
    let before = disk.bytes();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(disk.bytes() == before, "it was changed");
    assert_eq!(format_of(&disk), 1);
}
