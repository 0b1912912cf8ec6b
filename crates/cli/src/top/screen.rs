//! The terminal, taken over and given back.

use std::time::Instant;

use ratatui::DefaultTerminal;

use super::draw::draw;
use super::state::App;
use crate::failure::Failure;

/// A terminal that shows one picture. It is given back when this is dropped, and when a thread panics.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    ///
    /// [`Failure::Failed`] when it cannot be; then it is as it was.
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
    /// [`Failure::Failed`] when the terminal does not take it.
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
