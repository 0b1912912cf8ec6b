//! A terminal that a program runs on, and what its screen shows.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};

/// The timeout of every wait. A busy machine needs less.
const PATIENCE: Duration = Duration::from_secs(40);
const ROWS: NonZeroU16 = NonZeroU16::new(30).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(140).unwrap();

/// A pseudo terminal of 140 columns and 30 rows, as a terminal emulator would show it.
pub(crate) struct Terminal {
    keyboard: File,
    line: File,
    output: Receiver<Vec<u8>>,
    parser: vt100::Parser,
    /// The modes of the terminal before a program changed them.
    before: String,
}

impl Terminal {
    /// Opens a new terminal.
    pub(crate) fn open() -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let no_controlling = i32::try_from(OFlags::NOCTTY.bits()).unwrap();
        let line =
            OpenOptions::new().read(true).write(true).custom_flags(no_controlling).open(path);
        let line = line.unwrap();
        let size =
            Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&line, size).unwrap();
        let before = modes(&line);
        let keyboard = File::from(master);
        let mut screen = keyboard.try_clone().unwrap();
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            // Ends when the last program has exited and the `Terminal` is dropped.
            while let Ok(length) = screen.read(&mut chunk) {
                if length == 0 || sender.send(chunk[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { keyboard, line, output, parser: vt100::Parser::new(ROWS, COLUMNS, 0), before }
    }

    /// Runs `command` with this terminal as its controlling terminal.
    pub(crate) fn run(&self, command: &Command) -> Child {
        // The child is no group leader, so `setsid` does not fork and the program gets the process
        // id of the child.
        let mut on_terminal = Command::new("setsid");
        on_terminal.arg("--ctty").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => on_terminal.env(name, value),
                None => on_terminal.env_remove(name),
            };
        }
        let end = || self.line.try_clone().unwrap();
        on_terminal.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        on_terminal.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    /// Resizes the terminal. The kernel signals that to the program.
    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.line, size).unwrap();
        let to_size = |cells| NonZeroU16::new(cells).unwrap();
        self.parser.screen_mut().set_size(to_size(rows), to_size(columns));
    }

    /// Types `keys`.
    pub(crate) fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// What the screen shows now.
    pub(crate) fn picture(&self) -> String {
        self.parser.screen().contents()
    }

    /// Waits until `wanted` accepts the screen.
    pub(crate) fn wait_until(&mut self, what: &str, wanted: impl Fn(&vt100::Screen) -> bool) {
        let start = Instant::now();
        while !wanted(self.parser.screen()) {
            let rest = PATIENCE.saturating_sub(start.elapsed());
            match self.output.recv_timeout(rest) {
                Ok(chunk) => self.parser.process(&chunk),
                Err(_) => panic!("not {what} in time:\n{}", self.picture()),
            }
        }
    }

    /// Waits until the screen shows `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |screen| screen.contents().contains(text));
    }

    /// Waits until the program has left the alternate screen and shows the cursor again. Then
    /// checks that the modes of the terminal are restored.
    pub(crate) fn expect_given_back(&mut self) {
        self.wait_until("given back", |screen| !screen.alternate_screen() && !screen.hide_cursor());
        assert_eq!(modes(&self.line), self.before);
    }
}

/// The modes of the terminal, such as echo and line editing.
fn modes(line: &File) -> String {
    let modes = tcgetattr(line).unwrap();
    format!("{:?} {:?} {:?}", modes.input_modes, modes.output_modes, modes.local_modes)
}
