//! Why a request about tasks is refused: one variant per row of the answer table.

use axum::response::Response;
use http::header::{ALLOW, CONNECTION, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, Method, StatusCode};

use super::super::answer::{ReceiveError, problem};
use super::super::peer_rate::TooSoon;
use crate::broker::{PublishError, ReadError};

/// When to come again after 429 or 503.
const SECONDS: HeaderValue = HeaderValue::from_static("5");

#[derive(Debug, thiserror::Error)]
pub(super) enum TaskError {
    #[error("only {} is taken here", allowed.iter().map(Method::as_str).collect::<Vec<_>>().join(", "))]
    Method { allowed: Vec<Method> },
    /// Too large, too slow, too many: as for webhooks.
    #[error(transparent)]
    Unread(#[from] ReceiveError),
    #[error("token or signature missing or wrong")]
    Unauthorized,
    #[error("too many requests of this client")]
    Rate(TooSoon),
    #[error("there is no such agent")]
    NoAgent,
    #[error("there is no such task")]
    NoTask,
    #[error("this client may not delegate to agent `{0}`")]
    NotAllowed(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Conflict(String),
    #[error("the task has had its last reply")]
    Over,
    #[error("too many {0} at once")]
    TooMany(&'static str),
    #[error("not confirmed, and may be stored all the same: make the same request again, with the same `task_id`")]
    NotStored(String),
}

impl From<PublishError> for TaskError {
    fn from(error: PublishError) -> Self {
        Self::NotStored(error.to_string())
    }
}

impl From<ReadError> for TaskError {
    fn from(error: ReadError) -> Self {
        Self::NotStored(error.to_string())
    }
}

impl TaskError {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unread(error) => error.status(),
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NoAgent | Self::NoTask => StatusCode::NOT_FOUND,
            Self::NotAllowed(_) => StatusCode::FORBIDDEN,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Over => StatusCode::GONE,
            Self::Rate(_) | Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::NotStored(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word for metrics.
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Method { .. } => "method",
            Self::Unread(error) => error.as_str(),
            Self::Unauthorized => "unauthorized",
            Self::Rate(_) => "client-rate",
            Self::NoAgent => "no-agent",
            Self::NoTask => "no-task",
            Self::NotAllowed(_) => "forbidden-agent",
            Self::Invalid(_) => "invalid",
            Self::Conflict(_) => "conflict",
            Self::Over => "over",
            Self::TooMany(_) => "too-many",
            Self::NotStored(_) => "not-stored",
        }
    }

    /// Whether a sender who has not proved himself is charged for it.
    pub(super) fn is_charged(&self) -> bool {
        match self {
            Self::Unread(error) => error.is_charged(),
            Self::Unauthorized | Self::Method { .. } => true,
            _ => false,
        }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Method { allowed } => {
                let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
                Some((ALLOW, HeaderValue::try_from(names.join(", ")).ok()?))
            }
            Self::Unauthorized => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Self::Rate(wait) => Some((RETRY_AFTER, wait.seconds.into())),
            Self::TooMany(_) | Self::NotStored(_) => Some((RETRY_AFTER, SECONDS)),
            _ => None,
        }
    }

    pub(super) fn response(&self) -> Response {
        if let Self::Unread(error) = self {
            return error.response(None);
        }
        let mut response = problem(self.status(), self.to_string());
        response.headers_mut().extend(self.header());
        if matches!(self, Self::Method { .. } | Self::Unauthorized) {
            // What is left of the request is not read.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
