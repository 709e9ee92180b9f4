//! Doing what a handshake asks for: keeping a secret, calling a URL, answering.

use std::io::ErrorKind;
use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};

use super::answer::ReceiveError;
use super::source::Source;
use crate::outbound::Fetcher;
use crate::secret::Secret;
use crate::signature::{Refusal, Reply};

/// What is echoed is never taken for a page.
const NOSNIFF: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));

/// Does what has to be done before the answer, then gives it.
pub(super) async fn act(
    source: &Source,
    handshake: &str,
    reply: Reply,
    fetcher: &Fetcher,
    now: SystemTime,
) -> Result<Response, ReceiveError> {
    if let Some(secret) = &reply.capture {
        keep(source, secret)?;
    }
    if let Some(url) = &reply.confirm {
        let confirmed = fetcher.get(url).await;
        confirmed.map_err(|error| ReceiveError::NotNow(format!("not confirmed: {error}")))?;
    }
    if let Some(more) = source.said_handshake.pass(now) {
        let name = &source.name;
        tracing::info!(source.name = %name, handshake, log.left_out = more, "Answered the handshake `{handshake}` of {name}");
    }
    let bare = reply.status == StatusCode::NO_CONTENT;
    let mut response = Response::new(if bare { Body::empty() } else { Body::from(reply.body) });
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.extend(
        reply.content_type.filter(|_| !bare).map(|content_type| (CONTENT_TYPE, HeaderValue::from_static(content_type))),
    );
    headers.extend([NOSNIFF]);
    headers.extend(reply.headers);
    Ok(response)
}

/// Keeps the secret that the provider chose, and begins to use it.
fn keep(source: &Source, secret: &Secret) -> Result<(), ReceiveError> {
    if source.has_secret() {
        return Err(ReceiveError::Captured);
    }
    let Some(captured) = &source.captured else {
        return Err(ReceiveError::NotNow("no `file:` among `secrets` to keep the provider's secret in".to_owned()));
    };
    if !source.can_use(secret) {
        let unusable = "the secret has no form that this source can verify with";
        return Err(ReceiveError::Handshake(Refusal::Unusable(unusable.to_owned())));
    }
    let file = captured.file().display();
    match captured.keep(secret) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(ReceiveError::Captured),
        Err(error) => return Err(ReceiveError::NotNow(format!("the secret cannot be kept in {file}: {error}"))),
    }
    source.reload().map_err(|error| ReceiveError::NotNow(error.to_string()))?;
    tracing::warn!(
        source.name = %source.name,
        "The provider sent the secret of {}: it is in {file}, for you to read; to begin again, delete the file and send SIGHUP",
        source.name
    );
    Ok(())
}
