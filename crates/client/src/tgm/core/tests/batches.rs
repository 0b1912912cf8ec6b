use super::*;

impl Bench {
    fn attach(&mut self) {
        assert!(matches!(self.output(), Some(Output::OpenStream)));
        self.core.handle_stream(StreamEvent::Opened, self.now);
    }

    /// Delivers the notices and returns the next output.
    fn output(&mut self) -> Option<Output> {
        self.tell();
        self.core.poll_output(self.now)
    }

    /// Moves the time to the next batch and returns it.
    fn batch(&mut self) -> Batch {
        loop {
            match self.output() {
                Some(Output::Batch(batch)) => return batch,
                Some(output) => panic!("not a batch: {output:?}"),
                None => {
                    let next = self.core.poll_timeout(self.now).expect("something is due");
                    self.now = self.now.max(next);
                }
            }
        }
    }

    fn extend(&mut self, batch: u64) {
        let event = StreamEvent::Answer { batch, places: HashMap::new() };
        self.core.handle_stream(event, self.now);
        assert!(self.core.stream.is_open());
        self.tell();
    }

    fn break_stream(&mut self) {
        self.core.handle_stream(StreamEvent::Over(Detached::Broken), self.now);
    }
}

#[test]
fn a_pool_without_leases_opens_no_stream_and_a_close_does_not_wait_for_one() {
    let mut bench = Bench::new(RULES);
    assert!(bench.output().is_none());
    assert_eq!(bench.core.poll_timeout(bench.now), None);
    let session = bench.session(None);
    assert_eq!(bench.core.poll_timeout(bench.now), Some(bench.now));
    bench.attach();
    let _drained = bench.core.close(bench.now);
    assert_eq!(bench.take_back(), key(&session.key()));
    assert!(bench.core.is_drained());
}

#[test]
fn a_batch_without_an_answer_fails_its_keys_and_the_stream_after_the_deadline() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.attach();
    assert_eq!(bench.batch().keys, [&*session.key()]);
    bench.now = bench.core.poll_timeout(bench.now).unwrap();
    assert_eq!(bench.passed(), Duration::from_secs(5));
    assert!(matches!(bench.output(), Some(Output::CloseStream)));
    assert!(bench.output().is_none());
    assert_eq!(bench.core.stats().keep_alives_failed, 1);
    bench.beat(session.number());
    assert!(bench.passed() >= Duration::from_millis(5900) && bench.passed() < TTL);
}

#[test]
fn a_lease_whose_stream_breaks_is_lost_only_95_percent_of_its_ttl_after_its_last_success() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.attach();
    let batch = bench.batch();
    bench.extend(batch.number);
    let proven = bench.now;
    bench.batch();
    bench.break_stream();
    // The lease gets a keep-alive call of its own at once, and then one every second.
    let broken = bench.now;
    bench.beat(session.number());
    assert_eq!(bench.now, broken);
    bench.answer(session.number(), KeepAliveAnswer::Fault(away()));
    while let Some(Call::KeepAlive { number, .. }) = bench.call() {
        bench.answer(number, KeepAliveAnswer::Fault(away()));
    }
    assert_eq!(bench.now - proven, BELIEF);
    assert_eq!(session.end_reason(), Some(&away().lost()));
}

#[test]
fn new_leases_are_kept_alive_when_the_stream_breaks_before_it_names_them() {
    for late in [true, false] {
        let mut bench = Bench::new(RULES);
        let first = bench.session(None);
        bench.attach();
        bench.batch();
        if late {
            bench.now += Duration::from_secs(5);
        }
        let granted = bench.now;
        let new: Vec<_> = (0..9).map(|_| bench.session(None)).collect();
        if late {
            let output = bench.output();
            assert!(matches!(output, Some(Output::CloseStream)), "the stream owes an answer");
        } else {
            bench.break_stream();
        }
        let mut beaten = HashMap::new();
        while beaten.len() < 9 {
            assert!(bench.now - granted < 2 * DELAY, "some are never kept alive");
            let Some(Call::KeepAlive { number, .. }) = bench.call() else { panic!("no call") };
            bench.answer(number, KeepAliveAnswer::Extended(None));
            if number != first.number() {
                beaten.entry(number).or_insert(bench.now - granted);
            }
        }
        let (soonest, latest) = (beaten.values().min().unwrap(), beaten.values().max().unwrap());
        assert!(*latest <= DELAY && *soonest < DELAY / 2, "{beaten:?}");
        drop(new);
    }
}

#[test]
fn a_new_lease_that_is_released_before_it_is_named_is_neither_named_nor_waited_for() {
    let mut bench = Bench::new(RULES);
    let first = bench.session(None);
    bench.attach();
    let batch = bench.batch();
    bench.extend(batch.number);
    let new = bench.session(None);
    let _released = bench.release(&new);
    assert_eq!(bench.take_back(), key(&new.key()));
    while bench.passed() < 2 * DELAY {
        let batch = bench.batch();
        assert_eq!(batch.keys, [&*first.key()]);
        bench.extend(batch.number);
    }
}

#[test]
fn a_release_waits_for_its_batch_or_the_end_of_the_stream() {
    for answered in [true, false] {
        let mut bench = Bench::new(RULES);
        let session = bench.session(None);
        bench.attach();
        let batch = bench.batch();
        let release = bench.release(&session);
        assert!(bench.poll_call().is_none());
        if answered {
            bench.extend(batch.number);
        } else {
            bench.break_stream();
        }
        assert_eq!(bench.take_back(), key(&session.key()));
        assert_eq!(release.now_or_never().unwrap(), Ok(Released::Returned));
    }
}

#[test]
fn twenty_thousand_leases_go_in_about_ten_batches_a_second_with_no_gap_over_the_delay() {
    const HELD: usize = 20_000;
    let mut bench = Bench::new(RULES);
    let sessions: Vec<_> = (0..HELD).map(|_| bench.session(None)).collect();
    bench.attach();
    let mut last: HashMap<String, Instant> = HashMap::new();
    let mut longest = Duration::ZERO;
    let mut batches = 0;
    while bench.passed() < 5 * DELAY {
        let batch = bench.batch();
        batches += 1;
        assert!(batch.keys.len() <= 1000);
        for key in &batch.keys {
            if let Some(before) = last.insert(key.clone(), bench.now) {
                longest = longest.max(bench.now - before);
            }
        }
        bench.extend(batch.number);
    }
    assert_eq!(last.len(), HELD);
    assert!(longest <= DELAY.mul_f64(1.06), "{longest:?}");
    // Ten batches per second carry a thousand keep-alives per second.
    assert!(batches <= 1200, "{batches}");
    drop(sessions);
}
