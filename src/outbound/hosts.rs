//! What a host's name says before anybody is asked about it.

/// Endings of names that mean something inside of a network and nothing outside of it: RFC 6761 and 6762, RFC 8375,
/// RFC 9476, ICANN's reservation of `internal`, and what networks are named without asking anybody. The metadata
/// servers of clouds have names beneath `internal`.
const INTERNAL: [&str; 14] = [
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "svc",
    "home.arpa",
    "alt",
    "onion",
    "invalid",
];

/// Whether a name can be looked up at all (RFC 1035, section 2.3.4).
pub(super) fn is_name(host: &str) -> bool {
    host.len() <= 253 && host.split('.').all(|label| (1..=63).contains(&label.len()))
}

/// Whether a name means something inside of a network only. Names with a single label are looked up there.
pub(super) fn is_internal(host: &str) -> bool {
    let beneath = |ending: &&str| host.strip_suffix(*ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !host.contains('.') || INTERNAL.iter().any(beneath)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_inside_are_single_labels_and_what_stands_beneath_reserved_endings() {
        for host in ["localhost", "a.localhost", "printer.local", "metadata.google.internal", "nas.home.arpa", "nats"] {
            assert!(is_internal(host), "{host}");
        }
        for host in ["example.com", "local.example.com", "notlocal.example", "mylocalhost.com", "arpa.home.example"] {
            assert!(!is_internal(host), "{host}");
        }
    }

    #[test]
    fn a_name_has_labels_of_1_to_63_bytes_and_at_most_253_in_all() {
        let name = |labels: usize, rest: usize| {
            format!("{}{}", format!("{}.", "a".repeat(63)).repeat(labels), "b".repeat(rest))
        };
        assert!(is_name("a") && is_name(&name(0, 63)) && is_name(&name(3, 61)));
        assert!(!is_name("") && !is_name("a..b") && !is_name(".a") && !is_name(&name(0, 64)) && !is_name(&name(3, 62)));
    }
}
