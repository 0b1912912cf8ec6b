use std::collections::HashMap;
use std::future::pending;

use parking_lot::Mutex;

use super::*;
use crate::host::Shown;
use crate::unreached::Unreached;

/// How a server at an address behaves.
#[derive(Clone, Copy, Debug)]
enum Habit {
    /// An attempt to connect gets no answer.
    Silent,
    /// It refuses the connection.
    Refuses,
    /// It accepts the connection and then sends nothing.
    Hangs,
    /// It accepts the connection after the first time, and answers after the second.
    Answers(Duration, Duration),
}

/// What the resolver says of a host.
#[derive(Clone, Copy, Debug)]
enum Name {
    /// Its addresses, after this time.
    Known(Duration),
    /// Nothing.
    Silent,
    /// There is no such host.
    Unknown,
}

/// Servers at the addresses of one or more hosts, and when each address was tried.
struct Net {
    names: Vec<Name>,
    habits: Vec<(usize, SocketAddr, Habit)>,
    start: Instant,
    tried: Mutex<HashMap<SocketAddr, Duration>>,
}

const AT_ONCE: Habit = Habit::Answers(Duration::ZERO, Duration::ZERO);
const KNOWN: Name = Name::Known(Duration::ZERO);
const DEADLINE: Duration = Duration::from_secs(3);

/// An IPv6 address or an IPv4 address.
fn address(six: bool, number: u8) -> SocketAddr {
    let host = if six { format!("[2001:db8::{number}]") } else { format!("192.0.2.{number}") };
    format!("{host}:443").parse().unwrap()
}

impl Net {
    /// Servers at the addresses of one host.
    fn new(habits: impl IntoIterator<Item = Habit>) -> Self {
        Self::of_hosts([(KNOWN, habits.into_iter().collect())])
    }

    /// Servers at the addresses of these hosts. The addresses have one numbering.
    fn of_hosts(hosts: impl IntoIterator<Item = (Name, Vec<Habit>)>) -> Self {
        let (names, lists): (Vec<_>, Vec<_>) = hosts.into_iter().unzip();
        let lists = lists.into_iter().enumerate();
        let habits =
            lists.flat_map(|(host, list)| list.into_iter().map(move |habit| (host, habit)));
        let habits = (0..).zip(habits);
        let habits = habits.map(|(number, (host, habit))| (host, address(false, number), habit));
        let (habits, tried) = (habits.collect(), Mutex::default());
        Self { names, habits, start: Instant::now(), tried }
    }

    /// Returns the number of the address that was reached, and how long that took.
    async fn race(&self) -> Result<(u8, Duration), Unreached> {
        self.race_from(0).await
    }

    /// The same, beginning with this host.
    async fn race_from(&self, first: usize) -> Result<(u8, Duration), Unreached> {
        let resolve = async |host: usize| {
            match self.names[host] {
                Name::Silent => pending().await,
                Name::Unknown => return Err(io::Error::other("unknown")),
                Name::Known(after) => tokio::time::sleep(after).await,
            }
            let of_host = self.habits.iter().filter(|(of, ..)| *of == host);
            Ok(of_host.map(|(_, address, _)| *address).collect())
        };
        let dial = async |address| {
            self.tried.lock().insert(address, self.start.elapsed());
            let habit = self.habits.iter().find(|(_, at, _)| *at == address).unwrap().2;
            match habit {
                Habit::Silent => pending().await,
                Habit::Refuses => Err(io::ErrorKind::ConnectionRefused.into()),
                Habit::Hangs => Ok((address, None)),
                Habit::Answers(taken, answered) => {
                    tokio::time::sleep(taken).await;
                    Ok((address, Some(answered)))
                }
            }
        };
        let greet = async |host, (address, answered), others| {
            let there_are_others = self.habits.len() > 1 || self.names.len() > 1;
            assert_eq!(others == Others::Some, there_are_others);
            assert!(self.habits.iter().any(|(of, at, _)| (*of, *at) == (host, address)));
            let Some(answered) = answered else { return pending().await };
            tokio::time::sleep(answered).await;
            Ok(address)
        };
        let others = (0..self.names.len()).filter(|host| *host != first);
        let order: Vec<_> = [first].into_iter().chain(others).collect();
        let reached = race(&order, self.start + DEADLINE, resolve, dial, greet).await;
        let (host, reached) = reached.map_err(|tries| Unreached { hosts: self.shown(), tries })?;
        let number = self.habits.iter().position(|(_, at, _)| *at == reached).unwrap();
        assert_eq!(self.habits[number].0, host);
        Ok((u8::try_from(number).unwrap(), self.start.elapsed()))
    }

    fn shown(&self) -> Vec<Shown> {
        let place = |host| format!("host-{host}:443");
        let hosts = 0..self.names.len();
        hosts.map(|host| Shown { place: place(host), hides_addresses: false }).collect()
    }

    fn tried(&self, number: u8) -> Option<Duration> {
        self.tried.lock().get(&address(false, number)).copied()
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_never_answers_does_not_block_the_next() {
    let net = Net::new([Habit::Silent, AT_ONCE]);
    assert_eq!(net.race().await.unwrap(), (1, STAGGER));
    let net = Net::new([Habit::Silent, Habit::Silent, Habit::Silent, AT_ONCE]);
    assert_eq!(net.race().await.unwrap(), (3, 3 * STAGGER));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_costs_no_time() {
    let net = Net::new([Habit::Refuses, Habit::Refuses, AT_ONCE]);
    assert_eq!(net.race().await.unwrap(), (2, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn the_first_address_is_the_only_one_tried_when_it_answers_soon() {
    let net = Net::new([Habit::Answers(STAGGER / 2, STAGGER / 2), AT_ONCE]);
    assert_eq!(net.race().await.unwrap(), (0, STAGGER));
    assert_eq!(net.tried(1), None);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_slow_may_still_be_the_first_to_answer() {
    let slow = Habit::Answers(2 * STAGGER, Duration::ZERO);
    let net = Net::new([slow, Habit::Silent]);
    assert_eq!(net.race().await.unwrap(), (0, 2 * STAGGER));
    assert_eq!(net.tried(1), Some(STAGGER));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_accepts_and_sends_nothing_does_not_block_the_next_address() {
    let net = Net::new([Habit::Hangs, AT_ONCE]);
    assert_eq!(net.race().await.unwrap(), (1, SILENCE_AFTER_CONNECT));
}

#[tokio::test(start_paused = true)]
async fn every_address_of_a_name_with_many_is_tried_within_the_deadline() {
    let silent = std::iter::repeat_n(Habit::Silent, 99);
    let net = Net::new(silent.chain([AT_ONCE]));
    let (reached, after) = net.race().await.unwrap();
    assert!(reached == 99 && after <= ALL_WITHIN, "{reached} after {after:?}");
}

#[tokio::test(start_paused = true)]
async fn the_next_host_is_tried_when_the_first_is_gone_or_silent() {
    let one = |habit| (KNOWN, vec![habit]);
    for (hosts, after) in [
        ([one(Habit::Refuses), one(AT_ONCE)], Duration::ZERO),
        ([(Name::Unknown, vec![]), one(AT_ONCE)], Duration::ZERO),
        ([(KNOWN, vec![]), one(AT_ONCE)], Duration::ZERO),
        ([(Name::Silent, vec![]), one(AT_ONCE)], STAGGER),
        ([one(Habit::Silent), one(AT_ONCE)], STAGGER),
        ([one(Habit::Hangs), one(AT_ONCE)], SILENCE_AFTER_CONNECT),
    ] {
        let net = Net::of_hosts(hosts.clone());
        let (reached, took) = net.race().await.unwrap();
        assert_eq!((net.habits[usize::from(reached)].0, took), (1, after), "{hosts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_first_host_is_looked_up_and_tried_when_it_answers_soon() {
    let known = Name::Known(STAGGER / 2);
    let soon = Habit::Answers(STAGGER / 3, STAGGER / 3);
    let net = Net::of_hosts([(known, vec![soon]), (KNOWN, vec![AT_ONCE])]);
    assert_eq!(net.race().await.unwrap().0, 0);
    assert_eq!(net.tried(1), None);
    // Another host may be the first to be tried.
    assert_eq!(net.race_from(1).await.unwrap().0, 1);
}

#[tokio::test(start_paused = true)]
async fn every_address_of_the_first_host_comes_before_the_next_host() {
    let hosts =
        [(KNOWN, vec![Habit::Refuses, Habit::Silent, Habit::Silent]), (KNOWN, vec![AT_ONCE])];
    let net = Net::of_hosts(hosts);
    assert_eq!(net.race().await.unwrap(), (3, 2 * STAGGER));
}

#[tokio::test(start_paused = true)]
async fn the_next_host_comes_before_other_addresses_of_one_that_accepts_and_sends_nothing() {
    let net = Net::of_hosts([(KNOWN, vec![Habit::Hangs; 3]), (KNOWN, vec![AT_ONCE])]);
    assert_eq!(net.race().await.unwrap(), (3, SILENCE_AFTER_CONNECT));
}

#[tokio::test(start_paused = true)]
async fn sixteen_hosts_are_tried_within_the_deadline_whatever_those_before_the_last_do() {
    for name in [KNOWN, Name::Silent] {
        for habit in [Habit::Silent, Habit::Hangs, Habit::Refuses] {
            let gone = std::iter::repeat_n((name, vec![habit; 3]), 15);
            let net = Net::of_hosts(gone.chain([(KNOWN, vec![AT_ONCE])]));
            let (reached, after) = net.race().await.unwrap();
            assert!(reached == 45 && after <= ALL_WITHIN, "{reached} after {after:?}: {habit:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_addresses_of_many_hosts_are_bounded_together() {
    let hosts = std::iter::repeat_n((KNOWN, vec![Habit::Refuses; 15]), 16);
    let net = Net::of_hosts(hosts);
    assert_eq!(net.race().await.unwrap_err().tries.len(), MOST_TRIED);
}

#[tokio::test(start_paused = true)]
async fn an_error_names_every_host_and_its_result() {
    let hosts = [(Name::Unknown, vec![]), (KNOWN, vec![Habit::Refuses]), (Name::Silent, vec![])];
    let error = Net::of_hosts(hosts).race().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "host-0:443 has no address: unknown, 192.0.2.0:443: connection refused, \
         host-2:443 has no address: it was not resolved in time"
    );
    assert!(!error.is_refused() && !error.is_late() && error.no_address().is_none());
    let error = Net::of_hosts([(Name::Unknown, vec![])]).race().await.unwrap_err();
    assert_eq!(error.to_string(), "the name has no address: unknown");
    assert!(error.no_address().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_error_names_every_address_and_its_result() {
    let net = Net::new([Habit::Refuses, Habit::Refuses]);
    let error = net.race().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "192.0.2.0:443: connection refused, 192.0.2.1:443: connection refused"
    );
    assert!(error.is_refused() && !error.is_late() && net.start.elapsed().is_zero());

    let net = Net::new([Habit::Silent, Habit::Refuses, Habit::Hangs]);
    let error = net.race().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "192.0.2.1:443: connection refused, 192.0.2.0:443: no answer in time, \
         192.0.2.2:443: no answer in time"
    );
    assert!(!error.is_refused() && !error.is_late());
    assert_eq!(net.start.elapsed(), DEADLINE);
}

#[tokio::test(start_paused = true)]
async fn an_error_about_many_addresses_stays_short() {
    let error = Net::new(std::iter::repeat_n(Habit::Refuses, 100)).race().await.unwrap_err();
    assert!(error.to_string().ends_with(", and 92 more"), "{error}");
    assert_eq!(error.tries.len(), 100);
}

#[test]
fn the_families_take_turns_and_no_address_is_tried_twice() {
    let (six, four) = (|number| address(true, number), |number| address(false, number));
    let told = vec![six(1), six(2), six(1), six(3), four(1), four(2), four(1)];
    assert_eq!(interleave(&told, MOST_TRIED), [six(1), four(1), six(2), four(2), six(3)]);
    assert_eq!(interleave(&[four(1), six(1), six(2)], MOST_TRIED), [four(1), six(1), six(2)]);
    assert_eq!(interleave(&[], MOST_TRIED), []);
}

#[test]
fn a_name_with_too_many_addresses_is_tried_at_some_of_both_families() {
    let told: Vec<_> = (0..=255).map(|number| address(true, number)).collect();
    let four = address(false, 1);
    let tried = interleave(&[told.as_slice(), &[four]].concat(), MOST_TRIED);
    assert_eq!((tried.len(), tried[0], tried[1]), (MOST_TRIED, told[0], four));
}
