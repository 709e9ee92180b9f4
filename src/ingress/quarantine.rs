//! Rejected webhooks, kept for people to study: `[sources.<name>] quarantine = true`.
//!
//! The sender of a 401 is told nothing, and a log line has no body, so somebody who sets up a source and gets the
//! signature wrong sees neither what was sent nor how it was signed. Here is both, with the precise reason.
//!
//! Keeping is a favour. It happens after the answer is decided, in tasks of its own; what there is no room for,
//! and what the stream does not confirm, is counted and forgotten. Strangers decide what comes here, so there is a
//! limit on how often, how many at once, and how much of each.
//!
//! **No message holds a secret.** Left out are headers and parameters that are one by what the source says, or
//! may be one by their name, and whatever repeats one of those or one of the source's own secrets. Codes made with
//! a secret are shown: they are what one wants to study.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use percent_encoding::{CONTROLS, percent_decode, utf8_percent_encode};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use url::form_urlencoded;

use super::peer::Sender;
use super::source::Source;
use crate::broker::{Broker, Outgoing};
use crate::clock::rfc3339;
use crate::config::{self, HEADER_ROOM};
use crate::event::place::Scope;
use crate::event::{Headers, Name, Place, Request};
use crate::secret::{KeyError, KeyRing, Secret, SecretEntry};
use crate::signature::{Profile, Rejection};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::RequestLabels;

/// How many messages of one gateway are on their way to the stream at once.
const IN_FLIGHT: usize = 16;
/// How many of one source's requests are kept a second.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(10).unwrap();
/// And how many of them at once.
const BURST: NonZeroU32 = NonZeroU32::new(50).unwrap();
/// The most bytes of a body that are kept.
const MAX_BODY: usize = 64 * 1024;
/// The most bytes of a body that are looked through for secrets. A secret has at most 64 KiB, so none can stand
/// half in what is kept without being seen.
const MAX_LOOKED_AT: usize = 2 * MAX_BODY;
/// The most request headers that are kept.
const MAX_HEADERS: usize = 64;
/// And their bytes, all together.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// The most bytes of a query that are kept.
const MAX_QUERY: usize = 4 * 1024;
/// The most bytes of the names of what was left out.
const MAX_LEFT_OUT: usize = 1024;
/// What stands in place of a secret.
const HIDDEN: &str = "***";
/// What is shorter is no secret of a request's, but a word that stands everywhere.
const SHORTEST: usize = 4;
/// The most values of one request that are looked for elsewhere in it. Honest senders have one or two.
const MAX_FOUND: usize = 8;
/// Headers that are secrets whatever a source says.
const SECRET_HEADERS: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];
/// Words in the name, hyphens and underscores left out, of what may well be a secret.
const SECRET_WORDS: [&str; 11] = [
    "accesskey",
    "apikey",
    "authorization",
    "cookie",
    "credential",
    "jwt",
    "passwd",
    "password",
    "secret",
    "session",
    "token",
];

/// Where rejected requests go. All handles share one set of places.
#[derive(Clone)]
pub(crate) struct Quarantine {
    broker: Broker,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    /// How long the stream may take to confirm.
    wait: Duration,
}

impl Quarantine {
    pub(crate) fn new(gateway: &config::Gateway, broker: Broker) -> Self {
        let places = Arc::new(Semaphore::new(IN_FLIGHT));
        Self { broker, places, tasks: TaskTracker::new(), wait: gateway.publish_timeout }
    }

    /// Keeps a rejected request if its source wants that and there is room. Waits for nothing.
    pub(super) fn keep(
        &self,
        source: &Source,
        sender: Sender,
        head: &Parts,
        body: &Bytes,
        why: &Rejection,
        received: SystemTime,
    ) {
        let Some(ward) = source.quarantine.clone() else { return };
        let ready = self.broker.is_ready();
        let (Some(ready), Ok(place)) = (ready, self.places.clone().try_acquire_owned()) else {
            ward.dropped.inc();
            return;
        };
        if ward.rate.check().is_err() {
            ward.dropped.inc();
            return;
        }
        let rejected = Rejected {
            sender,
            method: head.method.clone(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers.clone(),
            // A copy, so that a large body is not held beyond its place in the budget.
            body: Bytes::copy_from_slice(&body[..body.len().min(MAX_LOOKED_AT)]),
            body_bytes: body.len(),
            why: why.clone(),
            received,
        };
        let (broker, wait) = (self.broker.clone(), self.wait);
        self.tasks.spawn(async move {
            let kept = rejected.store(&ward, &broker, wait, ready.max_payload).await;
            if kept {
                ward.kept.inc()
            } else {
                ward.dropped.inc()
            };
            drop(place);
        });
    }

    /// Waits for what is on its way. Call it when no more requests come.
    pub(crate) async fn finish(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// How one source's rejected requests are kept.
pub(super) struct Ward {
    source: Name,
    /// Everything that the source keeps secret.
    pub(super) secrets: Arc<KeyRing<Secret>>,
    /// Where secrets stand in an event, and in a handshake.
    secret_places: [Vec<Place>; 2],
    /// Where codes stand.
    code_places: Vec<Place>,
    rate: DefaultDirectRateLimiter,
    kept: Counter,
    dropped: Counter,
}

impl Ward {
    pub(super) fn new(
        name: &Name,
        source: &config::Source,
        profile: &Profile,
        metrics: &Metrics,
    ) -> Result<Self, KeyError> {
        let tokens = source.path_token.iter().chain(&source.verify_token).cloned().map(SecretEntry::from);
        let secrets: Vec<SecretEntry> = source.secrets.iter().cloned().chain(tokens).collect();
        let counted =
            |outcome| metrics.quarantined.get_or_create_owned(&RequestLabels { source: name.to_string(), outcome });
        Ok(Self {
            source: name.clone(),
            // A provider that chooses its secret may not have sent it yet.
            secrets: Arc::new(KeyRing::load_present(secrets, |secret| Ok(secret.clone()))?),
            secret_places: [
                profile.secret_places().cloned().collect(),
                profile.handshake_secret_places().cloned().collect(),
            ],
            code_places: profile.code_places().cloned().collect(),
            rate: RateLimiter::direct(Quota::per_second(PER_SECOND).allow_burst(BURST)),
            kept: counted("kept"),
            dropped: counted("dropped"),
        })
    }

    fn hides_header(&self, name: &HeaderName) -> bool {
        let is_it = |place: &Place| match place {
            Place::Header(header) => header == name,
            Place::Numbered(header) => name.as_str().starts_with(header.as_str()),
            _ => false,
        };
        SECRET_HEADERS.contains(&name.as_str()) || self.hides(name.as_str(), is_it)
    }

    fn hides_parameter(&self, name: &str) -> bool {
        self.hides(name, |place| matches!(place, Place::Query(parameter) if parameter == name))
    }

    /// What the source says of a place counts, and the name where it says nothing.
    fn hides(&self, name: &str, is_it: impl Fn(&Place) -> bool) -> bool {
        self.secret_places.iter().flatten().any(&is_it) || (may_be_secret(name) && !self.code_places.iter().any(&is_it))
    }
}

fn may_be_secret(name: &str) -> bool {
    let bare: String = name.chars().filter(|c| !matches!(c, '-' | '_')).collect::<String>().to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| bare.contains(word))
}

/// A rejected request, as much of it as is looked at.
struct Rejected {
    sender: Sender,
    method: Method,
    query: Option<String>,
    headers: HeaderMap,
    body: Bytes,
    /// The length of the whole body.
    body_bytes: usize,
    why: Rejection,
    received: SystemTime,
}

impl Rejected {
    /// Whether the stream has it now.
    async fn store(&self, ward: &Ward, broker: &Broker, wait: Duration, max_payload: usize) -> bool {
        let room = usize::try_from(HEADER_ROOM).unwrap_or(usize::MAX);
        let message = self.message(ward, max_payload.saturating_sub(room));
        if message.wire_bytes() > max_payload {
            return false;
        }
        match broker.publish(&message, wait).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(source.name = %ward.source, "A rejected request of {} is not kept: {error}", ward.source);
                false
            }
        }
    }

    /// What is kept: at most `room` bytes of the body.
    fn message(&self, ward: &Ward, room: usize) -> Outgoing {
        let hidden = Hidden::of(self, ward);
        let mut headers = Headers::with_capacity(12 + self.headers.len());
        headers.push("Hookbridge-Source", ward.source.as_str());
        headers.push("Hookbridge-Reason", self.why.to_string());
        headers.push("Hookbridge-Received", rfc3339(self.received));
        headers.push("Hookbridge-Method", self.method.as_str());
        if let Some(query) = &self.query {
            headers.push("Hookbridge-Query", hidden.query(query));
        }
        headers.push("Hookbridge-Peer", self.sender.to_string());
        headers.push("Hookbridge-Body-Bytes", self.body_bytes.to_string());
        let mut payload = Bytes::new();
        if let Some(why) = hidden.body(self) {
            headers.push("Hookbridge-Body-Left-Out", why);
        } else {
            payload = self.body.slice(..self.body.len().min(MAX_BODY).min(room));
            if payload.len() < self.body_bytes {
                headers.push("Hookbridge-Body-Cut", payload.len().to_string());
            }
        }
        hidden.pass_on(&self.headers, &mut headers);
        let subject = format!("quarantine.{}.{}", ward.source, self.why.as_str());
        Outgoing { subject, headers, payload, message_id: None }
    }
}

/// What must not be shown of one request.
struct Hidden<'a> {
    ward: &'a Ward,
    /// The source's secrets, and what stands in this request where secrets stand.
    secrets: Vec<Secret>,
}

impl<'a> Hidden<'a> {
    fn of(rejected: &Rejected, ward: &'a Ward) -> Self {
        let mut secrets: Vec<Secret> = ward.secrets.keys().to_vec();
        // The password of a pair is one by itself.
        let passwords = secrets.iter().filter_map(|secret| after(secret.expose(), b':')).map(Secret::new);
        let passwords: Vec<Secret> = passwords.collect();
        secrets.extend(passwords);
        let headers = rejected.headers.iter().filter(|(name, _)| ward.hides_header(name));
        let parameters = form_urlencoded::parse(rejected.query.as_deref().unwrap_or_default().as_bytes());
        let parameters = parameters.filter(|(name, _)| ward.hides_parameter(name));
        let found = headers
            .map(|(_, value)| Cow::Borrowed(value.as_bytes()))
            .chain(parameters.map(|(_, value)| Cow::Owned(value.into_owned().into_bytes())));
        for value in found.filter(|value| value.len() >= SHORTEST).take(MAX_FOUND) {
            // Without the word before it: `Bearer`, `Token`.
            secrets.extend(after(&value, b' ').map(Secret::new));
            secrets.push(Secret::new(&value[..]));
        }
        Self { ward, secrets }
    }

    /// Whether one of the secrets stands in these bytes: as it is, percent-encoded, or with backslashes in it.
    fn is_in(&self, bytes: &[u8]) -> bool {
        let mut forms = vec![Cow::Borrowed(bytes)];
        if bytes.contains(&b'%') {
            forms.push(percent_decode(bytes).into());
        }
        if bytes.contains(&b'\\') {
            forms.push(bytes.iter().copied().filter(|byte| *byte != b'\\').collect());
        }
        self.secrets.iter().any(|secret| forms.iter().any(|bytes| contains(bytes, secret.expose())))
    }

    /// The query with its secrets hidden.
    fn query(&self, query: &str) -> String {
        let shown = |pair: &str| {
            let written = pair.split('=').next().unwrap_or_default();
            match form_urlencoded::parse(pair.as_bytes()).next() {
                Some((name, _)) if self.is_in(name.as_bytes()) => HIDDEN.to_owned(),
                Some((name, value)) if self.ward.hides_parameter(&name) || self.is_in(value.as_bytes()) => {
                    format!("{written}={HIDDEN}")
                }
                _ => pair.to_owned(),
            }
        };
        let shown = query.split('&').map(shown).collect::<Vec<_>>().join("&");
        let mut shown = match self.is_in(shown.as_bytes()) {
            true => HIDDEN.to_owned(),
            false => utf8_percent_encode(&shown, CONTROLS).to_string(),
        };
        shown.truncate(MAX_QUERY);
        shown
    }

    /// Why the body is left out, if it is.
    fn body(&self, rejected: &Rejected) -> Option<String> {
        let [of_events, of_handshakes] = &self.ward.secret_places;
        let request = Request::new(&rejected.method, "", None, &rejected.headers, &rejected.body);
        let is_there = |place: &&Place| !matches!(place.find(Scope::of(&request)), Ok(None));
        let in_body = |place: &&Place| place.reads_body();
        let place = of_events.iter().find(in_body);
        if let Some(place) = place.or_else(|| of_handshakes.iter().filter(in_body).find(is_there)) {
            return Some(format!("a secret belongs at `{place}`"));
        }
        self.is_in(&rejected.body).then(|| "a secret is in it".to_owned())
    }

    /// Adds the request's headers as `http-<name>`, and the names of those that are left out.
    fn pass_on(&self, request: &HeaderMap, headers: &mut Headers) {
        let (mut count, mut bytes, mut left_out) = (0, 0, LeftOut::default());
        for (name, value) in request {
            let size = "http-: \r\n".len() + name.as_str().len() + value.len();
            match self.shown(name, value) {
                Some(value) if count < MAX_HEADERS && bytes + size <= MAX_HEADER_BYTES => {
                    (count, bytes) = (count + 1, bytes + size);
                    headers.push(format!("http-{name}"), value);
                }
                _ if self.is_in(name.as_str().as_bytes()) => left_out.unnamed += 1,
                _ => left_out.add(name.as_str()),
            }
        }
        if let Some(text) = left_out.text() {
            headers.push("Hookbridge-Left-Out", text);
        }
    }

    /// The value of a header, if it may be shown and can be.
    fn shown<'h>(&self, name: &HeaderName, value: &'h HeaderValue) -> Option<&'h str> {
        let printable = value.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte));
        let hidden =
            self.ward.hides_header(name) || self.is_in(name.as_str().as_bytes()) || self.is_in(value.as_bytes());
        value.to_str().ok().filter(|_| printable && !hidden)
    }
}

/// Names of headers that are not shown, as many as there is room for.
#[derive(Default)]
struct LeftOut {
    names: String,
    unnamed: usize,
}

impl LeftOut {
    fn add(&mut self, name: &str) {
        if self.names.len() + name.len() > MAX_LEFT_OUT {
            self.unnamed += 1;
            return;
        }
        if !self.names.is_empty() {
            self.names.push_str(", ");
        }
        self.names.push_str(name);
    }

    fn text(self) -> Option<String> {
        match (self.names.is_empty(), self.unnamed) {
            (true, 0) => None,
            (false, 0) => Some(self.names),
            (true, unnamed) => Some(format!("{unnamed} headers")),
            (false, unnamed) => Some(format!("{} and {unnamed} more", self.names)),
        }
    }
}

/// What stands behind the first such byte, if it is long enough to be a secret.
fn after(text: &[u8], byte: u8) -> Option<&[u8]> {
    text.splitn(2, |other| *other == byte).nth(1).filter(|rest| rest.len() >= SHORTEST)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let Some(first) = wanted.first() else { return false };
    bytes.windows(wanted.len()).any(|window| window.first() == Some(first) && window == wanted)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use figment::Figment;
    use figment::providers::{Format, Toml};

    use super::*;

    fn ward(text: &str) -> Ward {
        let source: config::Source = Figment::from(Toml::string(text)).extract().unwrap();
        Ward::new(&"shop".parse().unwrap(), &source, &source.profile(), &Metrics::new()).unwrap()
    }

    fn rejected(headers: &[(&str, &str)], query: &str, body: &str) -> Rejected {
        let named = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        Rejected {
            sender: Sender::of("203.0.113.9".parse().unwrap(), &HeaderMap::new(), &[]),
            method: Method::POST,
            query: (!query.is_empty()).then(|| query.to_owned()),
            headers: headers.iter().map(named).collect(),
            body: Bytes::copy_from_slice(&body.as_bytes()[..body.len().min(MAX_LOOKED_AT)]),
            body_bytes: body.len(),
            why: Rejection::Mismatch { secrets: 2 },
            received: UNIX_EPOCH,
        }
    }

    /// What is kept of a request, one line each for the headers that the request decides, and the body.
    fn kept(ward: &Ward, rejected: &Rejected) -> (Vec<String>, String) {
        let message = rejected.message(ward, usize::MAX);
        let always = ["Source", "Reason", "Received", "Method", "Peer", "Body-Bytes"];
        let is_own = |name: &str| name.strip_prefix("Hookbridge-").is_some_and(|name| always.contains(&name));
        let shown = message.headers.iter().filter(|(name, _)| !is_own(name));
        let lines = shown.map(|(name, value)| format!("{name}: {value}")).collect();
        (lines, String::from_utf8(message.payload.to_vec()).unwrap())
    }

    const HMAC: &str = r#"
secrets = ["plain:first-s3cret", "plain:second-s3cret"]
[verify]
header = "X-Token-Signature"
algorithm = "hmac-sha256"
"#;

    #[test]
    fn a_request_is_kept_with_everything_that_one_wants_to_study() {
        let rejected = rejected(&[("X-Token-Signature", "abcd"), ("Host", "h")], "a=1&b=%20", "{}");
        let message = rejected.message(&ward(HMAC), usize::MAX);
        assert_eq!((&message.subject[..], &message.payload[..]), ("quarantine.shop.mismatch", &b"{}"[..]));
        let headers: Vec<_> = message.headers.iter().collect();
        assert_eq!(
            headers,
            [
                ("Hookbridge-Source", "shop"),
                ("Hookbridge-Reason", "mismatch with all 2 secrets"),
                ("Hookbridge-Received", "1970-01-01T00:00:00.000Z"),
                ("Hookbridge-Method", "POST"),
                ("Hookbridge-Query", "a=1&b=%20"),
                ("Hookbridge-Peer", "203.0.113.9"),
                ("Hookbridge-Body-Bytes", "2"),
                ("http-x-token-signature", "abcd"),
                ("http-host", "h"),
            ]
        );
    }

    #[test]
    fn a_header_that_may_be_a_secret_is_named_and_not_shown() {
        let headers = [
            ("Authorization", "Bearer abcdef"),
            ("Cookie", "a=b"),
            ("X-Api-Key", "0123"),
            ("X_Session", "0"),
            ("X-Real", "\u{e9}"),
            ("X-Other", "1"),
        ];
        let (lines, _) = kept(&ward(HMAC), &rejected(&headers, "", ""));
        assert_eq!(
            lines,
            ["http-x-other: 1", "Hookbridge-Left-Out: authorization, cookie, x-api-key, x_session, x-real"]
        );
    }

    #[test]
    fn a_secret_is_found_wherever_it_is_repeated() {
        let repeats = |headers: &[(&str, &str)], query: &str, body: &str| {
            let (lines, body) = kept(&ward(HMAC), &rejected(headers, query, body));
            lines.join("\n") + &body
        };
        for shown in [
            repeats(&[("X-A", "second-s3cret")], "", ""),
            repeats(&[("X-A", "/?k=second%2Ds3cret")], "", ""),
            repeats(&[("second-s3cret", "a")], "", ""),
            repeats(&[], "second-s3cret", ""),
            repeats(&[], "a=1&second%2Ds3cret=2", ""),
            repeats(&[], "a=xsecond-s3cretx", ""),
            repeats(&[], "a=second-&s3cret=1", "{\"a\":\"second-s3cret\"}"),
            repeats(&[], "", "a=second%2Ds3cret"),
            repeats(&[], "", "{\"a\":\"second\\-s3cret\"}"),
        ] {
            assert!(
                !shown.contains("s3cret=2") && !shown.contains("second-s3cret") && !shown.contains("2Ds3"),
                "{shown}"
            );
        }
        let found = [("Authorization", "Bearer abcdef"), ("X-A", "?abcdef"), ("X-B", "b")];
        let (lines, body) = kept(&ward(HMAC), &rejected(&found, "c=abcdef&token=zyxw&d=zyx", "[\"zyxw\"]"));
        assert_eq!(
            lines,
            [
                "Hookbridge-Query: c=***&token=***&d=zyx",
                "Hookbridge-Body-Left-Out: a secret is in it",
                "http-x-b: b",
                "Hookbridge-Left-Out: authorization, x-a"
            ]
        );
        assert_eq!(body, "");
    }

    #[test]
    fn where_the_source_says_that_a_secret_stands_nothing_is_shown() {
        let token = |place: &str| {
            ward(&format!("secrets = [\"plain:s3cret\"]\n[verify]\nsignature = \"{place}\"\nalgorithm = \"token\""))
        };
        let request = rejected(&[("X-Way", "old-one"), ("X-B", "b")], "way=older&b=1", "{\"way\":\"oldest\"}");
        let (lines, body) = kept(&token("header:X-Way"), &request);
        assert_eq!(lines, ["Hookbridge-Query: way=older&b=1", "http-x-b: b", "Hookbridge-Left-Out: x-way"]);
        assert_eq!(body, "{\"way\":\"oldest\"}");
        let (lines, _) = kept(&token("query:way"), &request);
        assert_eq!(lines, ["Hookbridge-Query: way=***&b=1", "http-x-way: old-one", "http-x-b: b"]);
        for place in ["json:/way", "form:way", "item:/way"] {
            let (lines, body) = kept(&token(place), &request);
            assert_eq!(
                (&lines[1], &body[..]),
                (&format!("Hookbridge-Body-Left-Out: a secret belongs at `{place}`"), "")
            );
        }
        let basic = ward("secrets = [\"plain:me:passw0rd\"]\n[verify]\nalgorithm = \"basic\"");
        let (lines, _) = kept(&basic, &rejected(&[("X-A", "passw0rd")], "", ""));
        assert_eq!(lines, ["Hookbridge-Left-Out: x-a"]);
    }

    #[test]
    fn what_a_handshake_carries_is_left_out_where_it_is_there() {
        let source = "preset = \"notion\"\nsecrets = [\"plain:s3cret\"]";
        let (lines, body) = kept(&ward(source), &rejected(&[], "", "{\"verification_token\":\"chosen\"}"));
        assert_eq!(lines, ["Hookbridge-Body-Left-Out: a secret belongs at `json:/verification_token`"]);
        assert_eq!(body, "");
        assert_eq!(kept(&ward(source), &rejected(&[], "", "{\"id\":1}")), (vec![], "{\"id\":1}".to_owned()));
    }

    #[test]
    fn a_large_body_is_cut_and_a_secret_across_the_cut_is_found() {
        let large = "x".repeat(MAX_BODY + 1);
        let (lines, body) = kept(&ward(HMAC), &rejected(&[], "", &large));
        assert_eq!(lines, ["Hookbridge-Body-Cut: 65536"]);
        assert_eq!(body.len(), MAX_BODY);
        let across = format!("{}first-s3cret", "x".repeat(MAX_BODY - 5));
        let (lines, body) = kept(&ward(HMAC), &rejected(&[], "", &across));
        assert_eq!((&lines[..], &body[..]), (&["Hookbridge-Body-Left-Out: a secret is in it".to_owned()][..], ""));
        let small = rejected(&[], "", "12345").message(&ward(HMAC), 3);
        assert_eq!((small.headers.get("Hookbridge-Body-Cut"), &small.payload[..]), (Some("3"), &b"123"[..]));
    }

    #[test]
    fn headers_and_query_are_bounded() {
        let name = |index: usize| format!("x-{index}");
        let many: Vec<(String, &str)> = (0..100).map(|index| (name(index), "v")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&name[..], *value)).collect();
        let (lines, _) = kept(&ward(HMAC), &rejected(&many, "", ""));
        assert_eq!(lines.len(), MAX_HEADERS + 1);
        assert!(lines[MAX_HEADERS].starts_with("Hookbridge-Left-Out: x-64, x-65, "), "{}", lines[MAX_HEADERS]);

        let (large, long) = ("v".repeat(10_000), format!("x-{}", "n".repeat(2000)));
        let headers = [("x-a", &large[..]), ("x-b", &large), ("x-c", "v"), (&long, &large)];
        let message = rejected(&headers, &"q".repeat(10_000), "").message(&ward(HMAC), usize::MAX);
        assert_eq!(message.headers.get("Hookbridge-Left-Out"), Some("x-b and 1 more"));
        assert_eq!(message.headers.get("Hookbridge-Query").map(str::len), Some(MAX_QUERY));
        assert!(message.headers.wire_bytes() < 24 * 1024);
    }
}
