//! Draws the screen: connection and totals on top, a list, and the keys.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Clear, Paragraph, Widget as _, Wrap};
use tgm_session_server::api::Overview;

use super::parts::{BAD, FAINT, GOOD, TITLE, WARN, labelled};
use super::state::{App, Link, Mode, Revocation};
use super::{organizations, sessions};
use crate::operator::fleet::led;
use crate::operator::words::{refused, span};
use crate::output::{counted, plain};

/// Draws `app` as it is at `now` into `area`.
pub(super) fn draw(app: &App, now: Instant, area: Rect, buffer: &mut Buffer) {
    let [top, list, keys] =
        Layout::vertical([Constraint::Length(4), Constraint::Min(3), Constraint::Length(1)])
            .areas(area);
    header(app, now, top, buffer);
    match &app.leases {
        Some(leases) => sessions::draw(leases, now, list, buffer),
        None => organizations::draw(app, list, buffer),
    }
    footer(app).render(keys, buffer);
    match &app.mode {
        Mode::Confirm(revocation) => question(revocation, area, buffer),
        Mode::Help => help(area, buffer),
        Mode::Browse | Mode::Search => {}
    }
}

fn header(app: &App, now: Instant, area: Rect, buffer: &mut Buffer) {
    let mut lines = vec![connection(app, now)];
    if let Some(overview) = &app.overview {
        lines.extend([totals(overview), services(overview), state(app, overview)]);
    }
    Paragraph::new(lines).render(area, buffer);
}

/// The server, and whether it answers.
fn connection(app: &App, now: Instant) -> Line<'static> {
    let name = app.overview.as_ref().map_or("", |overview| &overview.version);
    let mut spans = vec![Span::styled(format!("tgm-session {}  ", plain(name)), TITLE)];
    match &app.link {
        Link::Connected => {
            spans.push(Span::styled("● ", GOOD));
            spans.push(Span::raw(format!("connected to {}", app.place)));
            if let Some(overview) = &app.overview {
                let rest = format!("   up {}   {}", up(overview), plain(&overview.store));
                spans.push(Span::styled(rest, FAINT));
            }
            if let Some(fleet) = &app.fleet {
                spans.push(Span::styled(format!("   {}", led(fleet)), FAINT));
            }
        }
        Link::Lost { since, why } => {
            let ago = span(now.saturating_duration_since(*since).as_secs_f64());
            spans.push(Span::styled(format!("○ connection lost {ago} ago, trying again: "), BAD));
            spans.push(Span::raw(plain(why)));
        }
    }
    Line::from(spans)
}

/// How long the server has run, by its clock and this one's.
fn up(overview: &Overview) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
    let started = overview.started_at as f64;
    span(now - started)
}

fn totals(overview: &Overview) -> Line<'static> {
    let organizations = format!("{} of {}", overview.active_organizations, overview.organizations);
    let spans = [
        labelled("sessions", overview.sessions),
        labelled("workers", overview.workers),
        labelled("organizations", organizations),
        labelled("refused (1 h)", refused(&overview.refusals)),
        labelled("attached", overview.attached_streams),
    ];
    Line::from_iter(spans.into_iter().flatten())
}

fn services(overview: &Overview) -> Line<'static> {
    let spans = overview.services.iter().flat_map(|service| {
        let active = match service.max_total {
            Some(max) => format!("{}/{max}", service.active),
            None => service.active.to_string(),
        };
        let observed = if service.observe { " (observed)" } else { "" };
        labelled(&plain(&service.service), active + observed)
    });
    Line::from_iter(spans)
}

/// A problem of the server, or the result of the last action.
fn state(app: &App, overview: &Overview) -> Line<'static> {
    if !overview.ready {
        let why = overview.problem.as_deref().unwrap_or("no reason was given");
        let label = Span::styled("the server refuses changes: ", BAD);
        return Line::from_iter([label, Span::raw(plain(why))]);
    }
    if let Some(notice) = &app.notice {
        let style = if notice.good { GOOD } else { BAD };
        return Line::styled(plain(&notice.text), style);
    }
    if let Some(why) = &overview.policy.refused {
        let label = Span::styled("the policy file is refused: ", BAD);
        return Line::from_iter([label, Span::raw(plain(why))]);
    }
    if let Some(warning) = app.fleet.as_ref().and_then(|fleet| fleet.warnings.first()) {
        return Line::styled(plain(warning), WARN);
    }
    match overview.policy.overrides {
        0 => Line::default(),
        overrides => Line::styled(format!("{} in force", counted(overrides, "override")), FAINT),
    }
}

/// The keys of the current mode.
fn footer(app: &App) -> Line<'static> {
    let keys: &[(&str, &str)] = match (&app.mode, &app.leases) {
        (Mode::Search, _) => {
            let search = format!("/{}▏", plain(app.search()));
            let rest = Span::styled("   Enter keeps it, Esc clears it", FAINT);
            return Line::from_iter([Span::styled(search, TITLE), rest]);
        }
        (Mode::Browse | Mode::Confirm(_) | Mode::Help, None) => {
            &[("↑↓", "select"), ("Enter", "sessions"), ("/", "search"), ("s", "sort")]
        }
        (Mode::Browse | Mode::Confirm(_) | Mode::Help, Some(_)) => &[
            ("↑↓", "select"),
            ("r", "revoke"),
            ("/", "search"),
            ("s", "sort"),
            ("w", "workers"),
            ("Esc", "back"),
        ],
    };
    let keys = keys.iter().chain(&[("?", "help"), ("q", "quit")]);
    Line::from_iter(keys.flat_map(|(key, what)| {
        [Span::styled(key.to_string(), TITLE), Span::styled(format!(" {what}  "), FAINT)]
    }))
}

fn question(revocation: &Revocation, area: Rect, buffer: &mut Buffer) {
    let Revocation { lease, what, workers } = revocation;
    let rest = match workers {
        0 => "It ends at once, and its client is informed.".to_owned(),
        workers => {
            let workers = counted(*workers, "worker");
            format!("It ends at once, and {workers} under its trace. Its client is informed.")
        }
    };
    let text = Text::from(vec![
        Line::styled(format!("End this {}?", plain(what)), TITLE),
        Line::raw(plain(lease)),
        Line::raw(rest),
        Line::default(),
        Line::from_iter([
            Span::styled("y", TITLE),
            Span::raw(" end it    "),
            Span::styled("n", TITLE),
            Span::raw(" keep it"),
        ]),
    ]);
    window("revoke", text, area, buffer);
}

fn help(area: Rect, buffer: &mut Buffer) {
    const KEYS: [(&str, &str); 10] = [
        ("↑ ↓  PgUp PgDn  Home End", "select a row"),
        ("Enter", "sessions of the organization"),
        ("Esc", "clear the search, or go back"),
        ("/", "search: organizations by id; sessions by"),
        ("", "trace, API key, indexer, service or number"),
        ("s  S  ← →", "the next order, the one before"),
        ("w", "sessions, workers, or both"),
        ("r", "end the selected session or worker"),
        ("q  Ctrl-C", "quit"),
        ("", "any key closes this help"),
    ];
    let lines = KEYS.map(|(key, what)| {
        Line::from_iter([Span::styled(format!("{key:<26}"), TITLE), Span::raw(what)])
    });
    window("keys", Text::from_iter(lines), area, buffer);
}

/// Shows `text` in a window in the middle of the screen.
fn window(title: &'static str, text: Text<'static>, area: Rect, buffer: &mut Buffer) {
    let wide = u16::try_from(text.width()).unwrap_or(u16::MAX).saturating_add(4);
    let high = u16::try_from(text.height()).unwrap_or(u16::MAX).saturating_add(2);
    // Text that is too wide wraps, and needs more lines.
    let width = wide.min(area.width);
    let height = if wide > area.width { high.saturating_add(4) } else { high }.min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    Clear.render(place, buffer);
    let block = Block::bordered()
        .title(title)
        .title_alignment(Alignment::Center)
        .border_style(WARN)
        .padding(ratatui::widgets::Padding::horizontal(1));
    Paragraph::new(text).wrap(Wrap { trim: false }).block(block).render(place, buffer);
}
