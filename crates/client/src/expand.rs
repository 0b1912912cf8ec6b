//! `$VAR` and `${VAR}` in a session URL, replaced as Go's `os.ExpandEnv` replaces them.

/// Replaces every `$NAME` and `${NAME}` of `text` by what `lookup` knows; an unknown name gives
/// nothing, and a `$` before anything else stays.
///
/// The quirks are Go's, because the URLs in production were written for it: `$1` and `$$` name
/// variables too, `${}` and an unclosed `${` vanish, and the shell's `${NAME:-default}` looks for
/// a variable of that whole name.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> String) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = match name_at_start(behind) {
            Name::Variable { name, behind } => {
                expanded.push_str(&lookup(name));
                behind
            }
            Name::Broken { behind } => behind,
            Name::None => {
                expanded.push('$');
                behind
            }
        };
    }
    expanded.push_str(rest);
    expanded
}

/// What follows a `$`.
enum Name<'a> {
    Variable { name: &'a str, behind: &'a str },
    Broken { behind: &'a str },
    None,
}

fn name_at_start(text: &str) -> Name<'_> {
    if let Some(braced) = text.strip_prefix('{') {
        return match braced.split_once('}') {
            Some(("", behind)) => Name::Broken { behind },
            Some((name, behind)) => Name::Variable { name, behind },
            None => Name::Broken { behind: braced },
        };
    }
    let length = match text.bytes().next() {
        Some(b'*' | b'#' | b'$' | b'@' | b'!' | b'?' | b'-' | b'0'..=b'9') => 1,
        _ => {
            let in_name = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
            text.bytes().position(|byte| !in_name(byte)).unwrap_or(text.len())
        }
    };
    match text.split_at(length) {
        ("", _) => Name::None,
        (name, behind) => Name::Variable { name, behind },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lookup(name: &str) -> String {
        match name {
            "A" => "x".into(),
            "DOLLAR" => "$A".into(),
            _ => String::new(),
        }
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
            assert_eq!(expand(text, lookup), expanded, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_without_a_dollar_stays_as_it_is(text in "[^$]{0,60}") {
            prop_assert_eq!(expand(&text, lookup), text);
        }

        #[test]
        fn no_text_makes_the_expansion_panic(text in "[${}A-Bé1:*-]{0,24}") {
            let _ = expand(&text, lookup);
        }
    }
}
