//! The terminal in full-screen mode.

use std::time::Instant;

use ratatui::DefaultTerminal;

use super::draw::draw;
use super::state::App;
use crate::failure::Failure;

/// A terminal in full-screen mode. It is restored when this value is dropped, and when a thread panics.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Switches the terminal to full-screen mode.
    ///
    /// # Errors
    ///
    /// [`Failure::Failed`] if that fails; the terminal is restored then.
    pub(super) fn enter() -> Result<Self, Failure> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                ratatui::restore();
                Err(Failure::Failed(format!("cannot take over the terminal: {error}")))
            }
        }
    }

    /// Shows `app`.
    ///
    /// # Errors
    ///
    /// [`Failure::Failed`] if writing to the terminal fails.
    pub(super) fn draw(&mut self, app: &App) -> Result<(), Failure> {
        let now = Instant::now();
        self.terminal
            .draw(|frame| draw(app, now, frame.area(), frame.buffer_mut()))
            .map_err(|error| Failure::Failed(format!("cannot draw on the terminal: {error}")))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

#[cfg(test)]
#[path = "../../tests/it/terminal.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "a test may, and the other tests use the rest")]
mod terminal;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::terminal::Terminal;
    use super::*;

    /// Set when this test runs itself in a child process, on a terminal.
    const PANICKING: &str = "TGM_SESSION_TEST_PANICS_ON_A_TERMINAL";

    #[test]
    fn a_panic_gives_the_terminal_back_and_then_tells_its_message() {
        if std::env::var_os(PANICKING).is_some() {
            let mut screen = Screen::enter().expect("a terminal");
            screen.draw(&App::new("http://h:9011")).expect("a terminal");
            panic!("something that cannot happen");
        }
        let mut itself = Command::new(std::env::current_exe().expect("this test"));
        itself.args(["--exact", "--nocapture", "--test-threads=1"]);
        itself
            .arg("top::screen::tests::a_panic_gives_the_terminal_back_and_then_tells_its_message");
        itself.env(PANICKING, "1");
        let mut terminal = Terminal::open();
        let mut child = terminal.run(&itself);
        terminal.wait_until("taken over", vt100::Screen::alternate_screen);
        terminal.wait_for("something that cannot happen");
        terminal.expect_given_back();
        assert_eq!(child.wait().expect("its end").code(), Some(101));
    }
}
