//! Whether the client library can read a message: the library itself is asked.
//!
//! A throw-away client is connected to a server that stands in this file, over the loopback interface. It is handed
//! the message as nats-server would write it, without its body, and a ping. A client that has read the message answers
//! the ping; one that could not closes its connection, or its task has panicked, which looks the same from here.
//! Nothing outside of this process can end such a connection, so its end is a proof, whatever the message contains.

use std::time::Duration;

use async_nats::ConnectOptions;
use futures_util::StreamExt;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

/// How long one test connection may take.
const RUN_WITHIN: Duration = Duration::from_secs(10);
/// How long testing messages one by one may take; those that are left are not tested.
const TEST_WITHIN: Duration = Duration::from_secs(60);
/// How often one message is tested where the test fails, and the pause between.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_millis(100);
/// Messages that are tested at once, each with a client of its own.
const AT_ONCE: usize = 8;
/// The longest line that the throw-away client writes.
const MAX_LINE: u64 = 16 * 1024;
/// What the server says of itself.
const INFO: &str = r#"INFO {"server_id":"test","version":"2.12.0","headers":true,"max_payload":67108864,"proto":1}"#;
/// Where the server would hear that a message is done with: every message of a durable has such a reply subject.
const REPLY: &str = "$JS.ACK.S.C.1.1.1.1.0";
/// A message that every client reads.
const CONTROL: Suspect<'_> = Suspect { subject: "test", headers: b"NATS/1.0\r\nA: b\r\n\r\n" };

/// What there is to test of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect<'a> {
    pub(super) subject: &'a str,
    /// The header block; empty for a message without headers.
    pub(super) headers: &'a [u8],
}

/// The test itself could not be made. It says nothing about the message.
#[derive(Debug, thiserror::Error)]
pub(super) enum TestError {
    #[error("the test connection could not be made: {0}")]
    Connect(String),
    #[error("the test connection did not answer in time")]
    Silent,
    #[error("the test connection ended before the message was handed out")]
    Control,
}

/// Tells for each message whether the client library reads it, or why that could not be tested.
pub(super) async fn test(suspects: &[Suspect<'_>]) -> Vec<Result<bool, TestError>> {
    let mut verdicts: Vec<_> = suspects.iter().map(|_| Ok(true)).collect();
    let until = Instant::now() + TEST_WITHIN;
    // A client that reads everything can be given everything; one that does not is good for one message.
    let (mut together, mut single): (Vec<usize>, Vec<usize>) =
        (0..suspects.len()).partition(|index| looks_readable(suspects[*index].headers));
    while !together.is_empty() {
        match refused_first(suspects, &together).await {
            Ok(None) => break,
            Ok(Some(refused)) => {
                single.push(together[refused]);
                together.drain(..=refused);
            }
            // Nothing is known of any of them.
            Err(_) => single.append(&mut together),
        }
    }
    let testing =
        futures_util::stream::iter(single).map(|index| async move { (index, alone_by(suspects[index], until).await) });
    for (index, verdict) in testing.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await {
        verdicts[index] = verdict;
    }
    verdicts
}

/// The place of the first of these that does not seem to be read; none when all are read.
async fn refused_first(suspects: &[Suspect<'_>], these: &[usize]) -> Result<Option<usize>, TestError> {
    let these: Vec<Suspect<'_>> = these.iter().map(|index| suspects[*index]).collect();
    if run(&these, these.len()).await? == these.len() {
        return Ok(None);
    }
    // One of them is unreadable after all: one by one, until it comes.
    let read = run(&these, 1).await?;
    Ok((read < these.len()).then_some(read))
}

/// Tests one message, again where the test fails: a busy machine may have no time or no descriptor for a moment.
async fn alone_by(suspect: Suspect<'_>, until: Instant) -> Result<bool, TestError> {
    let mut tries = 1;
    loop {
        match tokio::time::timeout_at(until, alone(suspect)).await {
            Ok(Err(_)) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep_until(until.min(Instant::now() + AGAIN)).await;
            }
            tested => return tested.unwrap_or(Err(TestError::Silent)),
        }
    }
}

/// Tests one message with nothing before it but what is known to be readable.
async fn alone(suspect: Suspect<'_>) -> Result<bool, TestError> {
    match run(&[CONTROL, suspect], 1).await? {
        0 => Err(TestError::Control),
        read => Ok(read > 1),
    }
}

/// Whether a block looks as headers usually do. It decides only how a message is tested.
fn looks_readable(headers: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(headers) else { return false };
    let Some(lines) = text.strip_prefix("NATS/1.0\r\n") else { return headers.is_empty() };
    let named = |line: &str| {
        let name = line.split_once(':').map(|(name, _)| name);
        name.is_some_and(|name| !line.contains('\r') && name.bytes().all(|byte| byte.is_ascii_graphic()))
    };
    lines.split("\r\n").filter(|line| !line.is_empty()).all(named)
}

/// Hands messages to a new client, some at once, and counts how many it has answered when its connection ends. A client
/// answers nothing of what it reads together with a message that it does not read.
async fn run(suspects: &[Suspect<'_>], at_once: usize) -> Result<usize, TestError> {
    tokio::time::timeout(RUN_WITHIN, hand_out(suspects, at_once)).await.map_err(|_| TestError::Silent)?
}

async fn hand_out(suspects: &[Suspect<'_>], at_once: usize) -> Result<usize, TestError> {
    let failed = |error: &dyn std::fmt::Display| TestError::Connect(error.to_string());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| failed(&error))?;
    let address = listener.local_addr().map_err(|error| failed(&error))?;
    // Any process of this machine can connect here; only our own client knows this.
    let token = format!("{:032x}", rand::random::<u128>());
    // Its listener is gone by the time it would connect again.
    let options = ConnectOptions::new()
        .token(token.clone())
        .max_reconnects(1)
        .reconnect_delay_callback(|_| Duration::ZERO)
        .connection_timeout(RUN_WITHIN);
    let (client, socket) = tokio::join!(options.connect(address.to_string()), welcome(listener, &token));
    let mut socket = socket?;
    let _client = client.map_err(|error| failed(&error))?;
    let mut read = 0;
    for together in suspects.chunks(at_once.max(1)) {
        // It may end before everything is written.
        drop(socket.write_all(&written(together)).await);
        let answered = count_pongs(&mut socket, together.len()).await;
        read += answered;
        if answered < together.len() {
            break;
        }
    }
    Ok(read)
}

/// Accepts the client and answers its greeting.
async fn welcome(listener: TcpListener, token: &str) -> Result<BufReader<TcpStream>, TestError> {
    let failed = |error: std::io::Error| TestError::Connect(error.to_string());
    let (socket, _) = listener.accept().await.map_err(failed)?;
    drop(listener);
    let mut socket = BufReader::new(socket);
    socket.write_all(format!("{INFO}\r\n").as_bytes()).await.map_err(failed)?;
    let mut line = String::new();
    while !line.starts_with("PING") {
        line.clear();
        let read = (&mut socket).take(MAX_LINE).read_line(&mut line).await.map_err(failed)?;
        if read == 0 || (line.starts_with("CONNECT") && !line.contains(token)) {
            return Err(TestError::Connect("somebody else connected to it".to_owned()));
        }
    }
    socket.write_all(b"PONG\r\n").await.map_err(failed)?;
    Ok(socket)
}

/// Each message as the server writes it, and a ping behind it.
fn written(suspects: &[Suspect<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Suspect { subject, headers } in suspects {
        let length = headers.len();
        let line = match length {
            0 => format!("MSG {subject} 1 {REPLY} 0\r\n"),
            _ => format!("HMSG {subject} 1 {REPLY} {length} {length}\r\n"),
        };
        bytes.extend_from_slice(line.as_bytes());
        bytes.extend_from_slice(headers);
        bytes.extend_from_slice(b"\r\nPING\r\n");
    }
    bytes
}

/// How many pings are answered, until all are or the connection ends.
async fn count_pongs(socket: &mut BufReader<TcpStream>, all: usize) -> usize {
    let (mut pongs, mut line) = (0, Vec::new());
    while pongs < all {
        line.clear();
        match (&mut *socket).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => break,
            Ok(_) if line.starts_with(b"PONG") => pongs += 1,
            Ok(_) => {}
        }
    }
    pongs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_library_says_what_it_can_read() {
        let cases: &[(&[u8], bool)] = &[
            (b"", true),
            (b"NATS/1.0\r\n\r\n", true),
            (b"NATS/1.0\r\nA: b\r\n\r\n", true),
            (b"NATS/1.0\r\nA:b\r\n\r\n", true),
            (b"NATS/1.0\r\nA: b\r\n  folded\r\n\r\n", true),
            (b"NATS/1.0\r\nA: caf\xc3\xa9\r\n\r\n", true),
            (b"NATS/1.0 404 No Messages\r\n\r\n", true),
            (b"NATS/1.0 99 No\r\n\r\n", false),
            (b"NATS/1.0 \xc2\xa0x\r\n\r\n", false),
            (b"NATS/1.0abc\r\n\r\n", false),
            (b"NATS/2.0\r\nA: b\r\n\r\n", false),
            (b"NATS/1.1\r\nA: b\r\n\r\n", false),
            (b"nats/1.0\r\nA: b\r\n\r\n", false),
            (b"FOO\r\n\r\n", false),
            (b"\r\n", false),
            (b"NATS/1.0\r\nA: b\rc\r\n\r\n", false),
            (b"NATS/1.0\r\nA b: c\r\n\r\n", false),
            (b"NATS/1.0\r\n: c\r\n\r\n", true),
            (b"NATS/1.0\r\nno colon\r\n\r\n", false),
            (b"NATS/1.0\r\nA: \xff\r\n\r\n", false),
            (b"NATS/1.0\r\nA\xc3\xa9: b\r\n\r\n", false),
        ];
        let suspects: Vec<_> = cases.iter().map(|(headers, _)| Suspect { subject: "outbox.a", headers }).collect();
        let verdicts = test(&suspects).await;
        for ((headers, expected), verdict) in cases.iter().zip(verdicts) {
            assert_eq!(verdict.unwrap(), *expected, "{:?}", String::from_utf8_lossy(headers));
        }
    }

    #[tokio::test]
    async fn a_subject_can_be_what_the_library_cannot_read() {
        let headers = b"NATS/1.0\r\nA: b\r\n\r\n";
        let suspects = [
            Suspect { subject: "outbox.a\u{2003}b", headers },
            Suspect { subject: "outbox.caf\u{e9}", headers },
            Suspect { subject: "outbox.a\u{2003}b", headers: b"" },
        ];
        let verdicts: Vec<_> = test(&suspects).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(verdicts, [false, true, true]);
    }

    #[tokio::test]
    async fn a_test_that_cannot_be_made_says_nothing_about_the_message() {
        let suspect = Suspect { subject: "outbox.a", headers: b"FOO\r\n\r\n" };
        assert!(matches!(alone_by(suspect, Instant::now()).await, Err(TestError::Silent)));
        assert!(!alone_by(suspect, Instant::now() + TEST_WITHIN).await.unwrap());
    }
}
