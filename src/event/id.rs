//! Ids: of deliveries that come in, of messages that go out, of places to wait in.

use std::time::{Duration, SystemTime};

use data_encoding::{BASE32, HEXLOWER};
use sha2::{Digest, Sha256};
use url::Url;

use super::name::{Name, is_token};
use crate::clock::unix_seconds;

/// The longest provider id that is used as it is.
const MAX_PROVIDER_ID_BYTES: usize = 128;

/// The provider's delivery id: visible ASCII up to 128 bytes as it is, else its hash.
///
/// An empty id is no id: it would make every webhook of the source the same.
pub(crate) fn provider(id: &str) -> Option<String> {
    if id.is_empty() {
        return None;
    }
    if id.len() <= MAX_PROVIDER_ID_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(id.to_owned());
    }
    Some(format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(id))))
}

/// The delivery id of a webhook that brings none: equal bodies of one window have equal ids.
pub(crate) fn body(body: &[u8], received: SystemTime, window: Duration) -> String {
    let seconds = window.as_secs().max(1);
    let start = unix_seconds(received) / seconds * seconds;
    format!("sha256:{}:{start}", HEXLOWER.encode(&Sha256::digest(body)))
}

/// The id of an outbox message as it may stand in a subject and in `webhook-id`.
pub(crate) fn message(id: &str) -> String {
    if is_token(id) { id.to_owned() } else { format!("h_{}", base32(26, &[id.as_bytes()])) }
}

/// The id of an outbox message that brings none: the same for every reading of the same stored message.
///
/// `stored` is the time that the server gave the message.
pub(crate) fn stored_message(stream: &str, sequence: u64, stored: SystemTime) -> String {
    let nanos = stored.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("m_{}", base32(26, &[format!("{stream},{sequence},{nanos}").as_bytes()]))
}

/// The delivery id of one destination of a fan-out; `destination` is the endpoint's name.
pub(crate) fn fan_out(message_id: &str, destination: &str) -> String {
    format!("{message_id}-{}", base32(8, &[destination.as_bytes()]))
}

/// The subject token under which deliveries to an endpoint wait.
pub(crate) fn endpoint_token(endpoint: &Name) -> String {
    format!("e_{endpoint}")
}

/// The subject token under which callbacks to one origin (scheme, host, port) wait.
pub(crate) fn callback_token(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or(0);
    let origin = format!("{}://{}:{port}", url.scheme(), url.host_str().unwrap_or_default());
    format!("c_{}", &HEXLOWER.encode(&Sha256::digest(origin))[..16])
}

fn base32(length: usize, parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let mut text = BASE32.encode(&hash.finalize());
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_id_of_visible_ascii_is_kept() {
        assert_eq!(provider("evt_1:2.3").as_deref(), Some("evt_1:2.3"));
        assert_eq!(provider(&"x".repeat(128)).unwrap(), "x".repeat(128));
    }

    #[test]
    fn any_other_provider_id_is_hashed_and_an_empty_one_is_none() {
        assert!(provider("a b").unwrap().starts_with("sha256:"));
        assert!(provider(&"x".repeat(129)).unwrap().starts_with("sha256:"));
        assert_eq!(provider(""), None);
    }

    #[test]
    fn equal_bodies_share_an_id_only_within_a_window() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let window = Duration::from_secs(300);
        assert_eq!(body(b"x", at(600), window), body(b"x", at(899), window));
        assert_ne!(body(b"x", at(600), window), body(b"x", at(900), window));
        assert_ne!(body(b"x", at(600), window), body(b"y", at(600), window));
    }

    #[test]
    fn message_ids_with_dots_blanks_and_wildcards_are_hashed() {
        assert_eq!(message("planner-1"), "planner-1");
        for id in ["a.b", "a b", "*", ">", "", &"x".repeat(65)] {
            let safe = message(id);
            assert!(safe.starts_with("h_") && safe.len() == 28, "{id:?} became {safe}");
        }
        // base32 of SHA-256("a.b"), RFC 4648 alphabet.
        assert_eq!(message("a.b"), "h_FZZTNXEOXKD66RZN6VUMGVECVP");
    }

    #[test]
    fn callbacks_wait_by_origin() {
        let token = |url: &str| callback_token(&url.parse().unwrap());
        assert_eq!(token("https://a.example/x?y"), token("https://a.example:443/z"));
        assert_ne!(token("https://a.example/"), token("http://a.example/"));
        assert_ne!(token("https://a.example/"), token("https://a.example:8443/"));
    }
}
