//! Deserializes a policy file, and finds all errors in it, not only the first one.

use std::ops::Range;

use serde::Deserialize as _;
use toml::Deserializer;
use toml::de::{DeArray, DeTable, DeValue};

use crate::file::File;
use crate::findings::{Findings, SourceText};

/// A file, as far as it could be read.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub(crate) file: File,
    pub(crate) removed: Removed,
}

/// The keys and the names of entries that were removed from a file because they are invalid. That
/// other parts of the file need them is no further error.
#[derive(Debug, Default)]
pub(crate) struct Removed(Vec<String>);

impl Removed {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|taken| taken == name)
    }
}

/// Reads `text`. After an error, the invalid entry is removed and the rest is read again, until there
/// is no room for more errors. After a syntax error the rest is not checked.
pub(crate) fn read(source: &SourceText<'_>, text: &str, findings: &mut Findings) -> Shape {
    let (mut root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        // One mistake may cause several errors on a line; only the first one is useful.
        findings.error_on_a_new_line(source.of_toml(error));
    }
    if !errors.is_empty() {
        return Shape::default();
    }
    let mut removed = Removed::default();
    loop {
        let error = match File::deserialize(Deserializer::from(root.clone())) {
            Ok(file) => return Shape { file, removed },
            Err(error) => error,
        };
        let missed = error.message().strip_prefix("missing field `");
        let missed = missed.and_then(|rest| rest.split_once('`'));
        if !missed.is_some_and(|(field, _)| removed.has(field)) {
            findings.error(source.of_toml(&error));
        }
        let span = error.span().unwrap_or(0..0);
        if findings.are_full() || !remove_entry(root.get_mut(), &span, &mut removed) {
            return Shape { file: File::default(), removed };
        }
    }
}

/// Removes the innermost entry at `span` from `table`, and returns whether there was one.
fn remove_entry(table: &mut DeTable<'_>, span: &Range<usize>, removed: &mut Removed) -> bool {
    let is_there = |range: Range<usize>| range.start <= span.start && span.start < range.end;
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let at = value.span();
        let within = match value.get_mut() {
            DeValue::Table(table) => remove_entry(table, span, removed),
            DeValue::Array(list) => remove_from_list(list, span, removed),
            _ => false,
        };
        if within {
            return true;
        }
        if is_there(key.span()) || is_there(at) {
            found = Some(key.get_ref().to_string());
            break;
        }
    }
    let Some(found) = found else { return false };
    table.remove(found.as_str());
    removed.0.push(found);
    true
}

/// As [`remove_entry`], for the tables in a list, or removes one of these tables.
fn remove_from_list(list: &mut DeArray<'_>, span: &Range<usize>, removed: &mut Removed) -> bool {
    let mut found = None;
    for (place, item) in list.iter_mut().enumerate() {
        let at = item.span();
        let DeValue::Table(table) = item.get_mut() else { continue };
        if remove_entry(table, span, removed) {
            return true;
        }
        if at.start <= span.start && span.start < at.end {
            found = Some(place);
        }
    }
    let Some(found) = found else { return false };
    let kept = list.iter().enumerate().filter(|(place, _)| *place != found);
    *list = kept.map(|(_, item)| item.clone()).collect();
    true
}
