use std::collections::HashMap;
use std::future::pending;

use parking_lot::Mutex;

use super::*;
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

/// Servers at addresses, and when each was tried.
struct Net {
    habits: Vec<(SocketAddr, Habit)>,
    start: Instant,
    tried: Mutex<HashMap<SocketAddr, Duration>>,
}

const AT_ONCE: Habit = Habit::Answers(Duration::ZERO, Duration::ZERO);
const DEADLINE: Duration = Duration::from_secs(3);

/// An IPv6 address or an IPv4 address.
fn address(six: bool, number: u8) -> SocketAddr {
    let host = if six { format!("[2001:db8::{number}]") } else { format!("192.0.2.{number}") };
    format!("{host}:443").parse().unwrap()
}

impl Net {
    fn new(habits: impl IntoIterator<Item = Habit>) -> Self {
        let habits = (0..).zip(habits).map(|(number, habit)| (address(false, number), habit));
        Self { habits: habits.collect(), start: Instant::now(), tried: Mutex::default() }
    }

    /// Returns the number of the server that was reached, and how long that took.
    async fn race(&self) -> Result<(u8, Duration), Unreached> {
        let addresses = self.habits.iter().map(|(address, _)| *address).collect();
        let dial = async |address| {
            self.tried.lock().insert(address, self.start.elapsed());
            let habit = self.habits.iter().find(|(at, _)| *at == address).unwrap().1;
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
        let greet = async |(address, answered), others| {
            assert_eq!(others == Others::Some, self.habits.len() > 1);
            let Some(answered) = answered else { return pending().await };
            tokio::time::sleep(answered).await;
            Ok(address)
        };
        let reached = race(addresses, self.start + DEADLINE, dial, greet).await;
        let reached = reached.map_err(|tries| Unreached::Tried { tries, shown: true })?;
        let number = self.habits.iter().position(|(at, _)| *at == reached).unwrap();
        Ok((u8::try_from(number).unwrap(), self.start.elapsed()))
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
    assert_eq!(error.tries().len(), 100);
}

#[test]
fn the_families_take_turns_and_no_address_is_tried_twice() {
    let (six, four) = (|number| address(true, number), |number| address(false, number));
    let told = vec![six(1), six(2), six(1), six(3), four(1), four(2), four(1)];
    assert_eq!(interleave(&told), [six(1), four(1), six(2), four(2), six(3)]);
    assert_eq!(interleave(&[four(1), six(1), six(2)]), [four(1), six(1), six(2)]);
    assert_eq!(interleave(&[]), []);
}

#[test]
fn a_name_with_too_many_addresses_is_tried_at_some_of_both_families() {
    let told: Vec<_> = (0..=255).map(|number| address(true, number)).collect();
    let four = address(false, 1);
    let tried = interleave(&[told.as_slice(), &[four]].concat());
    assert_eq!((tried.len(), tried[0], tried[1]), (MOST_TRIED, told[0], four));
}
