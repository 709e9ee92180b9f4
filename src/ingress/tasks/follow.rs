//! `GET /tasks/{id}/events`: a task's moves as Server-Sent Events.
//!
//! An event's id is the number of the move, so a client that comes again with `Last-Event-ID` gets what it
//! has missed out of the task's history. The news on NATS only wake the stream up; what is sent is read from the
//! state.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Desk;
use super::ask::Shown;
use super::client::Client;
use super::error::TaskError;
use crate::broker::News;
use crate::listener::Peer;
use crate::task::{self, Record, Step};

/// How often the state is looked at if no news come, and a sign of life sent.
const LOOK: Duration = Duration::from_secs(15);
/// How long one stream lasts; the client comes again and misses nothing.
const LONGEST: Duration = Duration::from_secs(3600);

pub(super) async fn events(
    State(desk): State<Arc<Desk>>,
    task_id: Result<Path<String>, PathRejection>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Response {
    let task_id = task_id.map(|Path(task_id)| task_id).unwrap_or_default();
    let (at, task_id) = (&desk, &task_id);
    desk.attend(peer, &[Method::GET], request, |visit| async move {
        let last = visit.head.headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default().to_owned());
        let followed = at.clone().follow(visit.client, task_id, last).await;
        followed.map(|response| ("followed", response))
    })
    .await
}

/// A client that follows a task.
struct Follower {
    desk: Arc<Desk>,
    client: String,
    task_id: String,
    news: News,
    /// The last move that it was told; none before the first.
    last: Option<u64>,
    until: Instant,
    over: bool,
    _place: OwnedSemaphorePermit,
}

impl Desk {
    async fn follow(
        self: Arc<Self>,
        client: &Client,
        task_id: &str,
        last: Option<String>,
    ) -> Result<Response, TaskError> {
        let last = match last.filter(|last| !last.is_empty()) {
            Some(last) => {
                let wrong = |_| TaskError::Invalid("`Last-Event-ID` is none that was sent".to_owned());
                Some(last.parse::<u64>().map_err(wrong)?)
            }
            None => None,
        };
        let record = self.task(client, task_id).await?;
        let place = client.streams.clone().try_acquire_owned();
        let place = place.map_err(|_| TaskError::TooMany("tasks are followed by this client"))?;
        // Before the state is read again: what happens in between is news.
        let news = self.receiver.broker.listen(&task::state_subject(&record.agent, task_id)).await?;
        let follower = Follower {
            client: client.name.to_string(),
            task_id: task_id.to_owned(),
            desk: self,
            news,
            last,
            until: Instant::now() + LONGEST,
            over: false,
            _place: place,
        };
        let events = stream::unfold(follower, |mut follower| async move {
            let sent = follower.next().await?;
            Some((Ok::<_, std::convert::Infallible>(sent), follower))
        });
        let mut response = Response::new(Body::from_stream(events));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

impl Follower {
    /// What is sent next; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.over {
            let record = self.read().await?;
            let told: Vec<&Step> =
                record.history.iter().filter(|step| self.last.is_none_or(|last| step.number > last)).collect();
            // A client that has seen the end gets nothing, and is let go.
            self.over = record.status.is_terminal();
            if let Some(newest) = told.last() {
                self.last = Some(newest.number);
                return Some(told.into_iter().map(|step| event(&record, step)).collect::<String>().into());
            }
            if self.over {
                return None;
            }
            tokio::select! {
                news = self.news.next() => { news?; }
                () = tokio::time::sleep(LOOK) => return Some(Bytes::from_static(b": still here\n\n")),
                () = tokio::time::sleep_until(self.until) => return None,
                () = self.desk.stop.cancelled() => return None,
            }
        }
        None
    }

    /// The task as it is now; none when it is gone or cannot be read, and the client had better come again.
    async fn read(&self) -> Option<Record> {
        let kept = self.desk.receiver.broker.task(&self.task_id).await.ok()??;
        serde_json::from_slice::<Record>(&kept.value).ok().filter(|record| record.client == self.client)
    }
}

/// A move. The newest has all that the agent said; of those before, only the state is kept.
fn event(record: &Record, step: &Step) -> String {
    let is_newest = record.history.last().is_some_and(|newest| newest.number == step.number);
    let data = if is_newest {
        serde_json::to_string(&Shown::of(record))
    } else {
        let Record { task_id, agent, .. } = record;
        serde_json::to_string(&serde_json::json!({
            "task_id": task_id, "agent": agent, "status": step.status, "updated_at": step.at,
        }))
    };
    format!("id: {}\nevent: state\ndata: {}\n\n", step.number, data.unwrap_or_default())
}
