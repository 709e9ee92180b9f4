//! Messages that the client library cannot read.
//!
//! Headers that are not what NATS clients write (a bare CR, a name with a blank, bytes that are not UTF-8) end
//! the library's connection, or the library itself, as soon as such a message is delivered, and again at every
//! delivery. So before anything is taken over a new connection, what was delivered and not acked before is
//! looked at as raw bytes; what cannot be read is buried and taken off the stream.

use std::time::SystemTime;

use async_nats::jetstream;
use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

use super::provision::{COURIER, Plan, Problem};
use super::publish::Outgoing;
use super::{Names, to_nats};
use crate::config::StreamKind;

/// The most messages that are looked at for one connection: what all couriers together may hold.
const MAX_LOOKED_AT: u64 = 65_536;
/// Messages that are asked for at once.
const AT_ONCE: usize = 32;

/// A message that no agent's library would have written.
#[derive(Debug)]
pub(crate) struct Unreadable {
    pub(crate) stream: StreamKind,
    /// The stream's name as the server knows it.
    pub(crate) stream_name: String,
    /// The subject, without a configured prefix.
    pub(crate) subject: String,
    pub(crate) sequence: u64,
    pub(crate) stored: SystemTime,
    pub(crate) payload: Bytes,
}

/// What to write down for an unreadable message before it is taken off. Pure: whoever buries decides.
pub(crate) type Bury = fn(&Unreadable, now: SystemTime, max_payload: usize) -> Vec<Outgoing>;

/// Buries and removes what cannot be read among the messages that were delivered and not acked.
pub(super) async fn remove(
    client: &async_nats::Client,
    jetstream: &jetstream::Context,
    plan: &Plan,
    bury: Bury,
) -> Result<(), Problem> {
    for kind in [StreamKind::Outbox, StreamKind::Retry] {
        let name = plan.names.stream(kind);
        let handle = jetstream.get_stream_no_info(&name).await.map_err(|error| no_answer(&error))?;
        let durable = handle.consumer_info(COURIER).await.map_err(|error| no_answer(&error))?;
        let last = durable.delivered.stream_sequence;
        let first = (durable.ack_floor.stream_sequence + 1).max(last.saturating_sub(MAX_LOOKED_AT));
        let look = |sequence| unreadable(client, &plan.names, kind, sequence);
        let mut found = futures_util::stream::iter(first..=last).map(look).buffer_unordered(AT_ONCE);
        while let Some(found) = found.next().await {
            let Some(found) = found? else { continue };
            for outgoing in bury(&found, SystemTime::now(), client.max_payload()) {
                let (subject, headers) = (plan.names.subject(&outgoing.subject), to_nats(&outgoing.headers));
                let written = jetstream.publish_with_headers(subject, headers, outgoing.payload).await;
                written.map_err(|error| no_answer(&error))?.await.map_err(|error| no_answer(&error))?;
            }
            handle.delete_message(found.sequence).await.map_err(|error| no_answer(&error))?;
            tracing::warn!("Removed message {} from {name}: its headers cannot be read", found.sequence);
        }
    }
    Ok(())
}

fn no_answer(error: &dyn std::fmt::Display) -> Problem {
    Problem::NoAnswer(error.to_string())
}

#[derive(Serialize)]
struct Request {
    seq: u64,
}

/// The server's answer, in the raw form that the library does not offer: headers as they are.
#[derive(Deserialize)]
struct Answer {
    message: Option<Raw>,
}

#[derive(Deserialize)]
struct Raw {
    subject: String,
    #[serde(default)]
    hdrs: String,
    #[serde(default)]
    data: String,
    time: String,
}

async fn unreadable(
    client: &async_nats::Client,
    names: &Names,
    stream: StreamKind,
    sequence: u64,
) -> Result<Option<Unreadable>, Problem> {
    let stream_name = names.stream(stream);
    let request = serde_json::to_vec(&Request { seq: sequence }).unwrap_or_default();
    let asked = client.request(format!("$JS.API.STREAM.MSG.GET.{stream_name}"), request.into()).await;
    let answer: Answer = serde_json::from_slice(&asked.map_err(|error| no_answer(&error))?.payload)
        .map_err(|error| no_answer(&error))?;
    // What is no longer there needs no looking at.
    let Some(raw) = answer.message else { return Ok(None) };
    let decode = |text: &str| BASE64.decode(text.as_bytes()).unwrap_or_default();
    if is_readable(&raw.subject, &decode(&raw.hdrs)) {
        return Ok(None);
    }
    Ok(Some(Unreadable {
        stream,
        stream_name,
        subject: names.strip(&raw.subject).to_owned(),
        sequence,
        stored: humantime::parse_rfc3339(&raw.time).unwrap_or(SystemTime::UNIX_EPOCH),
        payload: decode(&raw.data).into(),
    }))
}

/// Whether the client library reads a message with these headers (async-nats 0.51, `connection.rs`).
fn is_readable(subject: &str, headers: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(headers) else { return false };
    if subject.contains(char::is_whitespace) || subject.contains(char::REPLACEMENT_CHARACTER) {
        return false;
    }
    let mut lines = text.lines().skip(1).filter(|line| !line.is_empty());
    let mut first = true;
    lines.all(|line| {
        let continues = !std::mem::take(&mut first) && line.starts_with(char::is_whitespace);
        let named = |line: &str| {
            let name = line.split_once(':').map(|(name, _)| name);
            name.is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_graphic()))
        };
        !line.contains('\r') && (continues || named(line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_the_library_cannot_read_are_recognised() {
        for (headers, expected) in [
            (&b""[..], true),
            (b"NATS/1.0\r\nA: b\r\n\r\n", true),
            (b"NATS/1.0\r\nA: b\r\n  folded\r\n\r\n", true),
            (b"NATS/1.0\r\nA: caf\xc3\xa9\r\n\r\n", true),
            (b"NATS/1.0\r\nA: b\rc\r\n\r\n", false),
            (b"NATS/1.0\r\nA b: c\r\n\r\n", false),
            (b"NATS/1.0\r\nno colon\r\n\r\n", false),
            (b"NATS/1.0\r\nA: \xff\r\n\r\n", false),
            (b"NATS/1.0\r\nA\xc3\xa9: b\r\n\r\n", false),
        ] {
            assert_eq!(is_readable("outbox.a", headers), expected, "{:?}", String::from_utf8_lossy(headers));
        }
        assert!(!is_readable("outbox.a\u{2003}b", b""));
    }
}
