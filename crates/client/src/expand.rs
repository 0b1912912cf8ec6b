//! `$VAR` and `${VAR}` in a session URL, replaced as Go's `os.ExpandEnv` replaces them.

use std::ops::Range;

/// A text with its variables replaced, and the place of each value in it.
#[derive(Clone)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    /// In the order of the text.
    pub(crate) variables: Vec<Variable>,
}

/// A variable of the text, and the place of its value.
#[derive(Clone)]
pub(crate) struct Variable {
    /// As it was written, `$NAME` or `${NAME}`.
    pub(crate) written: String,
    /// Where its value is in the text.
    pub(crate) place: Range<usize>,
    /// Whether there is such a variable.
    pub(crate) is_set: bool,
}

impl Expanded {
    /// A text without variables.
    pub(crate) fn plain(text: &str) -> Self {
        Self { text: text.to_owned(), variables: Vec::new() }
    }

    /// Returns a part of the text with its variables as they were written; `None` if it has none.
    pub(crate) fn shown(&self, part: Range<usize>) -> Option<String> {
        let mut shown: Option<String> = None;
        let mut from = part.start;
        for Variable { written, place, .. } in &self.variables {
            let overlaps = place.start < part.end && place.end > part.start;
            // An empty value lies between two bytes, or at an end.
            let touches = place.is_empty() && part.start <= place.start && place.start <= part.end;
            if overlaps || touches {
                let shown = shown.get_or_insert_default();
                shown.push_str(&self.text[from..place.start.max(from)]);
                shown.push_str(written);
                from = place.end.clamp(from, part.end);
            }
        }
        let mut shown = shown?;
        shown.push_str(&self.text[from..part.end]);
        Some(shown)
    }
}

/// Replaces every `$NAME` and `${NAME}` of `text` by the value that `lookup` returns. An unknown name
/// is replaced by nothing, and any other `$` stays. `None` when the text is longer than `most` bytes.
///
/// The quirks are Go's, because the URLs in production were written for it: `$1` and `$$` name
/// variables too, `${}` and an unclosed `${` vanish, and the shell's `${NAME:-default}` looks for
/// a variable of that whole name.
pub(crate) fn expand(
    text: &str,
    most: usize,
    lookup: impl Fn(&str) -> Option<String>,
) -> Option<Expanded> {
    let mut expanded = Expanded { text: String::with_capacity(text.len()), variables: Vec::new() };
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        expanded.text.push_str(before);
        rest = match name_at_start(behind) {
            Some(("", left)) => left,
            Some((name, left)) => {
                let value = lookup(name);
                let start = expanded.text.len();
                expanded.text.push_str(value.as_deref().unwrap_or_default());
                expanded.variables.push(Variable {
                    written: format!("${}", &behind[..behind.len() - left.len()]),
                    place: start..expanded.text.len(),
                    is_set: value.is_some(),
                });
                left
            }
            None => {
                expanded.text.push('$');
                behind
            }
        };
        if expanded.text.len() > most {
            return None;
        }
    }
    expanded.text.push_str(rest);
    (expanded.text.len() <= most).then_some(expanded)
}

/// Splits what follows a `$` into a name and the rest. The name of `${}` and of an unclosed `${` is
/// empty; `None` when the `$` stays.
fn name_at_start(text: &str) -> Option<(&str, &str)> {
    if let Some(braced) = text.strip_prefix('{') {
        return Some(braced.split_once('}').unwrap_or(("", braced)));
    }
    let length = match text.bytes().next() {
        Some(b'*' | b'#' | b'$' | b'@' | b'!' | b'?' | b'-' | b'0'..=b'9') => 1,
        _ => {
            let in_name = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
            text.bytes().position(|byte| !in_name(byte)).unwrap_or(text.len())
        }
    };
    (length > 0).then(|| text.split_at(length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 1024;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("x".into()),
            "DOLLAR" => Some("$A".into()),
            "EMPTY" => Some(String::new()),
            "LONG" => Some("long".repeat(5)),
            _ => None,
        }
    }

    fn expanded(text: &str) -> Expanded {
        expand(text, MOST, lookup).unwrap()
    }

    #[test]
    fn variables_are_replaced_as_go_replaces_them() {
        // Each line was printed by Go's os.ExpandEnv with A=x and DOLLAR=$A.
        for (text, expanded) in [
            ("", ""),
            ("plain", "plain"),
            ("$A$A", "xx"),
            ("${A}B", "xB"),
            ("${A}}", "x}"),
            ("$AB", ""),
            ("é$A", "éx"),
            ("$é", "$é"),
            ("${é}", ""),
            ("a$", "a$"),
            ("$}", "$}"),
            ("$.b", "$.b"),
            ("$", "$"),
            ("${", ""),
            ("${A", "A"),
            ("${}", ""),
            ("${}x", "x"),
            ("$$A", "A"),
            ("$${A}", "{A}"),
            ("$1a", "a"),
            ("$*", ""),
            ("${-}", ""),
            ("$-x", "x"),
            ("${A:-d}", ""),
            ("${ A}", ""),
            ("$DOLLAR", "$A"),
        ] {
            assert_eq!(super::expand(text, MOST, lookup).unwrap().text, expanded, "{text}");
        }
    }

    #[test]
    fn a_part_is_shown_with_the_variables_that_it_has_as_they_were_written() {
        let text = expanded("one$LONG-two${EMPTY}three$UNSET");
        assert_eq!(text.text, format!("one{}-twothree", "long".repeat(5)));
        let all = 0..text.text.len();
        assert_eq!(text.shown(all).as_deref(), Some("one$LONG-two${EMPTY}three$UNSET"));
        assert_eq!(text.shown(0..3), None);
        assert_eq!(text.shown(23..26), None);
        // A part of a variable's value is shown as the whole variable.
        assert_eq!(text.shown(0..5).as_deref(), Some("one$LONG"));
        assert_eq!(text.shown(5..8).as_deref(), Some("$LONG"));
        assert_eq!(text.shown(20..25).as_deref(), Some("$LONG-t"));
        assert_eq!(text.shown(25..30).as_deref(), Some("wo${EMPTY}thr"));
        let unset: Vec<_> = text.variables.iter().map(|variable| variable.is_set).collect();
        assert_eq!(unset, [true, true, false]);
    }

    #[test]
    fn a_text_grows_no_longer_than_it_may() {
        let asked = std::cell::Cell::new(0);
        let text = "$LONG".repeat(1000);
        let long = expand(&text, 60, |name| {
            asked.set(asked.get() + 1);
            lookup(name)
        });
        assert!(long.is_none());
        assert_eq!(asked.get(), 4);
        assert!(expand(&"x".repeat(61), 60, lookup).is_none());
    }

    proptest! {
        #[test]
        fn the_value_of_a_variable_is_shown_in_no_part(
            text in "[ab$]{0,6}(\\$SECRET|\\$\\{SECRET\\}|[a-c/]){0,6}", from in 0_usize..60, to in 0_usize..60
        ) {
            let text = expand(&text, MOST, |name| (name == "SECRET").then(|| "0123456789".into()));
            let text = text.unwrap();
            let from = from.min(text.text.len());
            let to = to.clamp(from, text.text.len());
            let shown = text.shown(from..to).unwrap_or_else(|| text.text[from..to].to_owned());
            prop_assert!(!shown.contains(|character: char| character.is_ascii_digit()), "{}", shown);
        }

        #[test]
        fn a_text_without_a_dollar_stays_as_it_is(text in "[^$]{0,60}") {
            prop_assert_eq!(expanded(&text).text, text);
        }

        #[test]
        fn no_text_makes_the_expansion_panic(text in "[${}A-Bé1:*-]{0,24}") {
            let _ = expand(&text, MOST, lookup);
        }
    }
}
