//! The results of a run: tables for people, the same as JSON, and the goals.

use std::fmt;

use serde_json::{Map, Value, json};

/// One value of a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A text.
    Text(String),
    /// A number, shown with so many decimals.
    Number(f64, usize),
    /// No value.
    Empty,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.pad(text),
            Self::Number(value, 0) => f.pad(&grouped(*value)),
            Self::Number(value, decimals) => f.pad(&format!("{value:.decimals$}")),
            Self::Empty => f.pad(""),
        }
    }
}

/// Whole numbers with a comma between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A titled table.
#[derive(Clone, Debug)]
pub struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds one row, a cell for each column.
    pub fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len(), "a row of {:?}", self.title);
        self.rows.push(cells.into());
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(row).filter_map(|(column, cell)| match cell {
                Cell::Text(text) => Some(((*column).to_owned(), json!(text))),
                Cell::Number(value, _) => Some(((*column).to_owned(), json!(value))),
                Cell::Empty => None,
            });
            Value::Object(cells.collect::<Map<String, Value>>())
        });
        json!({ "title": self.title, "rows": rows.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        let shown: Vec<Vec<String>> =
            self.rows.iter().map(|row| row.iter().map(Cell::to_string).collect()).collect();
        let width = |column: usize| {
            let cells = shown.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        // Text is aligned to the left, numbers to the right, and a heading like its column.
        let left: Vec<bool> = (0..self.columns.len())
            .map(|column| self.rows.iter().all(|row| !matches!(row[column], Cell::Number(..))))
            .collect();
        let mut line = |cells: &[String]| {
            let mut text = String::from("  ");
            for ((cell, width), left) in cells.iter().zip(&widths).zip(&left) {
                let padded =
                    if *left { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
                text.push_str(&padded);
            }
            writeln!(f, "{}", text.trim_end())
        };
        let headings: Vec<String> =
            self.columns.iter().map(|&heading| heading.to_owned()).collect();
        line(&headings)?;
        shown.iter().try_for_each(|row| line(row))
    }
}

/// The bound of a goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

/// A figure and its bound.
#[derive(Clone, Debug)]
struct Goal {
    name: String,
    value: f64,
    decimals: usize,
    bound: Bound,
}

impl Goal {
    fn met(&self) -> bool {
        match self.bound {
            Bound::AtMost(most) => self.value <= most,
            Bound::AtLeast(least) => self.value >= least,
        }
    }
}

/// All results of one run.
#[derive(Debug, Default)]
pub struct Report {
    facts: Vec<(&'static str, String)>,
    tables: Vec<Table>,
    goals: Vec<Goal>,
}

impl Report {
    /// Adds a fact about the run, and prints it.
    pub fn fact(&mut self, name: &'static str, value: impl Into<String>) {
        let value = value.into();
        println!("{name}: {value}");
        self.facts.push((name, value));
    }

    /// Adds a table, and prints it.
    pub fn table(&mut self, table: Table) {
        println!("\n{table}");
        self.tables.push(table);
    }

    /// Adds a figure and its bound.
    pub fn goal(&mut self, name: impl Into<String>, value: f64, decimals: usize, bound: Bound) {
        self.goals.push(Goal { name: name.into(), value, decimals, bound });
    }

    /// A table of the goals and the measured figures.
    pub fn goals(&self) -> Table {
        let met = self.goals.iter().filter(|goal| goal.met()).count();
        let title = format!("Goals: {met} of {} met", self.goals.len());
        let mut table = Table::new(title, &["what", "measured", "", "goal", "verdict"]);
        for goal in &self.goals {
            let (sign, bound) = match goal.bound {
                Bound::AtMost(bound) => ("≤", bound),
                Bound::AtLeast(bound) => ("≥", bound),
            };
            table.row([
                goal.name.as_str().into(),
                Cell::Number(goal.value, goal.decimals),
                sign.into(),
                Cell::Number(bound, goal.decimals),
                if goal.met() { "met" } else { "not met" }.into(),
            ]);
        }
        table
    }

    /// The whole report.
    pub fn json(&self) -> Value {
        let facts = self.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
        let goals = self.goals.iter().map(|goal| {
            let bound = match goal.bound {
                Bound::AtMost(bound) => json!({ "at_most": bound }),
                Bound::AtLeast(bound) => json!({ "at_least": bound }),
            };
            json!({ "name": goal.name, "value": goal.value, "goal": bound, "met": goal.met() })
        });
        json!({
            "facts": facts.collect::<Map<String, Value>>(),
            "tables": self.tables.iter().map(Table::json).collect::<Vec<_>>(),
            "goals": goals.collect::<Vec<_>>(),
        })
    }
}

/// The middle of `values`, or the mean of the two in the middle; `NaN` of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len() / 2, values.len() % 2) {
        (0, 0) => f64::NAN,
        (middle, 0) => f64::midpoint(values[middle - 1], values[middle]),
        (middle, _) => values[middle],
    }
}

/// The least value that so many percent of all values are not above; NaN without values.
pub fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_with_grouped_thousands() {
        let mut table = Table::new("Speed", &["server", "per second", "ratio"]);
        table.row(["reference".into(), Cell::Number(213_000.4, 0), Cell::Number(1.0, 2)]);
        table.row(["memory:".into(), Cell::Number(999.0, 0), Cell::Empty]);
        assert_eq!(
            table.to_string(),
            "Speed\n  server     per second  ratio\n  reference     213,000   1.00\n  memory:           999\n"
        );
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(-123.0), "-123");
    }

    #[test]
    fn a_percentile_is_never_below_the_median() {
        assert!(percentile(vec![], 90).is_nan());
        for (count, expected) in [(1, 1.0), (2, 2.0), (4, 4.0), (10, 9.0), (30, 27.0)] {
            let values: Vec<f64> = (1..=count).map(f64::from).rev().collect();
            assert!((percentile(values.clone(), 90) - expected).abs() < 1e-9, "{count}");
            assert!(percentile(values.clone(), 90) >= median(values), "{count}");
        }
    }

    #[test]
    fn a_goal_is_met_on_its_good_side_only() {
        let mut report = Report::default();
        report.goal("ratio", 1.19, 2, Bound::AtMost(1.18));
        report.goal("borrows", 40_000.0, 0, Bound::AtLeast(40_000.0));
        let json = report.json();
        assert_eq!(json["goals"][0]["met"], false);
        assert_eq!(json["goals"][1]["met"], true);
        assert!(report.goals().to_string().starts_with("Goals: 1 of 2 met\n"));
    }

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between_the_two_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
