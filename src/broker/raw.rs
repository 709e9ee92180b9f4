//! Reading single messages through the JSON form of JetStream's API.
//!
//! The server answers with the stored header block as a value inside a JSON document. Unlike a direct get, whose answer
//! carries the stored headers as its own, no stored message can end the connection over which it is read. The answer
//! is the leader's.

use std::time::SystemTime;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, HeaderName};
use bytes::Bytes;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};

use super::{Names, StoredMessage};
use crate::event::Headers;

/// The server's code for a message that the stream does not have.
const NO_MESSAGE_FOUND: u64 = 10_037;
/// The class of the server's errors for what is not available now, such as a stream without a leader.
const UNAVAILABLE: u64 = 503;

/// Which message to read. Subjects are as the server knows them; the last and the next may have wildcards.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Which<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
}

impl<'a> Which<'a> {
    /// The message at a sequence.
    pub(super) fn at(sequence: u64) -> Self {
        Self { seq: Some(sequence), ..Self::default() }
    }

    /// The last message on a subject.
    pub(super) fn last(subject: &'a str) -> Self {
        Self { last_by_subj: Some(subject), ..Self::default() }
    }

    /// The first message at or after a sequence whose subject matches.
    pub(super) fn next(subject: &'a str, from: u64) -> Self {
        Self { seq: Some(from.max(1)), next_by_subj: Some(subject), ..Self::default() }
    }
}

/// A stored message, its header block as the bytes that were published.
#[derive(Debug)]
pub(super) struct Raw {
    /// As the server knows it. Bytes that are not UTF-8 have become replacement characters.
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) stored: SystemTime,
    /// Empty for a message without headers.
    pub(super) headers: Vec<u8>,
    pub(super) payload: Bytes,
}

#[derive(Deserialize)]
struct Answer {
    message: Option<Message>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Message {
    subject: String,
    seq: u64,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// The stream has no leader now, or none that answers.
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}")]
    Other(String),
}

fn other(error: impl ToString) -> Failed {
    Failed::Other(error.to_string())
}

/// Reads a message; `None` when the stream does not have it. The error says why there was no answer.
pub(super) async fn get(client: &Client, stream: &str, which: Which<'_>) -> Result<Option<Raw>, Failed> {
    let request = serde_json::to_vec(&which).map_err(other)?;
    let asked = client.request(format!("$JS.API.STREAM.MSG.GET.{stream}"), request.into()).await;
    let asked = asked.map_err(|error| match error.kind() {
        // A server whose stream has no leader may also say nothing.
        RequestErrorKind::TimedOut | RequestErrorKind::NoResponders => Failed::Unavailable(error.to_string()),
        _ => other(error),
    });
    read(&asked?.payload)
}

fn read(answer: &[u8]) -> Result<Option<Raw>, Failed> {
    let answer: Answer = serde_json::from_slice(answer).map_err(other)?;
    match (answer.message, answer.error) {
        (_, Some(error)) if error.err_code == NO_MESSAGE_FOUND => Ok(None),
        (_, Some(error)) if error.code == UNAVAILABLE => Err(Failed::Unavailable(error.description)),
        (_, Some(error)) => Err(other(error.description)),
        (None, None) => Err(other("the server's answer has neither a message nor an error")),
        (Some(message), None) => {
            let decode = |text: &str| BASE64.decode(text.as_bytes()).map_err(other);
            Ok(Some(Raw {
                stored: humantime::parse_rfc3339(&message.time).unwrap_or(SystemTime::UNIX_EPOCH),
                headers: decode(&message.hdrs)?,
                payload: decode(&message.data)?.into(),
                subject: message.subject,
                sequence: message.seq,
            }))
        }
    }
}

impl Raw {
    /// The message as other parts see it. Lines of the header block that are no headers are left out.
    pub(super) fn into_stored(self, names: &Names) -> StoredMessage {
        StoredMessage {
            subject: names.strip(&self.subject).to_owned(),
            sequence: self.sequence,
            stored: self.stored,
            headers: headers(&self.headers),
            payload: self.payload,
        }
    }
}

/// Whether the client library takes a message with this block for a status of the server, which it keeps to itself
/// where it watches. nats-server removes a status before it stores a message, but only from a first line that ends as
/// it must.
pub(super) fn is_status(block: &[u8]) -> bool {
    let first = std::str::from_utf8(block).ok().and_then(|block| block.lines().next());
    first.and_then(|first| first.strip_prefix("NATS/1.0")).is_some_and(|rest| !rest.trim().is_empty())
}

/// The headers of a block, read as the client library reads them, but without ever failing: what it would refuse is
/// left out.
pub(super) fn headers(block: &[u8]) -> Headers {
    let mut headers = Headers::default();
    let Ok(block) = std::str::from_utf8(block) else { return headers };
    let mut lines = block.lines();
    if !lines.next().is_some_and(|version| version.starts_with("NATS/1.0")) {
        return headers;
    }
    let mut last: Option<(&str, String)> = None;
    let mut keep = |found: Option<(&str, String)>| {
        let Some((name, value)) = found else { return };
        let value = value.trim_end();
        if name.parse::<HeaderName>().is_ok() && !value.contains('\r') {
            headers.push(name.to_owned(), value);
        }
    };
    for line in lines.filter(|line| !line.is_empty()) {
        match (&mut last, line.split_once(':')) {
            (Some((_, value)), _) if line.starts_with(char::is_whitespace) => value.push_str(line),
            (_, Some((name, value))) => keep(last.replace((name, value.trim_start().to_owned()))),
            (_, None) => keep(last.take()),
        }
    }
    keep(last);
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_library_does_and_what_it_refuses_is_left_out() {
        let read = |block: &[u8]| {
            headers(block).iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
        };
        for (block, expected) in [
            (&b""[..], ""),
            (b"\r\n", ""),
            (b"NATS/1.0\r\nA: b\r\nC:d \r\n\r\n", "A=b,C=d"),
            (b"NATS/1.0\r\nA: b\r\n  folded\r\nC: d\r\n\r\n", "A=b  folded,C=d"),
            (b"NATS/1.0\r\n folded\r\nA: b\r\n\r\n", "A=b"),
            (b"NATS/1.0\r\nno colon\r\nA: b\r\n\r\n", "A=b"),
            (b"NATS/1.0\r\nA b: c\r\nC: d\re\r\nF: g\r\n\r\n", "F=g"),
            (b"NATS/2.0\r\nA: b\r\n\r\n", ""),
            (b"NATS/1.0\r\nA: \xff\r\n\r\n", ""),
        ] {
            assert_eq!(read(block), expected, "{}", String::from_utf8_lossy(block));
        }
    }

    #[test]
    fn a_status_is_whatever_stands_behind_the_version() {
        for block in [&b"NATS/1.0 404 x\nA: b\n\n"[..], b"NATS/1.0 100", b"NATS/1.0\t503\n"] {
            assert!(is_status(block), "{}", String::from_utf8_lossy(block));
        }
        for block in [&b""[..], b"NATS/1.0", b"NATS/1.0 \r\nA: b\r\n\r\n", b"NATS/1.0\r\n404: b\r\n\r\n"] {
            assert!(!is_status(block), "{}", String::from_utf8_lossy(block));
        }
    }

    #[test]
    fn answers_are_a_message_none_or_a_failure() {
        let found =
            br#"{"message":{"subject":"a.b","seq":7,"hdrs":"Tg==","data":"e30=","time":"2026-01-02T03:04:05Z"}}"#;
        let found = read(found).unwrap().unwrap();
        assert_eq!(
            (found.subject.as_str(), found.sequence, &found.headers[..], &found.payload[..]),
            ("a.b", 7, &b"N"[..], &b"{}"[..])
        );
        assert!(
            read(br#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#).unwrap().is_none()
        );
        assert_eq!(
            read(br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#)
                .unwrap_err()
                .to_string(),
            "stream not found"
        );
        let unavailable =
            br#"{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}"#;
        assert!(matches!(read(unavailable), Err(Failed::Unavailable(_))));
        assert!(read(b"{}").is_err());
    }
}
