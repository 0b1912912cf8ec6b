//! A bounded queue of log lines in front of a writer that may block.
//!
//! Logging never waits: lines that do not fit are dropped and counted, and the count is logged once there is
//! room. tracing-appender has such a queue, but it bounds lines and not bytes, does not report what it drops,
//! and at its end writes to a pipe that blocks.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// The most lines in the queue.
const MAX_LINES: usize = 8_192;

/// The most bytes in the queue.
const MAX_BYTES: usize = 1 << 20;

/// The longest line.
const MAX_LINE: usize = 64 << 10;

/// The queue. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signals that a line was added.
    work: Condvar,
    /// Signals that everything is written.
    done: Condvar,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether a line is being written.
    writing: bool,
    /// How many dropped lines are not yet reported.
    unreported: u64,
}

impl Queue {
    /// Starts a thread that writes lines to `to`. `report_dropped` logs how many were dropped, once there
    /// is room for that line.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub(crate) fn start(
        to: impl Write + Send + 'static,
        report_dropped: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Self(Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
            dropped: Arc::default(),
        }));
        let lines = queue.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || lines.write_all(to, report_dropped))?;
        Ok(queue)
    }

    /// How many lines were dropped so far.
    pub(crate) fn dropped(&self) -> Arc<AtomicU64> {
        self.0.dropped.clone()
    }

    /// Adds a line, or drops it when there is no room. Never waits for the writer.
    pub(crate) fn push(&self, line: &[u8]) {
        let mut state = self.state();
        if line.len() <= MAX_LINE && state.has_room(line.len()) {
            state.add(line);
            drop(state);
            self.0.work.notify_one();
        } else {
            self.count_dropped(&mut state);
        }
    }

    /// Adds a line, and drops the oldest ones when there is no room. Never waits for the writer.
    pub(crate) fn push_last(&self, line: &[u8]) {
        let line = &line[..line.len().min(MAX_LINE)];
        let mut state = self.state();
        while !state.has_room(line.len()) && state.pop().is_some() {
            self.count_dropped(&mut state);
        }
        state.add(line);
        drop(state);
        self.0.work.notify_one();
    }

    /// Waits until every line is written, for `most` at most.
    pub(crate) fn flush(&self, most: Duration) {
        let by = Instant::now() + most;
        let mut state = self.state();
        while state.writing || !state.lines.is_empty() {
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.0.done.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn count_dropped(&self, state: &mut State) {
        state.unreported += 1;
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes line after line, forever.
    fn write_all(&self, mut to: impl Write, report_dropped: impl Fn(u64)) {
        loop {
            let mut state = self.state();
            while state.lines.is_empty() {
                self.0.done.notify_all();
                state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(line) = state.pop() else { continue };
            state.writing = true;
            // Reported in the place where lines are missing, and only when half of the queue is free.
            let unreported = if state.bytes <= MAX_BYTES / 2 && state.lines.len() <= MAX_LINES / 2 {
                std::mem::take(&mut state.unreported)
            } else {
                0
            };
            drop(state);
            // A closed standard error does not stop the server.
            let _ = to.write_all(&line).and_then(|()| to.flush());
            if unreported > 0 {
                report_dropped(unreported);
            }
            self.state().writing = false;
        }
    }
}

impl State {
    fn has_room(&self, length: usize) -> bool {
        self.lines.len() < MAX_LINES && self.bytes + length <= MAX_BYTES
    }

    fn add(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.pop_front()?;
        self.bytes -= line.len();
        Some(line)
    }
}

/// Each write is one line.
impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Queue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// The timeout of every wait.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A queue that writes into a pipe. It also writes how many lines were dropped.
    fn before_a_pipe() -> (Queue, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let told = Arc::<Mutex<Option<Queue>>>::default();
        let own = told.clone();
        let tell = move |lines| {
            let queue = own.lock().unwrap().clone().unwrap();
            queue.push(format!("{lines} lines were dropped\n").as_bytes());
        };
        let queue = Queue::start(writer, tell).unwrap();
        *told.lock().unwrap() = Some(queue.clone());
        (queue, reader)
    }

    /// Reads lines until one equals `end`, and returns how many it has read.
    fn lines_to(reader: &mut impl BufRead, end: &str) -> u64 {
        let mut lines = 0;
        loop {
            let mut line = String::new();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the queue ended");
            lines += 1;
            if line == end {
                return lines;
            }
        }
    }

    #[test]
    fn a_full_pipe_blocks_no_caller_and_dropped_lines_are_reported() {
        let (queue, mut reader) = before_a_pipe();
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..3_000 {
            queue.push(line.as_bytes());
        }
        let dropped = queue.dropped().load(Ordering::Relaxed);
        // The pipe holds 64 KiB and the queue 1 MiB.
        assert!((1_500..2_200).contains(&dropped), "{dropped}");
        assert!(queue.state().bytes <= MAX_BYTES);
        // A flush does not wait for the pipe longer than its timeout.
        queue.flush(Duration::from_millis(10));
        assert!(!queue.state().lines.is_empty());

        // The number of dropped lines is reported when half of the queue is free, before later
        // lines.
        let mut reader = BufReader::new(&mut reader);
        let before = lines_to(&mut reader, &format!("{dropped} lines were dropped\n"));
        queue.push(b"the end\n");
        let after = lines_to(&mut reader, "the end\n");
        assert_eq!(before + after, 3_000 - dropped + 2);
        queue.flush(PATIENCE);
        assert!(queue.state().lines.is_empty());
    }

    #[test]
    fn the_number_of_short_lines_and_the_length_of_a_long_line_are_bounded() {
        let (queue, _reader) = before_a_pipe();
        queue.push(&[b'x'; MAX_LINE + 1]);
        assert_eq!(queue.dropped().load(Ordering::Relaxed), 1);
        // The first line fills the pipe, and the thread that writes it blocks.
        queue.push(&[b'x'; MAX_LINE]);
        queue.push(&[b'x'; MAX_LINE]);
        for _ in 0..2 * MAX_LINES {
            queue.push(b"\n");
        }
        assert_eq!(queue.state().lines.len(), MAX_LINES);
    }

    #[test]
    fn the_last_line_replaces_earlier_lines_when_the_queue_is_full() {
        let (queue, reader) = before_a_pipe();
        let line = format!("{}\n", "x".repeat(999));
        for _ in 0..3_000 {
            queue.push(line.as_bytes());
        }
        queue.push_last(b"why it ended\n");
        assert!(queue.state().bytes <= MAX_BYTES);
        lines_to(&mut BufReader::new(reader), "why it ended\n");
    }
}
