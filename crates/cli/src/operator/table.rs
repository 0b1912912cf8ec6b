//! Tables for people.

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Table};

use crate::output::{FAINT, styled};

/// A column of a table.
#[derive(Clone, Debug)]
pub(crate) struct Column<'a> {
    heading: &'a str,
    alignment: CellAlignment,
}

impl<'a> Column<'a> {
    /// A column of text.
    pub(crate) const fn text(heading: &'a str) -> Self {
        Self { heading, alignment: CellAlignment::Left }
    }

    /// A column of numbers.
    pub(crate) const fn number(heading: &'a str) -> Self {
        Self { heading, alignment: CellAlignment::Right }
    }
}

/// A table of `rows` under the headings of `columns`, as wide as needed, without a line break at its end.
/// Cells must not contain control characters.
pub(crate) fn table<R>(columns: &[Column<'_>], rows: impl IntoIterator<Item = R>) -> String
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns.iter().map(|column| column.heading));
    for row in rows {
        table.add_row(row.into_iter().map(Cell::new));
    }
    for (shown, column) in table.column_iter_mut().zip(columns) {
        shown.set_padding((0, 2)).set_cell_alignment(column.alignment);
    }
    let text = table.trim_fmt();
    match text.split_once('\n') {
        Some((headings, rows)) => format!("{}\n{rows}", styled(FAINT, headings)),
        None => styled(FAINT, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_aligned_to_the_left_and_numbers_to_the_right() {
        let rows = [["acme".to_owned(), "3".to_owned()], ["é".to_owned(), "1200".to_owned()]];
        let table = table(&[Column::text("organization"), Column::number("held")], rows);
        let plain = anstream::adapter::strip_str(&table).to_string();
        assert_eq!(plain, "organization  held\nacme             3\né             1200");
    }

    #[test]
    fn a_table_without_rows_is_its_headings() {
        let table = table(&[Column::text("lease")], [[]; 0]);
        assert_eq!(anstream::adapter::strip_str(&table).to_string(), "lease");
    }
}
