//! One organization: its limits, and each of its leases.

use std::time::Instant;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, Widget as _};
use tgm_session_server::api::{AgeOrder, LeaseKinds, Session};

use super::fetch::OrganizationLeases;
use super::parts::{FAINT, SELECTED, TITLE, WARN, bar, first_row, labelled, share, text};
use super::state::Leases;
use crate::operator::words::{budget, moment, refusals, span, used};
use crate::output::{counted, plain};

/// Below this width the numbers of leases are left out.
const WIDE: u16 = 110;

/// Draws the organization and its leases into `area`.
pub(super) fn draw(leases: &Leases, now: Instant, area: Rect, buffer: &mut Buffer) {
    let panel = panel(leases);
    let high = u16::try_from(panel.len()).unwrap_or(u16::MAX).min(area.height / 2);
    let [above, below] =
        Layout::vertical([Constraint::Length(high), Constraint::Min(2)]).areas(area);
    Paragraph::new(panel).render(above, buffer);
    list(leases, now, below, buffer);
}

/// What is known about the organization, in lines.
fn panel(leases: &Leases) -> Vec<Line<'static>> {
    let mut first = vec![Span::styled(plain(&leases.organization), TITLE)];
    let Some((held, _)) = &leases.held else {
        let state = if leases.gone { "nobody knows it any more" } else { "asking the server…" };
        first.push(Span::styled(format!("   {state}"), FAINT));
        return vec![Line::from(first)];
    };
    let OrganizationLeases { organization, refusals: latest, .. } = &**held;
    if let Some(plan) = &organization.plan {
        first.push(Span::styled(format!("   plan {}", plain(plan)), FAINT));
    }
    if organization.disabled.disabled {
        let source = organization.disabled.source.in_words();
        first.push(Span::styled(format!("   disabled by {source}"), WARN));
    }
    let mut lines = vec![Line::from(first)];
    lines.extend(organization.services.iter().map(|service| {
        let mut spans = vec![Span::raw(format!("  {:<12} ", plain(&service.service)))];
        spans.extend(bar(service.active, service.ceiling.max));
        let source = match service.ceiling.max {
            Some(_) => format!("   by {}", service.ceiling.source.in_words()),
            None => "   no limit".to_owned(),
        };
        spans.push(Span::styled(source, FAINT));
        Line::from(spans)
    }));
    lines.extend(organization.budgets.iter().map(|row| {
        let mut spans = vec![Span::raw("  budget       ")];
        spans.extend(share(used(row)));
        spans.push(Span::raw(format!(" {}", plain(&budget(row)))));
        let resets = format!("   per {}, resets {}", plain(&row.per), moment(row.resets_at));
        spans.push(Span::styled(resets, FAINT));
        Line::from(spans)
    }));
    let counts = refusals(&organization.refusals);
    lines.push(Line::from_iter(labelled("  refused in the last hour:", counts)));
    lines.extend(latest.iter().map(|refusal| {
        let (at, reason) = (moment(refusal.at), plain(&refusal.reason));
        Line::from_iter([Span::styled(format!("    {at}  "), FAINT), Span::styled(reason, WARN)])
    }));
    lines
}

fn list(leases: &Leases, now: Instant, area: Rect, buffer: &mut Buffer) {
    let block = Block::new().borders(Borders::TOP).border_style(FAINT).title(title(leases));
    let visible = leases.visible();
    let room = usize::from(area.height.saturating_sub(2));
    let first = first_row(leases.selected, visible.len(), room);
    let since = leases.held.as_ref().map_or(now, |(_, since)| *since);
    let older = now.saturating_duration_since(since).as_secs_f64();
    let wide = area.width >= WIDE;
    let rows = visible.iter().enumerate().skip(first).take(room).map(|(index, lease)| {
        let row = row(lease, older, wide);
        if index == leases.selected { row.style(SELECTED) } else { row }
    });
    let number = wide.then_some(Constraint::Length(24));
    let widths = number.into_iter().chain([
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Min(16),
        Constraint::Length(14),
        Constraint::Length(10),
        Constraint::Length(11),
    ]);
    let headings = ["age", "service", "workers", "trace", "API key", "indexer", "state"];
    let headings = wide.then_some("lease").into_iter().chain(headings);
    Table::new(rows, widths)
        .header(Row::new(headings.map(Cell::new)).style(FAINT))
        .column_spacing(1)
        .block(block)
        .render(area, buffer);
}

fn title(leases: &Leases) -> Line<'static> {
    let order = match leases.order {
        AgeOrder::Newest => "youngest first",
        AgeOrder::Oldest => "oldest first",
    };
    let kinds = match leases.kinds {
        LeaseKinds::Session => "session",
        LeaseKinds::Worker => "worker",
        LeaseKinds::Any => "lease",
    };
    let (listed, total) = leases
        .held
        .as_ref()
        .map_or((0, 0), |(held, _)| (held.page.sessions.len() as u64, held.page.total));
    let mut spans = vec![
        Span::styled(format!(" {}", counted(total, kinds)), TITLE),
        Span::raw(format!(" · {order} ")),
    ];
    if listed < total {
        spans.push(Span::raw(format!("· the first {listed} ")));
    }
    if !leases.search.is_empty() {
        let matching = leases.visible().len();
        spans.push(Span::styled(format!("· search {:?}: {matching} ", leases.search), WARN));
    }
    Line::from(spans)
}

fn row(lease: &Session, older: f64, wide: bool) -> Row<'static> {
    let number = wide.then(|| Line::styled(plain(&lease.lease), FAINT));
    let is_worker = lease.kind == "worker";
    let workers = if is_worker { "worker".to_owned() } else { lease.workers.to_string() };
    let state = if lease.lingers {
        Line::styled(format!("lingers {}", span(lease.ends_in_seconds - older)), WARN)
    } else {
        Line::raw("live")
    };
    Row::new(number.into_iter().chain([
        Line::raw(span(lease.age_seconds + older)).right_aligned(),
        text(&lease.service),
        Line::raw(workers).right_aligned(),
        text(&lease.trace),
        text(&lease.api_key),
        text(lease.indexer.as_deref().unwrap_or("-")),
        state,
    ]))
}
