//! Subjects, and the one function that makes a subject token out of anything from outside.

use super::name::{MAX_TOKEN_BYTES, Name, is_token_byte};

/// The most tokens that a type may give to a subject.
const MAX_TYPE_TOKENS: usize = 8;

/// Makes one subject token: every other byte becomes `_`, and what is over 64 bytes is cut.
///
/// An empty text gives an empty token, which is for the caller to leave out or to replace.
pub(crate) fn token(text: &str) -> String {
    let safe = |byte: u8| if is_token_byte(byte) { char::from(byte) } else { '_' };
    text.bytes().take(MAX_TOKEN_BYTES).map(safe).collect()
}

/// The longest type that fits into the tokens of a subject; what is over says nothing more.
pub(crate) const MAX_TYPE_BYTES: usize = MAX_TYPE_TOKENS * (MAX_TOKEN_BYTES + 1);

/// `events.<source>.<type>`. Dots and slashes of the type separate tokens; no type gives `unknown`.
pub(crate) fn event(source: &Name, event_type: Option<&str>) -> String {
    let mut subject = format!("events.{source}");
    let bare = subject.len();
    let parts = event_type.unwrap_or_default().split(['.', '/']).filter(|part| !part.is_empty());
    for part in parts.take(MAX_TYPE_TOKENS) {
        subject.push('.');
        subject.push_str(&token(part));
    }
    if subject.len() == bare {
        subject.push_str(".unknown");
    }
    subject
}

/// `receipts.<agent>.*.<delivery id>`: every receipt of a delivery.
pub(crate) fn receipts_of(agent: &str, delivery_id: &str) -> String {
    format!("receipts.{agent}.*.{delivery_id}")
}

/// The agent token of `outbox.<agent>…`, and the topic if there is one.
pub(crate) fn outbox(subject: &str) -> Option<(&str, Option<&str>)> {
    let rest = subject.strip_prefix("outbox.")?;
    Some(match rest.split_once('.') {
        Some((agent, topic)) => (agent, Some(topic)),
        None => (rest, None),
    })
}

/// Whether a NATS subject pattern, with `*` for one token and a last `>` for one or more, takes the subject.
pub(crate) fn matches(pattern: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in pattern.split('.') {
        let token = tokens.next();
        match (wanted, token) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether some subject is taken by both patterns. NATS refuses such filters on one consumer.
pub(crate) fn overlap(left: &str, right: &str) -> bool {
    let (mut left, mut right) = (left.split('.'), right.split('.'));
    loop {
        match (left.next(), right.next()) {
            (Some(">"), Some(_)) | (Some(_), Some(">")) | (None, None) => return true,
            (Some(one), Some(other)) if one == other || one == "*" || other == "*" => {}
            _ => return false,
        }
    }
}

/// Whether the text is a subject pattern that NATS takes: no empty token, no blank, `>` only at the end.
pub(crate) fn is_pattern(text: &str) -> bool {
    let tokens: Vec<&str> = text.split('.').collect();
    let last = tokens.len() - 1;
    tokens.iter().enumerate().all(|(index, token)| match *token {
        "" => false,
        ">" => index == last,
        "*" => true,
        token => !token.contains(['*', '>']) && token.bytes().all(|byte| byte.is_ascii_graphic()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event_subject(event_type: &str) -> String {
        event(&"github".parse().unwrap(), Some(event_type))
    }

    #[test]
    fn dots_and_slashes_separate_tokens_and_empty_ones_vanish() {
        assert_eq!(event_subject("issues.opened"), "events.github.issues.opened");
        assert_eq!(event_subject("/a//b..c."), "events.github.a.b.c");
    }

    #[test]
    fn no_type_is_unknown() {
        assert_eq!(event(&"github".parse().unwrap(), None), "events.github.unknown");
        assert_eq!(event_subject(""), "events.github.unknown");
        assert_eq!(event_subject("./."), "events.github.unknown");
    }

    #[test]
    fn wildcards_blanks_and_foreign_bytes_become_underscores() {
        assert_eq!(event_subject("a b.*.>"), "events.github.a_b._._");
        assert_eq!(event_subject("é\r\n"), "events.github.____");
    }

    #[test]
    fn a_type_gives_at_most_8_tokens_of_64_bytes() {
        let long = "x".repeat(100);
        assert_eq!(event_subject(&long), format!("events.github.{}", "x".repeat(64)));
        assert_eq!(event_subject("1.2.3.4.5.6.7.8.9"), "events.github.1.2.3.4.5.6.7.8");
    }

    #[test]
    fn patterns_match_as_nats_does() {
        for (pattern, subject, expected) in [
            ("outbox.*.ticket.>", "outbox.planner.ticket.new", true),
            ("outbox.*.ticket.>", "outbox.planner.ticket", false),
            ("outbox.*", "outbox.planner", true),
            ("outbox.*", "outbox.planner.x", false),
            ("outbox.>", "outbox.planner.x", true),
            ("outbox.a", "outbox.b", false),
        ] {
            assert_eq!(matches(pattern, subject), expected, "{pattern} against {subject}");
        }
    }

    #[test]
    fn patterns_overlap_when_one_subject_fits_both() {
        for (left, right, expected) in [
            ("events.>", "events.github.>", true),
            ("events.*.push", "events.github.*", true),
            ("events.github.>", "events.stripe.>", false),
            ("events.github", "events.github.>", false),
        ] {
            assert_eq!(overlap(left, right), expected, "{left} and {right}");
            assert_eq!(overlap(right, left), expected, "{right} and {left}");
        }
    }

    #[test]
    fn a_pattern_that_nats_would_refuse_is_not_one() {
        for good in ["outbox.>", "outbox.*.x", "a"] {
            assert!(is_pattern(good), "{good}");
        }
        for bad in ["", "a..b", ".a", "a.>.b", "a b", "a.b*", "a."] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }
}
