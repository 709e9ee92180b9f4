//! Tokens of a token server: the client credentials grant of OAuth 2.0 (RFC 6749, section 4.4).
//!
//! A token is used until shortly before it expires. One fetch is made at a time, and its outcome is that of
//! everybody who waits for it; a failure counts for a second more, so that a server in trouble is not hammered by
//! every delivery. A fetch goes on when the attempt that began it has ended: the next one can use what it brings.
//!
//! No message repeats what the server says but for the error codes of RFC 6749: it may repeat the client's secret.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use data_encoding::BASE64;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::watch;
use url::{Url, form_urlencoded};

use super::{Means, bearer, ring, sensitive};
use crate::clock::Clock;
use crate::config::{ClientCredentials, ClientStyle};
use crate::outbound::{AGENT, Cause, Client, Guard, public_url, request_target};
use crate::secret::{KeyError, KeyRing, Secret};

/// The longest that a fetch may take.
const FETCH_WITHIN: Duration = Duration::from_secs(10);
/// The largest answer; a token has a few kilobytes at most.
const MAX_ANSWER: usize = 64 * 1024;
/// How long a failure counts for everybody.
const FAILURE_COUNTS: Duration = Duration::from_secs(1);
/// How often a refused token is forgotten, at most.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// How long before its end a token is not used any more, if it lives for ten times that.
const MARGIN: Duration = Duration::from_secs(60);
/// The life of a token whose server does not say, and the longest that is believed.
const UNSAID_LIFE: Duration = Duration::from_secs(5 * 60);
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The tokens of one endpoint.
pub(super) struct Tokens(Arc<Shared>);

struct Shared {
    url: Url,
    client_id: String,
    style: ClientStyle,
    /// The request's parameters but for what `style` adds.
    parameters: Vec<(String, String)>,
    secret: Arc<KeyRing<Secret>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// The fetch that is under way.
    fetch: Option<watch::Receiver<Option<Fetched>>>,
    failure: Option<(NoToken, SystemTime)>,
    /// When a refused token was last forgotten.
    forgotten: Option<SystemTime>,
}

/// A token, ready for use in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    header: HeaderValue,
    used_until: SystemTime,
}

/// What became of a fetch.
type Fetched = Result<HeaderValue, NoToken>;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoToken {
    /// A sentence for the receipt.
    pub(super) detail: String,
    /// The server was not asked, because there was no file descriptor for a connection.
    pub(super) no_descriptor: bool,
}

impl<T: Into<String>> From<T> for NoToken {
    fn from(detail: T) -> Self {
        Self { detail: detail.into(), no_descriptor: false }
    }
}

impl Tokens {
    pub(super) fn new(client: &ClientCredentials) -> Result<Self, KeyError> {
        let mut parameters = vec![("grant_type".to_owned(), "client_credentials".to_owned())];
        if !client.scopes.is_empty() {
            parameters.push(("scope".to_owned(), client.scopes.join(" ")));
        }
        parameters.extend(client.audience.iter().map(|audience| ("audience".to_owned(), audience.clone())));
        parameters.extend(client.parameters.iter().map(|(name, value)| (name.clone(), value.clone())));
        Ok(Self(Arc::new(Shared {
            url: client.token_url.clone(),
            client_id: client.client_id.clone(),
            style: client.style,
            parameters,
            secret: ring(&client.client_secret, |secret| Ok(secret.clone()))?,
            state: Mutex::default(),
        })))
    }

    /// The ring of the client's secret.
    pub(super) fn secret(&self) -> Arc<KeyRing<Secret>> {
        self.0.secret.clone()
    }

    /// The header of a token that is good now: the one in hand, or that of the fetch under way, or of a new one.
    pub(super) async fn get(&self, means: Means<'_>) -> Fetched {
        let mut fetch = match self.known_or_fetch(means) {
            Ok(known) => return known,
            Err(fetch) => fetch,
        };
        let fetched = tokio::time::timeout_at(means.deadline, fetch.wait_for(Option::is_some)).await;
        match fetched {
            Ok(Ok(fetched)) => fetched.clone().unwrap_or_else(|| Err(self.0.says("was not asked to the end").into())),
            Ok(Err(_)) => Err(self.0.says("was not asked to the end").into()),
            Err(_) => Err(self.0.says("gave no token within the time of the attempt").into()),
        }
    }

    /// Forgets a token that an endpoint refused, unless there is another one already, or one was forgotten just now:
    /// an endpoint that refuses every token would have one fetched for every delivery.
    pub(super) fn forget(&self, refused: &HeaderValue, now: SystemTime) {
        let mut state = self.0.state();
        let is_time = state.forgotten.is_none_or(|forgotten| now >= forgotten + FORGET_EVERY);
        if is_time && state.token.as_ref().is_some_and(|token| token.header == refused) {
            (state.token, state.forgotten) = (None, Some(now));
        }
    }

    fn known_or_fetch(&self, means: Means<'_>) -> Result<Fetched, watch::Receiver<Option<Fetched>>> {
        let now = means.clock.now();
        let mut state = self.0.state();
        if let Some(known) = state.known(now) {
            return Ok(known);
        }
        if let Some(fetch) = &state.fetch {
            return Err(fetch.clone());
        }
        let (tell, fetch) = watch::channel(None);
        state.fetch = Some(fetch.clone());
        let (client, guard, clock) = (means.client.clone(), means.guard.clone(), means.clock.clone());
        tokio::spawn(self.0.clone().carry_out(client, guard, clock, tell));
        Err(fetch)
    }
}

impl State {
    /// What can be said without asking the server.
    fn known(&self, now: SystemTime) -> Option<Fetched> {
        if let Some(token) = self.token.as_ref().filter(|token| now < token.used_until) {
            return Some(Ok(token.header.clone()));
        }
        let failure = self.failure.as_ref().filter(|(_, until)| now < *until);
        failure.map(|(detail, _)| Err(detail.clone()))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn says(&self, what: &str) -> String {
        format!("the token server {} {what}", public_url(&self.url))
    }

    async fn carry_out(
        self: Arc<Self>,
        client: Client,
        guard: Guard,
        clock: Clock,
        tell: watch::Sender<Option<Fetched>>,
    ) {
        let begun = clock.now();
        let fetched = match tokio::time::timeout(FETCH_WITHIN, self.fetch(&client, &guard)).await {
            Ok(fetched) => fetched.and_then(|(status, body)| Ok(read(status, &body, begun)?)),
            Err(_) => Err(format!("gave no answer within {}", humantime::format_duration(FETCH_WITHIN)).into()),
        };
        let fetched = fetched.map_err(|none| NoToken { detail: self.says(&none.detail), ..none });
        let mut state = self.state();
        state.fetch = None;
        match &fetched {
            Ok(token) => (state.token, state.failure) = (Some(token.clone()), None),
            Err(detail) => state.failure = Some((detail.clone(), clock.now() + FAILURE_COUNTS)),
        }
        drop(state);
        tell.send_replace(Some(fetched.map(|token| token.header)));
    }

    async fn fetch(&self, client: &Client, guard: &Guard) -> Result<(StatusCode, Bytes), NoToken> {
        guard.check_url(&self.url).map_err(|blocked| format!("may not be reached: {blocked}"))?;
        let request = self.request().ok_or("has a URL or credentials that a request cannot carry")?;
        let answer = client.request(request, Instant::now() + FETCH_WITHIN).await.map_err(unanswered)?;
        match answer.body {
            Some(body) => Ok((answer.status, whole(body).await?)),
            None if answer.status.is_success() => Err("gave an answer whose head cannot be read".into()),
            None => Ok((answer.status, Bytes::new())),
        }
    }

    /// The token request (RFC 6749, sections 2.3.1 and 4.4.2).
    fn request(&self) -> Option<Request<Full<Bytes>>> {
        let keys = self.secret.keys();
        let secret = std::str::from_utf8(keys.first()?.expose()).ok()?;
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(&self.parameters);
        let mut request = Request::new(Full::default());
        let headers = request.headers_mut();
        match self.style {
            ClientStyle::Basic => {
                let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let pair = BASE64.encode(format!("{}:{}", encode(&self.client_id), encode(secret)).as_bytes());
                headers.insert(AUTHORIZATION, sensitive(format!("Basic {pair}").as_bytes()).ok()?);
            }
            ClientStyle::Body => {
                form.append_pair("client_id", &self.client_id).append_pair("client_secret", secret);
            }
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, AGENT);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = request_target(&self.url)?;
        *request.body_mut() = Full::from(form.finish());
        Some(request)
    }
}

fn unanswered(cause: Cause) -> NoToken {
    let detail = match cause {
        Cause::Blocked(blocked) => format!("may not be reached: {blocked}"),
        Cause::Dns(detail)
        | Cause::Timeout(detail)
        | Cause::Connect(detail)
        | Cause::Tls(detail)
        | Cause::Protocol(detail) => format!("gave no answer: {detail}"),
        Cause::NoAnswer => "gave no answer in time".to_owned(),
        Cause::NoDescriptor(detail) => {
            return NoToken { detail: format!("was not asked: {detail}"), no_descriptor: true };
        }
    };
    detail.into()
}

async fn whole(body: Incoming) -> Result<Bytes, String> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(format!("answered more than {MAX_ANSWER} bytes")),
        Err(error) => Err(format!("broke off its answer: {error}")),
    }
}

/// Reads an answer (RFC 6749, sections 5.1 and 5.2) to a request that was made at `begun`.
fn read(status: StatusCode, body: &[u8], begun: SystemTime) -> Result<Token, String> {
    #[derive(Deserialize)]
    struct Answer {
        access_token: Option<String>,
        token_type: Option<String>,
        expires_in: Option<Seconds>,
        error: Option<String>,
    }
    let answer: Option<Answer> = serde_json::from_slice(body).ok();
    if !status.is_success() {
        let code = answer.and_then(|answer| answer.error).and_then(|error| known_error(&error));
        return Err(match code {
            Some(code) => format!("answered {} ({code})", status.as_u16()),
            None => format!("answered {}", status.as_u16()),
        });
    }
    let Some(answer) = answer else { return Err("answered something that is no token".to_owned()) };
    let Some(token) = answer.access_token.filter(|token| !token.is_empty()) else {
        return Err("answered without an access token".to_owned());
    };
    if answer.token_type.is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
        return Err("gave a token that is not of type Bearer".to_owned());
    }
    let header = bearer(token.as_bytes()).map_err(|_| "gave a token that a header cannot carry".to_owned())?;
    let life = answer.expires_in.map_or(UNSAID_LIFE, Seconds::duration).min(LONGEST_LIFE);
    Ok(Token { header, used_until: begun + life - MARGIN.min(life / 10) })
}

/// A number of seconds, which some servers write as a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

impl Seconds {
    /// What is no number of seconds counts as unsaid.
    fn duration(self) -> Duration {
        let seconds = match self {
            Self::Number(seconds) => Some(seconds),
            Self::Text(text) => text.trim().parse().ok(),
        };
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(UNSAID_LIFE)
    }
}

/// The error codes of RFC 6749, section 5.2. Anything else could hold anything.
fn known_error(error: &str) -> Option<&'static str> {
    const CODES: [&str; 6] = [
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    ];
    CODES.into_iter().find(|code| *code == error)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn tokens(style: ClientStyle) -> Tokens {
        Tokens::new(&ClientCredentials {
            token_url: "https://auth.example.com/token".parse().unwrap(),
            client_id: "me & co".to_owned(),
            client_secret: "plain:s3cret:+".parse().unwrap(),
            scopes: vec!["a".to_owned(), "b".to_owned()],
            audience: Some("crm".to_owned()),
            style,
            parameters: [("resource".to_owned(), "x y".to_owned())].into(),
        })
        .unwrap()
    }

    async fn body(request: Request<Full<Bytes>>) -> String {
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_token_request_tells_the_client_in_a_header_or_in_the_body() {
        let asked = "grant_type=client_credentials&scope=a+b&audience=crm&resource=x+y";

        let request = tokens(ClientStyle::Basic).0.request().unwrap();
        let pair = BASE64.encode(b"me+%26+co:s3cret%3A%2B");
        assert_eq!(request.headers()[AUTHORIZATION], format!("Basic {pair}"));
        assert_eq!(body(request).await, asked);

        let request = tokens(ClientStyle::Body).0.request().unwrap();
        assert_eq!(request.headers().get(AUTHORIZATION), None);
        let told = "&client_id=me+%26+co&client_secret=s3cret%3A%2B";
        assert_eq!(body(request).await, format!("{asked}{told}"));
    }

    #[test]
    fn a_token_is_used_until_shortly_before_it_expires() {
        for (expires_in, seconds) in [
            ("3600", 3540.0),
            ("\"3600\"", 3540.0),
            ("10", 9.0),
            ("0", 0.0),
            ("1e300", 270.0),
            ("-1", 270.0),
            ("1000000000", 86_340.0),
            ("null", 270.0),
            ("\"soon\"", 270.0),
        ] {
            let answer = format!(r#"{{"access_token":"t","token_type":"bearer","expires_in":{expires_in}}}"#);
            let token = read(StatusCode::OK, answer.as_bytes(), NOW).unwrap();
            assert_eq!(token.used_until, NOW + Duration::from_secs_f64(seconds), "{expires_in}");
            assert_eq!(token.header, "Bearer t");
        }
    }

    #[test]
    fn what_is_no_token_is_said_without_what_the_server_said() {
        for (status, answer, expected) in [
            (200, "", "something that is no token"),
            (200, "<html>s3cret</html>", "something that is no token"),
            (200, "{}", "without an access token"),
            (200, r#"{"access_token":""}"#, "without an access token"),
            (200, r#"{"access_token":"s3cret","token_type":"mac"}"#, "not of type Bearer"),
            (200, r#"{"access_token":"s3cret\n"}"#, "a header cannot carry"),
            (302, "", "answered 302"),
            (401, r#"{"error":"invalid_client","error_description":"s3cret"}"#, "answered 401 (invalid_client)"),
            (400, r#"{"error":"s3cret"}"#, "answered 400"),
        ] {
            let error = read(StatusCode::from_u16(status).unwrap(), answer.as_bytes(), NOW).unwrap_err();
            assert!(error.contains(expected) && !error.contains("s3cret"), "{status} {answer}: {error}");
        }
    }

    #[test]
    fn a_token_in_hand_wins_over_a_failure_and_both_end() {
        let token = Token { header: HeaderValue::from_static("Bearer t"), used_until: NOW + Duration::from_secs(9) };
        let failure = Some(("no".into(), NOW + Duration::from_secs(20)));
        let state = State { token: Some(token), failure, ..State::default() };
        assert_eq!(state.known(NOW), Some(Ok(HeaderValue::from_static("Bearer t"))));
        assert_eq!(state.known(NOW + Duration::from_secs(9)), Some(Err("no".into())));
        assert_eq!(state.known(NOW + Duration::from_secs(20)), None);
    }

    #[test]
    fn a_refused_token_is_forgotten_now_and_then_and_no_other_one() {
        let tokens = tokens(ClientStyle::Basic);
        let header = HeaderValue::from_static("Bearer t");
        let have = || {
            let token = Token { header: header.clone(), used_until: NOW + Duration::from_secs(3600) };
            tokens.0.state().token = Some(token);
        };
        let is_there = || tokens.0.state().token.is_some();
        have();
        tokens.forget(&HeaderValue::from_static("Bearer older"), NOW);
        assert!(is_there());
        tokens.forget(&header, NOW);
        assert!(!is_there());
        have();
        tokens.forget(&header, NOW + Duration::from_secs(9));
        assert!(is_there());
        tokens.forget(&header, NOW + Duration::from_secs(10));
        assert!(!is_there());
    }
}
