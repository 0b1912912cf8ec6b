//! Styles, bars and cells of both lists.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::bar::Bar;
use crate::output::plain;

/// Headings and names.
pub(super) const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);
/// Side remarks.
pub(super) const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
/// Success.
pub(super) const GOOD: Style = Style::new().fg(Color::Green);
/// What is full, spent or disabled.
pub(super) const WARN: Style = Style::new().fg(Color::Yellow);
/// Errors.
pub(super) const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
/// Slots in use.
const IN_USE: Style = Style::new().fg(Color::Cyan);
/// The row of the cursor.
pub(super) const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// How many cells a bar takes at most.
pub(super) const CELLS: u16 = 10;

/// `███░░ 3/5`.
pub(super) fn bar(active: u64, max: Option<u64>) -> Vec<Span<'static>> {
    let bar = Bar { active, max };
    let (full, empty) = bar.cells_within(CELLS.into());
    // Without a limit, nothing can be full.
    let (full, empty) = if max.is_some() { (full, empty) } else { (0, 0) };
    let style = if bar.is_full() { WARN } else { IN_USE };
    let numbers = match max {
        Some(max) => format!(" {active}/{max}"),
        None => format!("{active}"),
    };
    vec![
        Span::styled("█".repeat(full), style),
        Span::styled("░".repeat(empty), FAINT),
        Span::raw(numbers),
    ]
}

/// A share from 0 to 1 as a bar.
pub(super) fn share(part: f64) -> Vec<Span<'static>> {
    let cells = f64::from(CELLS);
    // In range: the share is between 0 and 1.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10")]
    let full = (part.clamp(0.0, 1.0) * cells).ceil() as usize;
    let empty = usize::from(CELLS).saturating_sub(full);
    let style = if part >= 1.0 { WARN } else { GOOD };
    vec![Span::styled("█".repeat(full), style), Span::styled("░".repeat(empty), FAINT)]
}

/// `name 3` with a faint name.
pub(super) fn labelled(label: &str, value: impl ToString) -> [Span<'static>; 3] {
    [
        Span::styled(format!("{label} "), FAINT),
        Span::styled(value.to_string(), TITLE),
        Span::raw("   "),
    ]
}

/// Text of the server, on one line.
pub(super) fn text(text: &str) -> Line<'static> {
    Line::raw(plain(text))
}

/// The first of `count` rows to show where `room` rows fit, so that `selected` is among them.
pub(super) fn first_row(selected: usize, count: usize, room: usize) -> usize {
    selected.saturating_sub(room / 2).min(count.saturating_sub(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_is_always_on_the_screen() {
        for (count, room) in [(0, 5), (1, 5), (5, 5), (6, 5), (1000, 7), (10, 1), (10, 0)] {
            for selected in 0..count {
                let first = first_row(selected, count, room);
                assert!(first <= selected, "{selected} of {count} in {room}");
                assert!(room == 0 || selected < first + room, "{selected} of {count} in {room}");
                assert!(count < room || first + room <= count, "{selected} of {count} in {room}");
            }
        }
    }
}
