//! Pull requests to a durable, and what the server answers to them.
//!
//! One inbox serves all pulls of a connection. A status message of a replicated durable can overtake the messages that
//! it speaks of, since those wait for their Raft entry and the status does not: so a pull that is announced to be over
//! is waited for until it has brought what it announced, and what comes later still arrives in the same inbox. Nothing
//! that the server has handed out is left to the ack wait.
//!
//! Heartbeats tell a pull that waits from one whose server has forgotten it: a leader that was killed ends no pull.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{HeaderMap, StatusCode, Subscriber};
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::time::Instant;

use super::Broker;
use crate::config::StreamKind;

/// How long one pull waits for messages, unless the durable allows less. The server ends it.
const EXPIRES: Duration = Duration::from_secs(20);
/// How often the server says that a pull still waits. It takes no more than half of the time that the pull waits.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The bytes of one pull beyond those of the largest message.
const PULL_BYTES: usize = 4 * 1024 * 1024;
/// How long messages may take that a pull has announced: longer than a Raft group needs, shorter than the ack wait.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(10);
/// How much later than expected a heartbeat may come.
const HEARTBEAT_SLACK: Duration = Duration::from_secs(1);
/// How long the client may need to read what has arrived.
const READ_WITHIN: Duration = Duration::from_millis(500);
/// The header of a status message with the number of messages that the pull has not brought.
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";

/// What server and durable allow one pull to ask for. Learned from what they refuse.
#[derive(Debug)]
pub(super) struct PullLimits {
    messages: AtomicUsize,
    expires_ms: AtomicU64,
    bytes: AtomicUsize,
    /// Whether it was logged that pulls are limited.
    said: AtomicBool,
}

impl Default for PullLimits {
    fn default() -> Self {
        let expires_ms = u64::try_from(EXPIRES.as_millis()).unwrap_or(u64::MAX);
        Self {
            messages: AtomicUsize::new(usize::MAX),
            expires_ms: AtomicU64::new(expires_ms),
            bytes: AtomicUsize::new(usize::MAX),
            said: AtomicBool::new(false),
        }
    }
}

impl PullLimits {
    /// The most messages of one pull.
    pub(super) fn messages(&self) -> usize {
        self.messages.load(Ordering::Relaxed)
    }

    fn request(&self, messages: usize, max_payload: usize) -> Request {
        let expires = Duration::from_millis(self.expires_ms.load(Ordering::Relaxed));
        // Never less than the largest message, or one such would end every pull.
        let bytes = max_payload.saturating_add(PULL_BYTES).min(self.bytes.load(Ordering::Relaxed));
        let nanos = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Request {
            batch: messages.min(self.messages()),
            expires: nanos(expires),
            max_bytes: bytes,
            idle_heartbeat: nanos(HEARTBEAT.min(expires / 2)),
        }
    }

    /// Forgets the limit of bytes, which lets a message through no more: it may have been raised since.
    fn forget_bytes(&self) {
        self.bytes.store(usize::MAX, Ordering::Relaxed);
    }

    /// Lowers a limit to what the server said. Whether that was news.
    fn learn(&self, exceeded: Exceeded) -> bool {
        match exceeded {
            Exceeded::Messages(most) => self.messages.fetch_min(most.max(1), Ordering::Relaxed) > most.max(1),
            Exceeded::Bytes(most) => self.bytes.fetch_min(most.max(1), Ordering::Relaxed) > most.max(1),
            Exceeded::Expires(most) => {
                let now = self.expires_ms.load(Ordering::Relaxed);
                // What cannot be read is found by halving.
                let most = most.map_or(now / 2, |most| u64::try_from(most.as_millis()).unwrap_or(now / 2)).max(1);
                self.expires_ms.fetch_min(most, Ordering::Relaxed) > most
            }
        }
    }
}

#[derive(Serialize)]
struct Request {
    batch: usize,
    /// Nanoseconds.
    expires: u64,
    max_bytes: usize,
    /// Nanoseconds.
    idle_heartbeat: u64,
}

/// A limit of server or durable that a pull was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exceeded {
    Messages(usize),
    Bytes(usize),
    /// The longest time, where it can be read.
    Expires(Option<Duration>),
}

impl fmt::Display for Exceeded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages(most) => write!(formatter, "MaxRequestBatch is {most}"),
            Self::Bytes(most) => write!(formatter, "MaxRequestMaxBytes is {most}"),
            Self::Expires(Some(most)) => {
                write!(formatter, "MaxRequestExpires is {}", humantime::format_duration(*most))
            }
            Self::Expires(None) => write!(formatter, "MaxRequestExpires is lower"),
        }
    }
}

/// A status message, read.
#[derive(Debug, PartialEq, Eq)]
enum Status {
    Heartbeat,
    /// The pull is over; so many messages it has not brought.
    Over(usize),
    /// The pull is refused for a limit, which the next one keeps.
    Exceeded(Exceeded),
    /// The pull ended, and it is not known what it had still brought.
    Ended,
}

/// What a pull brings.
pub(super) enum Arrival {
    Message(Box<jetstream::Message>),
    /// The pull is over, and everything that it announced has arrived.
    Over,
    /// The pull was refused, and asks for less from now on.
    Adapted,
    /// The pull ended before it had brought what it announced, or the server has forgotten it.
    Interrupted(Interruption),
}

/// Why a pull ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Interruption {
    /// The server's words: a change of leadership, a shutdown, a deleted durable, too many pulls.
    Server(String),
    /// No heartbeat came.
    Silent,
    /// So many messages were announced and did not arrive in time.
    Missing(usize),
    /// The client gave the subscription up.
    Closed,
}

impl Interruption {
    /// Whether the durable itself may be gone.
    pub(super) fn is_gone(&self) -> bool {
        let gone = |said: &String| said.starts_with("503") || said.ends_with("Deleted");
        matches!(self, Self::Server(said) if gone(said))
    }

    /// The value of the metric's label.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Server(_) => "server",
            Self::Silent => "silent",
            Self::Missing(_) => "missing",
            Self::Closed => "closed",
        }
    }
}

impl fmt::Display for Interruption {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(said) => write!(formatter, "the server ended it: {said}"),
            Self::Silent => formatter.write_str("no heartbeat came"),
            Self::Missing(count) => write!(formatter, "{count} announced messages did not arrive"),
            Self::Closed => formatter.write_str("the subscription was closed"),
        }
    }
}

/// The pulls on one durable over one connection, one at a time.
pub(super) struct Pulls<'a> {
    broker: &'a Broker,
    limits: &'a PullLimits,
    stream: StreamKind,
    durable: &'a str,
    next: String,
    inbox: String,
    subscriber: Subscriber,
    number: u64,
    /// Messages that the current pull asked for, and those that it may still bring.
    asked: usize,
    outstanding: usize,
    heartbeat: Duration,
    /// When the current pull is given up unless something arrives; or, once it is over, unless everything arrives.
    patience: Instant,
    over: bool,
    /// Whether the time was over once and what had arrived was waited for.
    late: bool,
}

impl<'a> Pulls<'a> {
    /// Subscribes to an inbox for the pulls to come.
    pub(super) async fn open(
        broker: &'a Broker,
        limits: &'a PullLimits,
        stream: StreamKind,
        durable: &'a str,
    ) -> Result<Self, async_nats::SubscribeError> {
        let inbox = broker.client.new_inbox();
        let subscriber = broker.client.subscribe(format!("{inbox}.*")).await?;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{durable}", broker.names.stream(stream));
        Ok(Self {
            broker,
            limits,
            stream,
            durable,
            next,
            inbox,
            subscriber,
            number: 0,
            asked: 0,
            outstanding: 0,
            heartbeat: HEARTBEAT,
            patience: Instant::now(),
            over: true,
            late: false,
        })
    }

    /// Asks for up to so many messages.
    pub(super) async fn ask(&mut self, messages: usize) -> Result<(), async_nats::PublishError> {
        let request = self.limits.request(messages, self.broker.max_payload());
        self.number += 1;
        (self.asked, self.outstanding, self.late) = (request.batch, request.batch, false);
        self.over = false;
        self.heartbeat = Duration::from_nanos(request.idle_heartbeat);
        self.hear();
        // Numbers and nothing else: this always serializes.
        let body = serde_json::to_vec(&request).unwrap_or_default();
        let reply = format!("{}.{}", self.inbox, self.number);
        self.broker.client.publish_with_reply(self.next.clone(), reply, body.into()).await
    }

    /// Waits for what the current pull brings. Can be dropped at any point without losing anything.
    pub(super) async fn next(&mut self) -> Arrival {
        loop {
            if self.outstanding == 0 {
                return Arrival::Over;
            }
            let message = match tokio::time::timeout_at(self.patience, self.subscriber.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return self.interrupted(Interruption::Closed),
                // A process that was stopped for a while finds its time over before it has read what arrived.
                Err(_) if !self.late => {
                    self.late = true;
                    self.patience = Instant::now() + READ_WITHIN;
                    continue;
                }
                Err(_) if self.over => return self.interrupted(Interruption::Missing(self.outstanding)),
                Err(_) => return self.interrupted(Interruption::Silent),
            };
            self.late = false;
            let Some(status) = self.status(&message) else {
                // May be one that an earlier pull announced. It is as good, and the current one brings as many.
                self.outstanding -= 1;
                if !self.over {
                    self.hear();
                }
                let context = self.broker.jetstream.clone();
                return Arrival::Message(Box::new(jetstream::Message { message, context }));
            };
            if !self.is_current(&message.subject) {
                continue;
            }
            let said = message.description.unwrap_or_default();
            match read(status, &said, message.headers.as_ref()) {
                Status::Heartbeat => self.hear(),
                // Nothing fits into what the durable allows: without a pause it would be asked again and again.
                Status::Over(missed) if missed >= self.asked && said.contains("MaxBytes") => {
                    self.limits.forget_bytes();
                    let why = format!("{} {said}, and the next message is larger", status.as_u16());
                    return self.interrupted(Interruption::Server(why));
                }
                Status::Over(missed) if self.outstanding > missed => {
                    tracing::debug!(
                        "A pull from {} is over before {} messages",
                        self.stream,
                        self.outstanding - missed
                    );
                    self.outstanding -= missed;
                    self.over = true;
                    self.patience = Instant::now() + ANNOUNCED_WITHIN;
                }
                Status::Over(_) => {
                    self.outstanding = 0;
                    return Arrival::Over;
                }
                Status::Exceeded(exceeded) => {
                    self.outstanding = 0;
                    if self.limits.learn(exceeded) && !self.limits.said.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            nats.stream = %self.stream,
                            nats.durable = self.durable,
                            "NATS rejected a pull on durable {} of {} ({exceeded}); smaller pulls are used, which lowers \
                             throughput. Remove that limit of the consumer or account",
                            self.durable,
                            self.stream
                        );
                    }
                    return Arrival::Adapted;
                }
                Status::Ended => return self.interrupted(Interruption::Server(format!("{} {said}", status.as_u16()))),
            }
        }
    }

    /// A message that has already arrived, if there is one.
    pub(super) fn arrived(&mut self) -> Option<jetstream::Message> {
        while let Some(Some(message)) = self.subscriber.next().now_or_never() {
            if self.status(&message).is_none() {
                self.outstanding = self.outstanding.saturating_sub(1);
                return Some(jetstream::Message { message, context: self.broker.jetstream.clone() });
            }
        }
        None
    }

    /// Something arrived: the server has not forgotten the pull.
    fn hear(&mut self) {
        self.patience = Instant::now() + self.heartbeat * 2 + HEARTBEAT_SLACK;
    }

    /// The status of a status message. A message of the stream is none, whatever its headers begin with: it comes with
    /// the subject on which it was published.
    fn status(&self, message: &async_nats::Message) -> Option<StatusCode> {
        let is_reply = message.subject.strip_prefix(&*self.inbox).is_some_and(|rest| rest.starts_with('.'));
        message.status.filter(|status| is_reply && *status != StatusCode::OK)
    }

    fn is_current(&self, subject: &str) -> bool {
        subject.rsplit_once('.').is_some_and(|(_, number)| number.parse() == Ok(self.number))
    }

    fn interrupted(&mut self, why: Interruption) -> Arrival {
        self.outstanding = 0;
        Arrival::Interrupted(why)
    }
}

/// Reads a status message: the words are those of nats-server 2.12 to 2.15.
fn read(status: StatusCode, said: &str, headers: Option<&HeaderMap>) -> Status {
    let pending = || headers?.get(PENDING_MESSAGES)?.as_str().parse().ok();
    let after = |words: &str| said.strip_prefix(words).map(str::trim);
    if status == StatusCode::IDLE_HEARTBEAT {
        return Status::Heartbeat;
    }
    if let Some(most) = after("Exceeded MaxRequestBatch of").and_then(|most| most.parse().ok()) {
        return Status::Exceeded(Exceeded::Messages(most));
    }
    if let Some(most) = after("Exceeded MaxRequestMaxBytes of").and_then(|most| most.parse().ok()) {
        return Status::Exceeded(Exceeded::Bytes(most));
    }
    if let Some(most) = after("Exceeded MaxRequestExpires of") {
        return Status::Exceeded(Exceeded::Expires(humantime::parse_duration(most).ok()));
    }
    match (status, pending()) {
        (_, Some(pending)) => Status::Over(pending),
        (StatusCode::NOT_FOUND | StatusCode::TIMEOUT, None) => Status::Over(usize::MAX),
        _ => Status::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, said: &str, pending: Option<&str>) -> Status {
        let mut headers = HeaderMap::new();
        if let Some(pending) = pending {
            headers.insert(PENDING_MESSAGES, pending);
        }
        read(StatusCode::from_u16(code).unwrap(), said, Some(&headers))
    }

    #[test]
    fn a_status_says_what_a_pull_has_not_brought() {
        assert_eq!(status(100, "Idle Heartbeat", Some("3")), Status::Heartbeat);
        assert_eq!(status(408, "Request Timeout", Some("64")), Status::Over(64));
        assert_eq!(status(409, "Batch Completed", Some("0")), Status::Over(0));
        assert_eq!(status(409, "Message Size Exceeds MaxBytes", Some("12")), Status::Over(12));
        assert_eq!(status(404, "No Messages", None), Status::Over(usize::MAX));
        assert_eq!(status(409, "Leadership Change", None), Status::Ended);
        assert_eq!(status(409, "Exceeded MaxWaiting", None), Status::Ended);
        assert_eq!(status(503, "", None), Status::Ended);
    }

    #[test]
    fn a_refused_pull_says_what_would_be_taken() {
        let exceeded = |said| status(409, said, None);
        assert_eq!(exceeded("Exceeded MaxRequestBatch of 32"), Status::Exceeded(Exceeded::Messages(32)));
        assert_eq!(exceeded("Exceeded MaxRequestMaxBytes of 1024"), Status::Exceeded(Exceeded::Bytes(1024)));
        let expires = |most| Status::Exceeded(Exceeded::Expires(most));
        assert_eq!(exceeded("Exceeded MaxRequestExpires of 5s"), expires(Some(Duration::from_secs(5))));
        assert_eq!(exceeded("Exceeded MaxRequestExpires of 1m0s"), expires(Some(Duration::from_secs(60))));
        assert_eq!(exceeded("Exceeded MaxRequestExpires of a while"), expires(None));
    }

    #[test]
    fn what_was_refused_once_is_not_asked_for_again() {
        let limits = PullLimits::default();
        assert!(limits.learn(Exceeded::Messages(32)));
        assert!(!limits.learn(Exceeded::Messages(32)));
        assert!(limits.learn(Exceeded::Expires(Some(Duration::from_secs(1)))));
        assert!(limits.learn(Exceeded::Expires(None)));
        let request = limits.request(64, 1024);
        assert_eq!((request.batch, request.expires, request.idle_heartbeat), (32, 500_000_000, 250_000_000));
        assert_eq!(request.max_bytes, 1024 + PULL_BYTES);
    }
}
