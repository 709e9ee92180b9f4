//! What a hostile or broken receiver can do to a courier: cost one attempt and no more than its timeout, and nothing
//! to anybody else.
//!
//! Every test is a table. All of its receivers are delivered to at once, beside one that hangs the whole time and one
//! that is healthy; the receipts must say what the outcome table says.

use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use hookbridge::app::Roles;

use crate::harness::{Act, Hookbridge, Hostile, Message, Nats, Receiver, Reply, eventually};

/// A receiver and what must become of a delivery to it.
struct Row {
    /// The name of its endpoint.
    name: String,
    script: Vec<Act>,
    scheme: &'static str,
    expected: Expected,
}

#[derive(Debug)]
enum Expected {
    Delivered(u16),
    Dead(&'static str),
    Again {
        /// One of these; more than one only where the operating system decides.
        classes: &'static [&'static str],
        status: Option<u16>,
        /// Seconds from the receipt to the next attempt.
        wait: RangeInclusive<f64>,
    },
}

const SETTINGS: &str = "[egress]\ntimeout = \"3s\"\nretry = [\"10m\"]\nmax_retry_after = \"2h\"\n";
/// Seconds: the schedule above, 10 % more or less, and what a slow machine adds.
const BY_SCHEDULE: RangeInclusive<f64> = 535.0..=661.0;
/// Healthy deliveries beside a table.
const HEALTHY: usize = 50;

fn row(name: &str, script: Vec<Act>, expected: Expected) -> Row {
    Row { name: name.to_owned(), script, scheme: "http", expected }
}

fn again(classes: &'static [&'static str]) -> Expected {
    Expected::Again { classes, status: None, wait: BY_SCHEDULE }
}

fn refused(status: u16) -> Expected {
    Expected::Again { classes: &["status"], status: Some(status), wait: BY_SCHEDULE }
}

const TIMEOUT: &[&str] = &["timeout"];
const PROTOCOL: &[&str] = &["protocol"];
/// A connection that is reset at once may look as if none was made.
const NO_CONNECTION: &[&str] = &["protocol", "connect"];

/// Reads the request, then writes this and closes.
fn answers(text: impl AsRef<[u8]>) -> Vec<Act> {
    vec![Act::Request, say(text)]
}

/// Reads the request, writes this, then does something else.
fn answers_then(text: impl AsRef<[u8]>, act: Act) -> Vec<Act> {
    vec![Act::Request, say(text), act]
}

fn say(text: impl AsRef<[u8]>) -> Act {
    Act::Say(text.as_ref().to_vec())
}

fn forever(text: impl AsRef<[u8]>) -> Act {
    Act::Forever(text.as_ref().to_vec())
}

/// Delivers to every row, and to a healthy receiver meanwhile; checks the receipts.
async fn meet(rows: Vec<Row>) {
    let (nats, mut hanging) = (Nats::start().await, Receiver::scripted([Reply::Hang]).await);
    let healthy = Receiver::start().await;
    let mut text = SETTINGS.to_owned();
    let endpoint =
        |name: &str, url: &str, more: &str| format!("[endpoints.{name}]\nurl = \"{url}\"\nsignatures = []\n{more}\n");
    text += &endpoint("hanging", &hanging.url("/"), "timeout = \"10m\"");
    text += &endpoint("healthy", &healthy.url("/"), "timeout = \"30s\"");
    let mut receivers = Vec::new();
    for row in &rows {
        let receiver = Hostile::playing(row.script.clone()).await;
        text += &endpoint(&row.name, &receiver.url(row.scheme), "");
        receivers.push(receiver);
    }
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &text).await;
    let publish = async |endpoint: &str, id: &str| {
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id)], "body").await;
    };

    publish("hanging", "hanging").await;
    hanging.next().await;
    for row in &rows {
        publish(&row.name, &row.name).await;
    }
    for number in 0..HEALTHY {
        publish("healthy", &format!("healthy-{number}")).await;
    }

    for number in 0..HEALTHY {
        nats.message("RECEIPTS", &format!("receipts.a.delivered.healthy-{number}")).await;
    }
    for row in &rows {
        let outcome = match row.expected {
            Expected::Delivered(_) => "delivered",
            Expected::Dead(_) => "dead",
            Expected::Again { .. } => "retrying",
        };
        let receipt = nats.message("RECEIPTS", &format!("receipts.a.{outcome}.{}", row.name)).await;
        check(row, &receipt);
    }
    let subjects = nats.subjects("RECEIPTS").await;
    assert!(!subjects.iter().any(|subject| subject.ends_with(".hanging")), "the one that hangs was given up");
    for (row, receiver) in rows.iter().zip(&receivers) {
        let left = async || (receiver.open() == 0).then_some(());
        eventually(&format!("the connection to {} to end", row.name), left).await;
        // Where the next attempt is due in a second, it may have been made by now, over a connection of its own.
        let is_soon = matches!(&row.expected, Expected::Again { wait, .. } if *wait.end() < 60.0);
        let connections = receiver.connections();
        assert!(connections == 1 || (is_soon && connections == 2), "{}: {connections}", row.name);
    }
}

#[track_caller]
fn check(row: &Row, receipt: &Message) {
    let (name, said) = (&row.name, receipt.json());
    let (class, status) = (said["error_class"].as_str(), said["status"].as_u64().map(|status| status as u16));
    let outcome = said["outcome"].as_str().unwrap();
    let took = said["duration_ms"].as_u64().unwrap();
    // The timeout is 3 s; the rest is for a machine that is busy.
    assert!(took < 10_000, "{name} took {took} ms");
    match &row.expected {
        Expected::Delivered(expected) => {
            assert_eq!((outcome, status, class), ("delivered", Some(*expected), None), "{name}: {said}");
        }
        Expected::Dead(reason) => {
            assert_eq!((outcome, said["reason"].as_str()), ("dead", Some(*reason)), "{name}: {said}");
        }
        Expected::Again { classes, status: expected, wait } => {
            assert_eq!((outcome, status), ("retrying", *expected), "{name}: {said}");
            assert!(classes.contains(&class.unwrap()), "{name}: {said}");
            assert!(class != Some("timeout") || took >= 2990, "{name} was given up after {took} ms");
            let waits = seconds_between(&said["at"], &said["next_attempt_at"]);
            assert!(wait.contains(&waits), "{name} comes again in {waits} s, not {wait:?}");
        }
    }
}

fn seconds_between(from: &serde_json::Value, to: &serde_json::Value) -> f64 {
    let time = |text: &serde_json::Value| humantime::parse_rfc3339(text.as_str().unwrap()).unwrap();
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    since(time(to)) - since(time(from))
}

#[tokio::test]
async fn one_that_hangs_or_trickles_costs_its_timeout_and_what_came_after_the_status_costs_nothing() {
    let apart = Duration::from_millis(20);
    let endless = format!("HTTP/1.1 200 OK\r\nx-slow: {}", "x".repeat(4000)).into_bytes();
    let slow_status = format!("HTTP/1.1 200 {}", "x".repeat(4000)).into_bytes();
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 4000\r\n\r\n";
    meet(vec![
        row("reads-and-is-silent", vec![Act::Request, Act::Hang], again(TIMEOUT)),
        row("trickles-its-status", vec![Act::Request, Act::Trickle(slow_status, apart)], again(TIMEOUT)),
        row("stops-in-its-status", answers_then("HTTP/1.1 200 OK", Act::Hang), again(TIMEOUT)),
        row("trickles-its-head", vec![Act::Request, Act::Trickle(endless, apart)], Expected::Delivered(200)),
        row("stops-in-its-head", answers_then("HTTP/1.1 200 OK\r\nx: y\r\n", Act::Hang), Expected::Delivered(200)),
        row("stops-in-an-error", answers_then("HTTP/1.1 500 Error\r\nx: y", Act::Hang), refused(500)),
        row("trickles-its-body", answers_then(head, Act::Trickle(vec![b'x'; 4000], apart)), Expected::Delivered(200)),
        row(
            "trickles-an-error",
            answers_then(head.replace("200 OK", "500 Error"), Act::Trickle(vec![b'x'; 4000], apart)),
            refused(500),
        ),
        row(
            "is-slow-but-in-time",
            vec![Act::Request, Act::Trickle(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), Duration::from_millis(2))],
            Expected::Delivered(204),
        ),
    ])
    .await;
}

#[tokio::test]
async fn one_that_breaks_off_before_its_status_costs_an_attempt_and_one_that_does_so_later_has_answered() {
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n";
    let error = "HTTP/1.1 500 Error\r\ncontent-length: 10\r\n\r\n";
    meet(vec![
        row("resets-at-once", vec![Act::Reset], again(NO_CONNECTION)),
        row("resets-after-the-request", vec![Act::Request, Act::Reset], again(PROTOCOL)),
        row("resets-in-its-head", answers_then("HTTP/1.1 200 O", Act::Reset), again(PROTOCOL)),
        row("resets-after-its-head", answers_then(head, Act::Reset), Expected::Delivered(200)),
        row("resets-in-its-body", answers_then(format!("{head}x"), Act::Reset), Expected::Delivered(200)),
        row("resets-in-an-error", answers_then(format!("{error}x"), Act::Reset), refused(500)),
        row("closes-at-once", vec![], again(NO_CONNECTION)),
        row("closes-after-the-request", vec![Act::Request], again(PROTOCOL)),
        row("closes-in-its-status", answers("HTTP/1.1 200 OK"), again(PROTOCOL)),
        row("closes-in-its-head", answers("HTTP/1.1 200 OK\r\nx: y\r\n"), Expected::Delivered(200)),
        row("resets-in-its-headers", answers_then("HTTP/1.1 200 OK\r\nx: y\r\n", Act::Reset), Expected::Delivered(200)),
        row("closes-in-the-head-of-an-error", answers("HTTP/1.1 500 Error\r\nx: y\r\n"), refused(500)),
        row("closes-in-the-head-of-gone", answers("HTTP/1.1 410 Gone\r\nx"), Expected::Dead("gone")),
        row("closes-in-its-body", answers(format!("{head}x")), Expected::Delivered(200)),
        row("closes-in-an-error", answers(format!("{error}x")), refused(500)),
    ])
    .await;
}

#[tokio::test]
async fn a_head_without_end_is_left_soon_with_its_status_and_interim_answers_are_passed_over() {
    let ok = "HTTP/1.1 200 OK\r\n";
    let large = format!("{ok}x: {}\r\n\r\n", "y".repeat(1 << 20));
    let many = format!("{ok}{}\r\n", "x: y\r\n".repeat(5000));
    let mut rows = vec![
        row("says-a-megabyte", answers(large), Expected::Delivered(200)),
        row("says-5000-headers", answers(many), Expected::Delivered(200)),
        row("headers-without-end", answers_then(ok, forever("x-more: y\r\n")), Expected::Delivered(200)),
        row("a-header-without-end", answers_then(format!("{ok}x: "), forever("y")), Expected::Delivered(200)),
        row("an-error-without-end", answers_then("HTTP/1.1 500 Error\r\nx: ", forever("y")), refused(500)),
        row("a-status-line-without-end", answers_then("HTTP/1.1 200 ", forever("O")), again(PROTOCOL)),
        row("line-ends-without-end", vec![Act::Request, forever("\r\n")], again(PROTOCOL)),
        row("blanks-without-end", vec![Act::Request, forever(" ")], again(PROTOCOL)),
    ];
    for status in [100, 102, 103, 199] {
        let interim = format!("HTTP/1.1 {status} Wait\r\nlink: </x>\r\n\r\n");
        let once = format!("{interim}HTTP/1.1 204 No Content\r\n\r\n");
        rows.push(row(&format!("{status}-once"), answers(once), Expected::Delivered(204)));
        rows.push(row(&format!("{status}-then-silence"), answers_then(&interim, Act::Hang), again(TIMEOUT)));
        rows.push(row(&format!("{status}-then-the-end"), answers(&interim), again(PROTOCOL)));
    }
    meet(rows).await;
}

#[tokio::test]
async fn interim_answers_without_end_are_left_at_the_timeout() {
    let script = |status| vec![Act::Request, forever(format!("HTTP/1.1 {status} Wait\r\nlink: </x>\r\n\r\n"))];
    meet(
        [100, 102, 103, 199].map(|status| row(&format!("{status}-without-end"), script(status), again(TIMEOUT))).into(),
    )
    .await;
}

#[tokio::test]
async fn what_is_no_http_and_a_status_that_is_none_cost_an_attempt() {
    let mut rows = vec![
        row("http-0-9", answers("hello\n"), again(PROTOCOL)),
        row("html-alone", answers("<html>200 OK</html>\r\n\r\n"), again(PROTOCOL)),
        row("version-0-9", answers("HTTP/0.9 200 OK\r\n\r\n"), again(PROTOCOL)),
        row("version-2", answers("HTTP/2.0 200 OK\r\n\r\n"), again(PROTOCOL)),
        row("http-2-frames", answers(b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0"), again(PROTOCOL)),
        row("lower-case", answers("http/1.1 200 ok\r\n\r\n"), again(PROTOCOL)),
        row("another-protocol", answers("ICY 200 OK\r\n\r\n"), again(PROTOCOL)),
        row("a-request", answers("POST / HTTP/1.1\r\nhost: x\r\n\r\n"), again(PROTOCOL)),
        row("zeros", answers([0; 64]), again(PROTOCOL)),
        row("a-blank-in-a-name", answers("HTTP/1.1 200 OK\r\nx y: z\r\n\r\n"), Expected::Delivered(200)),
        row("a-zero-in-a-value", answers("HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n"), Expected::Delivered(200)),
        row("version-1-0", answers("HTTP/1.0 200 OK\r\n\r\nbody"), Expected::Delivered(200)),
        row("no-words", answers("HTTP/1.1 200\r\ncontent-length: 0\r\n\r\n"), Expected::Delivered(200)),
        row(
            "bytes-for-words",
            answers(b"HTTP/1.1 200 \xff\xfe\r\ncontent-length: 0\r\n\r\n"),
            Expected::Delivered(200),
        ),
    ];
    for status in ["000", "099", "99", "1000", "-200", "+200", "2x0", "20", "", " 200", "0x200"] {
        let name = format!("status-{}", rows.len());
        let text = format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n");
        rows.push(row(&name, answers(text), again(PROTOCOL)));
    }
    for status in [101, 300, 304, 399, 400, 407, 418, 421, 451, 499, 500, 505, 511, 599, 600, 999] {
        let text = format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n");
        rows.push(row(&format!("status-of-{status}"), answers(text), refused(status)));
    }
    for status in [200, 201, 203, 205, 206, 226, 299] {
        let text = format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n");
        rows.push(row(&format!("status-of-{status}"), answers(text), Expected::Delivered(status)));
    }
    meet(rows).await;
}

#[tokio::test]
async fn a_lie_about_the_length_costs_no_attempt_because_the_status_is_the_answer() {
    let lengths = |lengths: &[&str]| lengths.iter().map(|length| format!("content-length: {length}\r\n")).collect();
    let answer =
        |status: &str, headers: String, body: &str| answers(format!("HTTP/1.1 {status}\r\n{headers}\r\n{body}"));
    let chunked = "transfer-encoding: chunked\r\n".to_owned();
    let bomb = "content-encoding: gzip\r\ncontent-length: 4\r\n".to_owned();
    let ok =
        |name: &str, headers: String, body: &str| row(name, answer("200 OK", headers, body), Expected::Delivered(200));
    let nonsense =
        |name: &str, headers: String| row(name, answer("200 OK", headers, "hello"), Expected::Delivered(200));
    meet(vec![
        ok("too-long", lengths(&["100"]), "hello"),
        ok("too-short", lengths(&["2"]), "hello"),
        ok("twice-the-same", lengths(&["5", "5"]), "hello"),
        ok("both-forms", chunked.clone() + "content-length: 5\r\n", "0\r\n\r\n"),
        ok("no-length", String::new(), "hello"),
        ok("no-number-of-a-chunk", chunked.clone(), "zz\r\nhello\r\n0\r\n\r\n"),
        ok("a-chunk-of-all-there-is", chunked.clone(), "ffffffffffffffff\r\nhello"),
        ok("a-chunk-of-more-than-there-is", chunked.clone(), "fffffffffffffffff\r\nhello"),
        ok("a-chunk-that-ends-early", chunked.clone(), "2\r\nhello\r\n0\r\n\r\n"),
        ok("a-chunk-below-nothing", chunked.clone(), "-5\r\nhello\r\n0\r\n\r\n"),
        ok("no-gzip", bomb, "gzip"),
        ok("a-body-for-204", lengths(&["5"]), "hello"),
        nonsense("below-nothing", lengths(&["-1"])),
        nonsense("two-lengths", lengths(&["5", "6"])),
        nonsense("two-in-one", lengths(&["5, 6"])),
        nonsense("no-number", lengths(&["five"])),
        nonsense("more-than-there-is", lengths(&["99999999999999999999999"])),
        nonsense("a-fraction", lengths(&["5.0"])),
        row("an-error-too-long", answer("500 Error", lengths(&["100"]), "hello"), refused(500)),
        row("an-error-in-bad-chunks", answer("500 Error", chunked.clone(), "zz\r\n"), refused(500)),
        row("gone-too-long", answer("410 Gone", lengths(&["100"]), "hello"), Expected::Dead("gone")),
        row("gone-in-bad-chunks", answer("410 Gone", chunked.clone(), "zz\r\n"), Expected::Dead("gone")),
        row(
            "an-extension-without-end",
            answers_then(format!("HTTP/1.1 200 OK\r\n{chunked}\r\n5;x="), forever("y")),
            Expected::Delivered(200),
        ),
        row(
            "trailers-without-end",
            answers_then(format!("HTTP/1.1 200 OK\r\n{chunked}\r\n0\r\n"), forever("x: y\r\n")),
            Expected::Delivered(200),
        ),
        row(
            "chunks-without-end",
            answers_then(format!("HTTP/1.1 500 Error\r\n{chunked}\r\n"), forever("1\r\nx\r\n")),
            refused(500),
        ),
    ])
    .await;
}

#[tokio::test]
async fn retry_after_is_a_number_of_seconds_or_a_date_that_puts_off_within_bounds_and_anything_else_is_nothing() {
    let date = |seconds: i64| {
        let span = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        httpdate::fmt_http_date(if seconds < 0 { now - span } else { now + span })
    };
    // The receipt is written a little after the answer was read; dates have whole seconds.
    let about = |seconds: f64| seconds - 10.0..=seconds + 1.0;
    // The schedule says 10 minutes, and nothing makes it shorter.
    let (soon, at_most) = (BY_SCHEDULE, about(7200.0));
    let mut rows = Vec::new();
    let mut add = |status: u16, headers: &[&[u8]], wait: RangeInclusive<f64>| {
        let mut text = format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n").into_bytes();
        for value in headers {
            text.extend([b"Retry-After: ", *value, b"\r\n"].concat());
        }
        text.extend(b"\r\n");
        let expected = Expected::Again { classes: &["status"], status: Some(status), wait };
        rows.push(row(&format!("row-{}-{status}", rows.len()), answers(text), expected));
    };
    for status in [429, 503] {
        for (value, wait) in [
            ("1200".to_owned(), about(1200.0)),
            (" 1200 ".to_owned(), about(1200.0)),
            ("1".to_owned(), soon.clone()),
            ("120".to_owned(), soon.clone()),
            ("0".to_owned(), soon.clone()),
            ("7201".to_owned(), at_most.clone()),
            (u64::MAX.to_string(), at_most.clone()),
            (date(1300), about(1300.0)),
            (date(300), soon.clone()),
            (date(-300), soon.clone()),
            (date(400 * 24 * 3600), at_most.clone()),
            ("Fri, 31 Dec 9999 23:59:59 GMT".to_owned(), at_most.clone()),
            ("Sun, 06 Nov 1994 08:49:37 GMT".to_owned(), soon.clone()),
            ("Sunday, 06-Nov-94 08:49:37 GMT".to_owned(), soon.clone()),
            ("Sun Nov  6 08:49:37 1994".to_owned(), soon.clone()),
            ("99999999999999999999999".to_owned(), BY_SCHEDULE),
            ("-1".to_owned(), BY_SCHEDULE),
            ("1.5".to_owned(), BY_SCHEDULE),
            ("1e3".to_owned(), BY_SCHEDULE),
            ("soon".to_owned(), BY_SCHEDULE),
            ("1200, 2400".to_owned(), BY_SCHEDULE),
            ("1200 seconds".to_owned(), BY_SCHEDULE),
            ("Fri, 99 Dec 2099 23:59:59 GMT".to_owned(), BY_SCHEDULE),
            (String::new(), BY_SCHEDULE),
        ] {
            add(status, &[value.as_bytes()], wait);
        }
        add(status, &[b"\xff\xfe"], BY_SCHEDULE);
        add(status, &[], BY_SCHEDULE);
        // Of several the first counts.
        add(status, &[b"1200", b"3600"], about(1200.0));
        add(status, &[b"never", b"1200"], BY_SCHEDULE);
    }
    // Only where the receiver says that it is busy does it say when.
    for status in [301, 413, 500, 502, 504] {
        add(status, &[b"1200"], BY_SCHEDULE);
    }
    meet(rows).await;
}

#[tokio::test]
async fn no_redirect_of_any_kind_leads_anywhere() {
    let canary = Receiver::start().await;
    let (target, port) = (canary.url("/canary"), canary.port());
    let mut rows = Vec::new();
    let mut add = |status: u16, header: String, expected: Expected| {
        let text = format!("HTTP/1.1 {status} Status\r\n{header}\r\ncontent-length: 0\r\n\r\n");
        rows.push(row(&format!("row-{}-{status}", rows.len()), answers(text), expected));
    };
    for status in [300, 301, 302, 303, 304, 305, 306, 307, 308, 399] {
        add(status, format!("location: {target}"), refused(status));
    }
    for location in [
        format!("//127.0.0.1:{port}/canary"),
        format!("http://user:password@127.0.0.1:{port}/canary"),
        format!("http://localhost:{port}/canary"),
        format!("https://127.0.0.1:{port}/canary"),
        format!("gopher://127.0.0.1:{port}/_POST"),
        "/canary".to_owned(),
        "http://[".to_owned(),
        format!("{target}\r\nlocation: {target}"),
    ] {
        add(307, format!("location: {location}"), refused(307));
    }
    // What some clients take for a redirect.
    for header in ["refresh: 0; url=", "content-location: ", "location: ", "link: rel=preconnect; "] {
        add(200, format!("{header}{target}"), Expected::Delivered(200));
    }
    add(201, format!("location: {target}"), Expected::Delivered(201));
    add(200, format!("alt-svc: http/1.1=\"127.0.0.1:{port}\""), Expected::Delivered(200));
    add(305, format!("set-proxy: {target}"), refused(305));
    add(401, "www-authenticate: Basic realm=\"x\"".to_owned(), refused(401));
    add(407, "proxy-authenticate: Basic realm=\"x\"".to_owned(), refused(407));
    add(421, format!("location: {target}"), refused(421));
    add(410, format!("location: {target}"), Expected::Dead("gone"));
    meet(rows).await;
    assert_eq!(canary.connections(), 0, "a redirect was followed");
}

#[tokio::test]
async fn whatever_is_no_tls_costs_an_attempt_and_gets_no_request() {
    let tls = |name: &str, script: Vec<Act>, classes| Row { scheme: "https", ..row(name, script, again(classes)) };
    const TLS: &[&str] = &["tls"];
    const TLS_OR_NO_CONNECTION: &[&str] = &["tls", "connect"];
    let alert = b"\x15\x03\x03\x00\x02\x02\x28";
    let record = |kind: u8, body: &[u8]| [&[kind, 3, 3, 0, body.len() as u8], body].concat();
    let then = |bytes: &[u8]| vec![Act::Anything, say(bytes), Act::Hang];
    meet(vec![
        tls("plain-http", then(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), TLS),
        tls("garbage", then(&[0xa5; 512]), TLS),
        tls("zeros", then(&[0; 512]), TLS),
        tls("an-alert", then(alert), TLS),
        tls("a-handshake-of-nothing", then(&record(22, b"")), TLS),
        tls("a-handshake-of-garbage", then(&record(22, &[0xa5; 100])), TLS),
        tls("data-before-the-handshake", then(&record(23, b"HTTP/1.1 200 OK\r\n\r\n")), TLS),
        tls("a-record-too-large", then(b"\x16\x03\x03\xff\xffx"), TLS),
        tls("an-old-version", then(b"\x16\x02\x00\x00\x01x"), TLS),
        tls("its-own-greeting-back", vec![Act::Anything, say(record(22, b"\x01\0\0\x02\x03\x03")), Act::Hang], TLS),
        tls("garbage-without-end", vec![Act::Anything, forever([0xa5])], TLS),
        tls("records-without-end", vec![Act::Anything, forever(record(21, b"\x01\x5a"))], TLS),
        tls("silence", vec![Act::Anything, Act::Hang], TIMEOUT),
        tls(
            "a-trickle",
            vec![Act::Anything, Act::Trickle(record(22, &[0x0b; 250]), Duration::from_millis(20))],
            TIMEOUT,
        ),
        tls("closes-at-once", vec![], TLS_OR_NO_CONNECTION),
        tls("closes-in-the-handshake", vec![Act::Anything, say(b"\x16\x03\x03\x00\x64x")], TLS_OR_NO_CONNECTION),
        tls("resets-in-the-handshake", vec![Act::Anything, Act::Reset], TLS_OR_NO_CONNECTION),
    ])
    .await;
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_is_never_taken_for_that_of_the_next_delivery() {
    let extra = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";
    let longer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";
    let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 410 Gone\r\n\r\n";
    let none = "HTTP/1.1 204 No Content\r\ncontent-length: 32\r\n\r\nHTTP/1.1 410 Gone\r\nx: 1234567\r\n\r\n";
    for answer in [extra, longer, chunks, none] {
        let nats = Nats::start().await;
        let first = answers_then(answer, Act::Hang);
        let receiver = Hostile::playing_each(vec![first, answers("HTTP/1.1 507 Full\r\n\r\n")]).await;
        let endpoint = format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n", receiver.url("http"));
        let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &format!("{SETTINGS}{endpoint}")).await;

        nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "first")], "x").await;
        nats.message("RECEIPTS", "receipts.a.delivered.first").await;
        nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "second")], "x").await;

        let second = nats.message("RECEIPTS", "receipts.a.*.second").await.json();
        assert_eq!((second["outcome"].as_str(), second["status"].as_u64()), (Some("retrying"), Some(507)), "{answer}");
        assert_eq!(receiver.connections(), 2, "{answer}");
    }
}
