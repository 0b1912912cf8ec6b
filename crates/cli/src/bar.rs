//! A bar that shows how much of a limit is used.

use std::fmt;

use crate::output::{FAINT, NAME, WARN, styled};

/// The most cells a bar takes.
const WIDEST: u64 = 24;

/// `███░░ 3/5`: one cell per slot while those fit, else in proportion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    /// Slots in use.
    pub(crate) active: u64,
    /// The limit; `None` if there is none.
    pub(crate) max: Option<u64>,
}

impl Bar {
    /// The cells of a share: `part` of `whole`.
    #[cfg(unix)]
    pub(crate) fn cells_of(part: u128, whole: u128) -> String {
        let scaled = (part.min(whole) * u128::from(WIDEST)).div_ceil(whole.max(1));
        let full = usize::try_from(scaled).unwrap_or(0);
        let empty = usize::try_from(WIDEST).unwrap_or(0).saturating_sub(full);
        styled(NAME, "█".repeat(full)) + &styled(FAINT, "░".repeat(empty))
    }

    /// The number of full and of empty cells when there is room for `widest`.
    pub(crate) fn cells_within(self, widest: u64) -> (usize, usize) {
        let max = self.max.unwrap_or(self.active).max(1);
        let shown = max.min(widest.max(1));
        let active = self.active.min(max);
        // Rounded up, so that one lease of thousands shows, and full means full.
        let full = (u128::from(active) * u128::from(shown)).div_ceil(u128::from(max));
        let full = if active < max {
            full.min(u128::from(shown) - 1).max(u128::from(active.min(1)))
        } else {
            full
        };
        let full = usize::try_from(full).unwrap_or(usize::MAX);
        let shown = usize::try_from(shown).unwrap_or(usize::MAX);
        (full, shown - full)
    }

    /// Whether the limit is reached.
    pub(crate) fn is_full(self) -> bool {
        self.max.is_some_and(|max| self.active >= max)
    }

    /// `███░░ 3/5` without colours, in at most `widest` cells; `3` without a limit.
    pub(crate) fn plain(self, widest: u64) -> String {
        // Without a limit, nothing can be full.
        let Some(max) = self.max else { return self.active.to_string() };
        let (full, empty) = self.cells_within(widest);
        format!("{}{} {}/{max}", "█".repeat(full), "░".repeat(empty), self.active)
    }

    /// The cells alone.
    pub(crate) fn picture(self) -> String {
        let (full, empty) = self.cells_within(WIDEST);
        let style = if self.is_full() { WARN } else { NAME };
        styled(style, "█".repeat(full)) + &styled(FAINT, "░".repeat(empty))
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let picture = self.picture();
        match self.max {
            Some(max) => write!(f, "{picture} {}/{max}", self.active),
            None => write!(f, "{picture} {}, no limit", self.active),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(active: u64, max: Option<u64>) -> String {
        anstream::adapter::strip_str(&Bar { active, max }.to_string()).to_string()
    }

    #[test]
    fn a_bar_has_one_cell_per_slot_while_they_fit() {
        assert_eq!(plain(3, Some(5)), "███░░ 3/5");
        assert_eq!(plain(5, Some(5)), "█████ 5/5");
        assert_eq!(plain(0, Some(2)), "░░ 0/2");
    }

    #[test]
    fn a_long_bar_is_full_only_when_every_slot_is_taken() {
        assert_eq!(Bar { active: 1, max: Some(4000) }.cells_within(WIDEST), (1, 23));
        assert_eq!(Bar { active: 3999, max: Some(4000) }.cells_within(WIDEST), (23, 1));
        assert_eq!(Bar { active: 4000, max: Some(4000) }.cells_within(WIDEST), (24, 0));
    }

    #[test]
    fn a_bar_is_right_for_any_count_and_without_a_limit() {
        assert_eq!(plain(7, Some(5)), "█████ 7/5");
        assert_eq!(Bar { active: 0, max: Some(0) }.cells_within(WIDEST), (0, 1));
        assert_eq!(plain(2, None), "██ 2, no limit");
        assert_eq!(Bar { active: u64::MAX, max: Some(u64::MAX) }.cells_within(WIDEST), (24, 0));
        assert_eq!(Bar { active: u64::MAX, max: None }.cells_within(WIDEST), (24, 0));
    }
}
