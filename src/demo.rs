//! What `hookbridge dev` shows: an agent that answers events, and an endpoint that receives the answers.
//!
//! The agent does what any agent does: it takes events from its durable, publishes to its outbox, waits for
//! the stream's confirmation, and only then acks. The endpoint verifies what it receives.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, Consumer, Outgoing, PublishError, Received};
use crate::config::{Endpoint, StreamKind};
use crate::event::headers::Headers;
use crate::event::{Place, Request, trace};
use crate::secret::{KeyError, KeyRing};
use crate::signature::profile::Naming;
use crate::signature::{Credential, Inquiry, SigningForm, Ways};
use crate::task::TASK_ID;

/// The agent's name, and the source and endpoint that it serves.
pub(crate) const NAME: &str = "demo";
/// Events that the agent works on at once.
const SLOTS: NonZeroUsize = NonZeroUsize::MIN;
/// Bytes of events that the agent works on at once.
const ROOM: u64 = 8 * 1024 * 1024;
/// How long the outbox may take to confirm.
const CONFIRM_WITHIN: Duration = Duration::from_secs(5);

/// Says what happens, in lines for a person.
pub(crate) type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// Answers every event and works on every task until stopped.
pub(crate) async fn agent(broker: Broker, say: Say, stop: CancellationToken) {
    let under_way = TaskTracker::new();
    tokio::join!(
        take(StreamKind::Events, &broker, &say, &stop, &under_way),
        take(StreamKind::Tasks, &broker, &say, &stop, &under_way),
    );
    under_way.close();
    under_way.wait().await;
}

async fn take(stream: StreamKind, broker: &Broker, say: &Say, stop: &CancellationToken, under_way: &TaskTracker) {
    let durable = Consumer::new(broker.clone(), stream, NAME.to_owned(), SLOTS, ROOM);
    let take = |message: Received, slot| {
        let (broker, say) = (broker.clone(), say.clone());
        under_way.spawn(async move {
            let done = match stream {
                StreamKind::Tasks => work(&broker, &message, &say).await,
                _ => answer(&broker, &message, &say).await,
            };
            match done {
                Ok(()) => message.ack().await,
                Err(error) => {
                    say(&format!("agent     could not answer, will try again: {error}"));
                    message.give_back(Duration::from_secs(1)).await;
                }
            }
            drop(slot);
        });
    };
    durable.run(stop, take).await;
}

/// Does what a client delegated: says that it has begun, and then what it has found.
async fn work(broker: &Broker, task: &Received, say: &Say) -> Result<(), PublishError> {
    let task_id = task.headers.get(TASK_ID).unwrap_or_default();
    say(&format!("agent     got task {task_id}"));
    let asked: Value = serde_json::from_slice(&task.payload).unwrap_or(Value::Null);
    let begun = json!({ "task_id": task_id, "status": "working", "progress": 0.5, "message": "thinking" });
    let done = json!({ "task_id": task_id, "status": "completed", "result": { "answer": "done", "you_said": asked } });
    for (step, update) in [("begun", begun), ("done", done)] {
        let mut headers = Headers::default();
        headers.push("content-type", "application/json");
        let message_id = format!("{NAME}-{task_id}-{step}");
        let (subject, payload) = (format!("outbox.{NAME}"), update.to_string().into());
        broker.publish(&Outgoing { subject, headers, payload, message_id: Some(message_id) }, CONFIRM_WITHIN).await?;
    }
    say(&format!("agent     finished task {task_id}"));
    Ok(())
}

async fn answer(broker: &Broker, event: &Received, say: &Say) -> Result<(), PublishError> {
    let id = event.headers.get("ce-id").unwrap_or_default();
    let body: Value = serde_json::from_slice(&event.payload).unwrap_or(Value::Null);
    say(&format!("agent     got {} (id {id})", event.subject));
    let payload = json!({ "answer": "done", "subject": event.subject, "event": id, "you_said": body });
    let mut headers = Headers::default();
    headers.push("Hookbridge-Endpoint", NAME);
    headers.push("content-type", "application/json");
    if let Some(trace) = trace::Context::read(&event.headers) {
        trace.write(&mut headers);
    }
    // The same event gives the same id: an event that comes twice is answered once.
    let message_id = format!("{NAME}-{}", &BASE32_NOPAD.encode(&Sha256::digest(id))[..26]);
    let outgoing = Outgoing {
        subject: format!("outbox.{NAME}"),
        headers,
        payload: payload.to_string().into(),
        message_id: Some(message_id.clone()),
    };
    broker.publish(&outgoing, CONFIRM_WITHIN).await?;
    say(&format!("agent     answered on outbox.{NAME} (id {message_id})"));
    Ok(())
}

/// The schemes and keys that the endpoint verifies with.
type Keys = Arc<Vec<(String, Ways, KeyRing<Credential>)>>;

/// A receiver that verifies every form that the endpoint is configured to be signed with.
pub(crate) fn endpoint(endpoint: &Endpoint, say: Say) -> Result<Router, KeyError> {
    let prepare = |(name, form): (String, Arc<SigningForm>)| {
        let header = form.ways().find_map(|way| way.header()).map_or(name, ToString::to_string);
        let ways = Ways::new(form.ways().cloned().collect());
        let of_secret = ways.clone();
        let keys = KeyRing::load(endpoint.secrets.clone(), move |secret| of_secret.credential(secret))?;
        Ok((header, ways, keys))
    };
    let forms = endpoint.signatures.iter().filter_map(|form| Some((form.to_string(), form.signing()?)));
    let keys = forms.map(prepare);
    let keys: Keys = Arc::new(keys.collect::<Result<_, KeyError>>()?);
    Ok(Router::new().route("/", post(receive)).with_state((keys, say)))
}

async fn receive(State((keys, say)): State<(Keys, Say)>, headers: HeaderMap, body: Bytes) -> Response {
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let naming = Naming::from_iter("header:webhook-id".parse::<Place>());
    let request = Request::new(&Method::POST, "", None, &headers, &body);
    let inquiry = Inquiry { request: &request, id: Some(&naming), now: SystemTime::now(), documents: &|_| None };
    let verify = |(header, ways, keys): &(String, Ways, KeyRing<Credential>)| {
        ways.verify(&keys.keys(), &inquiry).map(|_| header.clone())
    };
    match keys.iter().map(verify).collect::<Result<Vec<_>, _>>() {
        Ok(verified) => {
            let text = String::from_utf8_lossy(&body);
            say(&format!("endpoint  received {id}, verified {}: {text}", verified.join(" and ")));
            StatusCode::NO_CONTENT.into_response()
        }
        Err(rejection) => {
            say(&format!("endpoint  refused {id}: {rejection}"));
            (StatusCode::UNAUTHORIZED, "signature missing or wrong\n").into_response()
        }
    }
}
