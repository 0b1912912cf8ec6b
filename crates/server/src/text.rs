//! Escapes text of callers, so that it is safe to display.
//!
//! Ids, notes and messages of callers may contain any character. Where people see them, characters that
//! are invisible, or change how the text around them is shown, are escaped: `\u{202e}` in text,
//! `\u202e` in JSON.

use std::borrow::Cow;
use std::fmt::Write as _;

pub use lease::amount_in_words;

/// Whether a character is visible and does not change how the text around it is shown.
///
/// Not plain are control characters, format characters (Unicode category Cf), separators of lines and
/// paragraphs (Zl, Zp), and ignorable characters (`Default_Ignorable_Code_Point`), as of Unicode 16.
///
/// ```
/// use tgm_session_server::text::is_plain;
///
/// assert!(is_plain('é') && is_plain(' '));
/// assert!(!is_plain('\u{202e}') && !is_plain('\n'));
/// ```
pub fn is_plain(char: char) -> bool {
    if char.is_control() {
        return false;
    }
    !matches!(char,
        // Ignorable, and most of the format characters.
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}'
        // Format characters that are not ignorable.
        | '\u{600}'..='\u{605}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
        // Separators of lines and paragraphs.
        | '\u{2028}'..='\u{2029}')
}

/// Escapes every character of `text` that is not plain. The result is one line.
///
/// ```
/// use tgm_session_server::text::plain;
///
/// assert_eq!(plain("pay\u{202e}load\n"), "pay\\u{202e}load\\n");
/// ```
pub fn plain(text: &str) -> Cow<'_, str> {
    plain_but(text, |_| false)
}

/// Like [`plain`], but characters that are `kept` are not escaped.
pub fn plain_but(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    escaped(text, kept, |plain, char| plain.extend(char.escape_default()))
}

/// Escapes every character of JSON text that is not plain. The values stay the same, and so do line
/// ends between them.
///
/// ```
/// use tgm_session_server::text::plain_json;
///
/// assert_eq!(plain_json("{\"id\":\"a\u{202e}\u{e0041}\"}"), r#"{"id":"a\u202e\udb40\udc41"}"#);
/// ```
pub fn plain_json(json: &str) -> Cow<'_, str> {
    // Outside of strings, the only characters of JSON that are not plain are white space.
    escaped(
        json,
        |char| matches!(char, '\n' | '\r' | '\t'),
        |plain, char| {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(plain, "\\u{unit:04x}");
            }
        },
    )
}

fn escaped(
    text: &str,
    kept: impl Fn(char) -> bool,
    escape: impl Fn(&mut String, char),
) -> Cow<'_, str> {
    let is_shown = |char| is_plain(char) || kept(char);
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || text.chars().all(is_shown) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_shown(char) { plain.push(char) } else { escape(&mut plain, char) }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_change_how_other_text_is_shown_are_escaped() {
        let hostile = [
            '\0',
            '\n',
            '\r',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{180e}',
            '\u{200b}',
            '\u{200d}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2064}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{fff9}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e007f}',
            '\u{3164}',
        ];
        for char in hostile {
            let text = format!("a{char}b");
            let escape = char.escape_default();
            assert_eq!(plain(&text), format!("a{escape}b"), "{char:?}");
            let json = plain_json(&text);
            assert!(json.chars().all(is_plain) || matches!(char, '\n' | '\r'), "{json:?}");
        }
    }

    #[test]
    fn names_in_every_script_stay_as_they_are() {
        for name in ["acme", "a b", "Zürich", "नमस्ते", "ไทย", "組織", "🦀", "e\u{301}"]
        {
            assert!(matches!(plain(name), Cow::Borrowed(shown) if shown == name), "{name}");
            assert_eq!(plain_json(name), name);
        }
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "id\u{202e}": ["a\u{200b}\u{e0041}\u{9b}", 1, null] });
        let json = serde_json::to_string_pretty(&value).unwrap();
        let plain = plain_json(&json);
        assert!(plain.chars().all(|char| is_plain(char) || char == '\n'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&plain).unwrap(), value);
    }
}
