//! The list of organizations.

use std::collections::BTreeSet;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Row, Table, Widget as _};
use tgm_session_server::api::{Organization, OrganizationOrder};

use super::parts::{CELLS, FAINT, SELECTED, TITLE, WARN, bar, first_row, share, text};
use super::state::App;
use crate::operator::words::{budget, refused, tightest, used};
use crate::output::plain;

/// Wide enough for a bar and two numbers.
const SERVICE: u16 = CELLS + 12;
const NAME: u16 = 20;
const PLAN: u16 = 10;
const BUDGET: u16 = CELLS + 26;
const REFUSED: u16 = 7;

/// Draws the list into `area`.
pub(super) fn draw(app: &App, area: Rect, buffer: &mut Buffer) {
    let list = &app.organizations;
    let block = Block::new().borders(Borders::TOP).border_style(FAINT).title(title(app));
    let room = usize::from(area.height.saturating_sub(2));
    let first = first_row(list.selected, list.count(), room);
    let rows: Vec<_> = (first..list.count().min(first + room))
        .map(|index| (index == list.selected, list.row(index)))
        .collect();
    let columns = Columns::new(app, area.width);
    let shown = rows.iter().map(|(selected, row)| {
        // A row that has not been fetched yet.
        let shown = row.map_or_else(|| Row::new([Cell::new("…")]), |row| columns.row(row));
        if *selected { shown.style(SELECTED) } else { shown }
    });
    Table::new(shown, columns.widths())
        .header(columns.header())
        .column_spacing(1)
        .block(block)
        .render(area, buffer);
}

fn title(app: &App) -> Line<'static> {
    let list = &app.organizations;
    let order = match list.order {
        OrganizationOrder::Fullest => "fullest first",
        OrganizationOrder::Active => "most leases first",
        OrganizationOrder::Refused => "most refused first",
        OrganizationOrder::Name => "by name",
    };
    let place = if list.total == 0 { 0 } else { list.selected + 1 };
    let mut spans = vec![
        Span::styled(format!(" {place} of {} organizations", list.total), TITLE),
        Span::raw(format!(" · {order} ")),
    ];
    if !list.search.is_empty() {
        spans.push(Span::styled(format!("· search {:?} ", list.search), WARN));
    }
    Line::from(spans)
}

/// The columns that fit.
struct Columns {
    services: Vec<String>,
    /// How many services have no column.
    hidden: usize,
    plan: bool,
    budget: bool,
}

impl Columns {
    /// Services come first, then budgets, then plans.
    fn new(app: &App, width: u16) -> Self {
        let services = services(app);
        let mut left = width.saturating_sub(NAME + 1 + REFUSED + 1);
        let mut takes = |column: u16| {
            let fits = left > column;
            if fits {
                left -= column + 1;
            }
            fits
        };
        let shown = services.iter().take_while(|_| takes(SERVICE)).count();
        let (budget, plan) = (takes(BUDGET), takes(PLAN));
        let hidden = services.len() - shown;
        Self { services: services.into_iter().take(shown).collect(), hidden, plan, budget }
    }

    fn widths(&self) -> Vec<Constraint> {
        let mut widths = vec![Constraint::Min(NAME)];
        widths.extend(self.plan.then_some(Constraint::Length(PLAN)));
        widths.extend(self.services.iter().map(|_| Constraint::Length(SERVICE)));
        widths.extend(self.budget.then_some(Constraint::Length(BUDGET)));
        widths.push(Constraint::Length(REFUSED));
        widths
    }

    fn header(&self) -> Row<'static> {
        let mut cells = vec![match self.hidden {
            0 => Line::raw("organization"),
            hidden => Line::raw(format!("organization (+{hidden} hidden)")),
        }];
        cells.extend(self.plan.then(|| Line::raw("plan")));
        cells.extend(self.services.iter().map(|service| text(service)));
        cells.extend(self.budget.then(|| Line::raw("budget used")));
        cells.push(Line::raw("refused").right_aligned());
        Row::new(cells).style(FAINT)
    }

    fn row(&self, row: &Organization) -> Row<'static> {
        let name = plain(&row.organization);
        let mut cells = vec![match row.disabled.disabled {
            true => Line::styled(format!("{name} (disabled)"), WARN),
            false => Line::raw(name),
        }];
        cells.extend(self.plan.then(|| text(row.plan.as_deref().unwrap_or("-"))));
        cells.extend(self.services.iter().map(|name| {
            let service = row.services.iter().find(|service| service.service == *name);
            service.map_or_else(
                || Line::styled("-", FAINT),
                |service| Line::from(bar(service.active, service.ceiling.max)),
            )
        }));
        cells.extend(self.budget.then(|| match tightest(&row.budgets) {
            Some(tightest) => {
                let mut spans = share(used(tightest));
                spans.push(Span::raw(format!(" {}", plain(&budget(tightest)))));
                Line::from(spans)
            }
            None => Line::styled("-", FAINT),
        }));
        cells.push(match refused(&row.refusals) {
            0 => Line::styled("0", FAINT).right_aligned(),
            count => Line::styled(count.to_string(), WARN).right_aligned(),
        });
        Row::new(cells)
    }
}

/// The services in the order of the policy, then services that only the rows name.
fn services(app: &App) -> Vec<String> {
    let listed = app.overview.iter().flat_map(|overview| &overview.services);
    let mut services: Vec<String> =
        listed.map(|row| row.service.clone()).filter(|service| service != "default").collect();
    let rows = app.organizations.rows.iter();
    let held: BTreeSet<&str> =
        rows.flat_map(|row| &row.services).map(|service| &*service.service).collect();
    let others: Vec<_> =
        held.into_iter().filter(|held| !services.iter().any(|known| known == held)).collect();
    services.extend(others.into_iter().map(str::to_owned));
    services
}
