//! Handles keys.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::state::{App, Mode, Move};

/// How many rows a page key moves.
const PAGE: isize = 10;
/// The longest search: the length of an id.
const LONGEST: usize = 256;

/// An action that needs more than the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Quit,
    /// End the lease of this number.
    Revoke(String),
}

impl App {
    /// Handles `key` in the current mode.
    pub(super) fn press(&mut self, key: KeyEvent) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                _ => Action::Nothing,
            };
        }
        match std::mem::replace(&mut self.mode, Mode::Browse) {
            Mode::Browse => self.browse(key.code),
            Mode::Search => self.type_search(key.code),
            Mode::Confirm(revocation) => match key.code {
                KeyCode::Char('y' | 'Y') => Action::Revoke(revocation.lease),
                KeyCode::Char('n' | 'N' | 'q') | KeyCode::Esc => Action::Nothing,
                // Any other key changes nothing.
                _ => {
                    self.mode = Mode::Confirm(revocation);
                    Action::Nothing
                }
            },
            Mode::Help => Action::Nothing,
        }
    }

    fn browse(&mut self, code: KeyCode) -> Action {
        self.notice = None;
        match code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.move_cursor(Move::By(-1)),
            KeyCode::Down | KeyCode::Char('j') => self.move_cursor(Move::By(1)),
            KeyCode::PageUp => self.move_cursor(Move::By(-PAGE)),
            KeyCode::PageDown => self.move_cursor(Move::By(PAGE)),
            KeyCode::Home | KeyCode::Char('g') => self.move_cursor(Move::First),
            KeyCode::End | KeyCode::Char('G') => self.move_cursor(Move::Last),
            KeyCode::Enter => self.enter(),
            KeyCode::Esc | KeyCode::Backspace => self.back(),
            KeyCode::Char('/') => self.mode = Mode::Search,
            KeyCode::Char('s') | KeyCode::Right => self.sort(true),
            KeyCode::Char('S') | KeyCode::Left => self.sort(false),
            KeyCode::Char('w') => {
                if let Some(leases) = &mut self.leases {
                    leases.next_kinds();
                }
            }
            KeyCode::Char('r') => self.ask_to_revoke(),
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            _ => {}
        }
        Action::Nothing
    }

    fn type_search(&mut self, code: KeyCode) -> Action {
        let mut goes_on = true;
        match code {
            KeyCode::Enter => goes_on = false,
            KeyCode::Esc => {
                goes_on = false;
                self.search_mut().clear();
                self.select_first();
            }
            KeyCode::Backspace => {
                self.search_mut().pop();
                self.select_first();
            }
            KeyCode::Char(char) if self.search().len() + char.len_utf8() <= LONGEST => {
                self.search_mut().push(char);
                self.select_first();
            }
            KeyCode::Up => self.move_cursor(Move::By(-1)),
            KeyCode::Down => self.move_cursor(Move::By(1)),
            _ => {}
        }
        if goes_on {
            self.mode = Mode::Search;
        }
        Action::Nothing
    }
}
