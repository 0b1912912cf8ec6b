//! Descriptions of changes, for the audit list, the log and the answer to the operator.

use std::borrow::Cow;

use policy::Source;
use policy::overrides::{OverrideKey, Subject};

/// A limit and its source in the policy.
pub(super) type SourcedLimit = (Option<u64>, Source);

/// Returns the id, in quotes unless it is one word of visible ASCII characters.
pub(super) fn quoted(id: &str) -> Cow<'_, str> {
    if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        id.into()
    } else {
        format!("{id:?}").into()
    }
}

/// The subject and its id, as in `organization acme`.
pub(super) fn subject_of(key: &OverrideKey) -> String {
    let subject = match key.subject {
        Subject::Organization => "organization",
        Subject::ApiKey => "API key",
    };
    format!("{subject} {}", quoted(&key.id))
}

/// Describes that a switch was set to `to`, or, for `None`, that the override `was` was cleared.
pub(super) fn describe_switch(key: &OverrideKey, to: Option<bool>, was: Option<bool>) -> String {
    let word = |disabled: bool| if disabled { "disabled" } else { "enabled" };
    let subject = subject_of(key);
    match (to, was) {
        (Some(to), _) => format!("{} {subject}", word(to)),
        (None, was) => {
            let was = word(was.unwrap_or_default());
            format!("cleared the override that {was} {subject}")
        }
    }
}

/// Describes that a limit was set to `to`, or, for `None`, cleared.
pub(super) fn describe_limit(key: &OverrideKey, to: Option<u64>, was: SourcedLimit) -> String {
    let (subject, service) = (subject_of(key), quoted(key.service.as_deref().unwrap_or_default()));
    let was = describe_max(was);
    match to {
        Some(to) => format!("set the limit of {subject} on {service} to {to} (was {was})"),
        None => format!("cleared the limit of {subject} on {service} (was {was})"),
    }
}

fn describe_max((max, source): SourcedLimit) -> String {
    match max {
        Some(max) => format!("{max} by {}", source.in_words()),
        None => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(subject: Subject, id: &str, service: Option<&str>) -> OverrideKey {
        OverrideKey { subject, id: id.into(), service: service.map(Into::into) }
    }

    #[test]
    fn changes_are_described_in_words() {
        let acme = key(Subject::Organization, "acme", None);
        assert_eq!(describe_switch(&acme, Some(true), None), "disabled organization acme");
        assert_eq!(describe_switch(&acme, Some(false), Some(true)), "enabled organization acme");
        assert_eq!(
            describe_switch(&acme, None, Some(true)),
            "cleared the override that disabled organization acme"
        );
        let limit = key(Subject::ApiKey, "key-1", Some("t1r"));
        assert_eq!(
            describe_limit(&limit, Some(4), (None, Source::Nothing)),
            "set the limit of API key key-1 on t1r to 4 (was none)"
        );
        assert_eq!(
            describe_limit(&limit, None, (Some(4), Source::Override)),
            "cleared the limit of API key key-1 on t1r (was 4 by an override)"
        );
    }

    #[test]
    fn an_id_that_is_not_one_plain_word_is_quoted() {
        assert_eq!(quoted("acme"), "acme");
        assert_eq!(quoted(""), "\"\"");
        assert_eq!(quoted("a b\n"), "\"a b\\n\"");
    }
}
