//! Reading the shape of a policy file, and telling everything in it that has another shape.

use std::ops::Range;

use serde::Deserialize as _;
use toml::Deserializer;
use toml::de::{DeArray, DeTable, DeValue};

use crate::file::File;
use crate::findings::{Findings, Source};

/// A file as far as it could be read.
#[derive(Debug, Default)]
pub(crate) struct Shape {
    pub(crate) file: File,
    pub(crate) taken_out: TakenOut,
}

/// What was taken out of a file because it is wrong: keys and the names of entries. What is missed
/// because of that is no further error.
#[derive(Debug, Default)]
pub(crate) struct TakenOut(Vec<String>);

impl TakenOut {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|taken| taken == name)
    }
}

/// Reads `text`. After an error, what is wrong is taken out and the rest is read again, as often as
/// there is room for errors; after an error of the syntax nothing can be said about the rest.
pub(crate) fn read(source: &Source<'_>, text: &str, findings: &mut Findings) -> Shape {
    let (mut root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        // One slip may be several errors where it stands: the first one says it.
        findings.error_on_a_new_line(source.of_toml(error));
    }
    if !errors.is_empty() {
        return Shape::default();
    }
    let mut taken_out = TakenOut::default();
    loop {
        let error = match File::deserialize(Deserializer::from(root.clone())) {
            Ok(file) => return Shape { file, taken_out },
            Err(error) => error,
        };
        let missed = error.message().strip_prefix("missing field `");
        let missed = missed.and_then(|rest| rest.split_once('`'));
        if !missed.is_some_and(|(field, _)| taken_out.has(field)) {
            findings.error(source.of_toml(&error));
        }
        let span = error.span().unwrap_or(0..0);
        if findings.are_full() || !take_out(root.get_mut(), &span, &mut taken_out) {
            return Shape { file: File::default(), taken_out };
        }
    }
}

/// Takes the innermost entry that stands at `span` out of `table`, and answers whether there was one.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>, taken_out: &mut TakenOut) -> bool {
    let is_there = |range: Range<usize>| range.start <= span.start && span.start < range.end;
    let mut found = None;
    for (key, value) in table.iter_mut() {
        let at = value.span();
        let within = match value.get_mut() {
            DeValue::Table(table) => take_out(table, span, taken_out),
            DeValue::Array(list) => take_out_of_list(list, span, taken_out),
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
    taken_out.0.push(found);
    true
}

/// As [`take_out`], of the tables in a list, or one of them.
fn take_out_of_list(list: &mut DeArray<'_>, span: &Range<usize>, taken_out: &mut TakenOut) -> bool {
    let mut found = None;
    for (place, item) in list.iter_mut().enumerate() {
        let at = item.span();
        let DeValue::Table(table) = item.get_mut() else { continue };
        if take_out(table, span, taken_out) {
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
