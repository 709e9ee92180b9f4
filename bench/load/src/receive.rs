//! A receiver that answers 204 and knows what it has received.
//!
//! `GET /` tells, and so does the end. With `pace` at the other end of the way, an id says when its webhook was due.

use std::cell::RefCell;
use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::Failure;
use crate::pace::{Spread, Times};
use crate::webhook::now_nanos;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
    /// How long it thinks about an answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

/// What has come.
struct Seen {
    requests: u64,
    without_id: u64,
    ids: HashSet<Box<[u8]>>,
    doubled: u64,
    circle: Times,
}

/// What is told.
#[derive(Serialize)]
struct Report {
    requests: u64,
    without_id: u64,
    distinct: usize,
    doubled: u64,
    /// From when a webhook was due until it came here.
    circle_ms: Spread,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let seen = Rc::new(RefCell::new(Seen::new()?));
    let listener = TcpListener::bind(arguments.listen).await?;
    let (mut stop, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let delay = Duration::from_millis(arguments.delay_ms);
    let here = LocalSet::new();
    let accept = async {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(serve(stream, seen.clone(), delay));
        }
    };
    let accepted: Result<(), Failure> = tokio::select! {
        ended = here.run_until(accept) => ended,
        _ = stop.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    println!("{}", serde_json::to_string(&seen.borrow().report())?);
    accepted
}

async fn serve(stream: TcpStream, seen: Rc<RefCell<Seen>>, delay: Duration) {
    let answer = service_fn(|request| answer(request, seen.clone(), delay));
    // A connection that breaks is the sender's to notice: it gets no answer, and the id is not counted twice by us.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await);
}

async fn answer(
    request: Request<Incoming>,
    seen: Rc<RefCell<Seen>>,
    delay: Duration,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() == Method::GET {
        let report = serde_json::to_vec(&seen.borrow().report()).unwrap_or_default();
        return Ok(Response::new(Full::from(report)));
    }
    let (head, body) = request.into_parts();
    let whole = body.collect().await.is_ok();
    let mut answer = Response::new(Full::default());
    if whole {
        seen.borrow_mut().count(head.headers.get("webhook-id").map_or(b"", |id| id.as_bytes()));
        *answer.status_mut() = StatusCode::NO_CONTENT;
    } else {
        *answer.status_mut() = StatusCode::BAD_REQUEST;
    }
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    Ok(answer)
}

impl Seen {
    fn new() -> Result<Self, Failure> {
        Ok(Self { requests: 0, without_id: 0, ids: HashSet::new(), doubled: 0, circle: Times::new()? })
    }

    fn count(&mut self, id: &[u8]) {
        self.requests += 1;
        if id.is_empty() {
            self.without_id += 1;
        } else if !self.ids.insert(id.into()) {
            self.doubled += 1;
        } else if let Some(due) = due(id) {
            self.circle.add(Duration::from_nanos(now_nanos().saturating_sub(due)));
        }
    }

    fn report(&self) -> Report {
        Report {
            requests: self.requests,
            without_id: self.without_id,
            distinct: self.ids.len(),
            doubled: self.doubled,
            circle_ms: self.circle.spread(),
        }
    }
}

/// The time in an id of `pace`: `…-<nanoseconds>-<number>`.
fn due(id: &[u8]) -> Option<u64> {
    let nanos = std::str::from_utf8(id).ok()?.rsplit('-').nth(1)?;
    // Nineteen digits until the year 2286; wrk's ids have fewer.
    (nanos.len() == 19).then(|| nanos.parse().ok())?
}
