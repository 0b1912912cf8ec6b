//! What was done, in words: for the audit list, the log and whoever did it.

use std::borrow::Cow;

use policy::Source;
use policy::overrides::{OverrideKey, Subject};

/// A ceiling and where it comes from, as the policy tells them.
pub(super) type Ceiling = (Option<u64>, Source);

/// An id as it is told: quoted when it is not one plain word.
pub(super) fn name(id: &str) -> Cow<'_, str> {
    if !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        id.into()
    } else {
        format!("{id:?}").into()
    }
}

/// `organization acme`.
pub(super) fn whom(key: &OverrideKey) -> String {
    let subject = match key.subject {
        Subject::Organization => "organization",
        Subject::ApiKey => "API key",
    };
    format!("{subject} {}", name(&key.id))
}

/// Says that a switch was set to `to`, or, for `None`, cleared of `was`.
pub(super) fn switched(key: &OverrideKey, to: Option<bool>, was: Option<bool>) -> String {
    let word = |disabled: bool| if disabled { "disabled" } else { "enabled" };
    let whom = whom(key);
    match (to, was) {
        (Some(to), _) => format!("{} {whom}", word(to)),
        (None, was) => {
            let was = word(was.unwrap_or_default());
            format!("cleared the override that {was} {whom}")
        }
    }
}

/// Says that a limit was set to `to`, or, for `None`, cleared.
pub(super) fn limited(key: &OverrideKey, to: Option<u64>, was: Ceiling) -> String {
    let (whom, service) = (whom(key), name(key.service.as_deref().unwrap_or_default()));
    match to {
        Some(to) => {
            format!("set the limit of {whom} on {service} to {to} (was {})", ceiling(was))
        }
        None => format!("cleared the limit of {whom} on {service} (was {})", ceiling(was)),
    }
}

fn ceiling((max, source): Ceiling) -> String {
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
    fn what_was_done_is_said_in_words() {
        let acme = key(Subject::Organization, "acme", None);
        assert_eq!(switched(&acme, Some(true), None), "disabled organization acme");
        assert_eq!(switched(&acme, Some(false), Some(true)), "enabled organization acme");
        assert_eq!(
            switched(&acme, None, Some(true)),
            "cleared the override that disabled organization acme"
        );
        let limit = key(Subject::ApiKey, "key-1", Some("t1r"));
        assert_eq!(
            limited(&limit, Some(4), (None, Source::Nothing)),
            "set the limit of API key key-1 on t1r to 4 (was none)"
        );
        assert_eq!(
            limited(&limit, None, (Some(4), Source::Override)),
            "cleared the limit of API key key-1 on t1r (was 4 by an override)"
        );
    }

    #[test]
    fn an_id_that_is_not_one_plain_word_is_quoted() {
        assert_eq!(name("acme"), "acme");
        assert_eq!(name(""), "\"\"");
        assert_eq!(name("a b\n"), "\"a b\\n\"");
    }
}
