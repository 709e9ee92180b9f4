//! One GET of a URL that somebody else named, and the whole of its answer or a reason.
//!
//! What is fetched is small and public: a certificate, a key set, a page that confirms a subscription. So the
//! answer is bounded in time and size, a redirect is an answer like any other that is not wanted, and no
//! message repeats a query, which can hold a token.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use url::Url;

use super::client::{AGENT, Cause, Client, ClientOptions};
use super::guard::{Blocked, Guard};
use super::target::{public_url, request_target};

/// The longest that a fetch may take, from looking up the host to the last byte.
pub(crate) const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer; a key set of a large provider is a tenth of it.
const MAX_ANSWER: usize = 256 * 1024;
/// The longest URL; those of certificates and confirmations have some hundred characters.
const MAX_URL: usize = 4096;
/// How much of a URL a message repeats.
const MAX_NAME: usize = 256;
/// Unused connections that are kept per host.
const KEPT_CONNECTIONS: usize = 4;
/// The age up to which a kept connection takes another request.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);

/// Fetches documents through the address guard.
#[derive(Clone)]
pub(crate) struct Fetcher {
    client: Client,
    guard: Guard,
    timeout: Duration,
    prepared: Arc<BTreeMap<String, Bytes>>,
}

/// Why there is no document. `url` is for reading: without query and userinfo, and not all of a long one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{url} may not be reached: {reason}")]
    Blocked { url: String, reason: Blocked },
    #[error("{url} is longer than {MAX_URL} bytes or no request target")]
    Unwritable { url: String },
    #[error("{url} gave no whole answer: {detail}")]
    Unreachable { url: String, detail: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url} answered more than {MAX_ANSWER} bytes")]
    TooLarge { url: String },
    /// The cache's word: there was an answer, and it is not what was expected there.
    #[error("{url} answered something else than expected: {reason}")]
    Unusable { url: String, reason: String },
    /// The cache's word: this fetch was not made.
    #[error("{url} was not fetched: too many fetches are under way")]
    Busy { url: String },
}

impl Fetcher {
    /// Prepares the client; `timeout` is [`FETCH_TIMEOUT`] everywhere but in tests.
    pub(crate) fn new(guard: Guard, timeout: Duration) -> Result<Self, rustls::Error> {
        let options = ClientOptions { timeout, kept: KEPT_CONNECTIONS, max_age: MAX_CONNECTION_AGE };
        Ok(Self { client: Client::new(&guard, options)?, guard, timeout, prepared: Arc::default() })
    }

    /// Answers some URLs by itself instead of asking for them; for tests of what stands at addresses of others.
    pub(crate) fn prepared_for(mut self, answers: &[(Url, Vec<u8>)]) -> Self {
        let prepared = |(url, answer): &(Url, Vec<u8>)| (url.to_string(), Bytes::from(answer.clone()));
        self.prepared = Arc::new(answers.iter().map(prepared).collect());
        self
    }

    /// GETs a URL. Only a 2xx is a success, and only with all of its body.
    pub(crate) async fn get(&self, url: &Url) -> Result<Bytes, FetchError> {
        let target = self.check(url)?;
        if let Some(answer) = self.prepared.get(url.as_str()) {
            return Ok(answer.clone());
        }
        match tokio::time::timeout(self.timeout, self.fetch(url, target)).await {
            Ok(answer) => answer,
            Err(_) => {
                let detail = format!("it took longer than {}", humantime::format_duration(self.timeout));
                Err(FetchError::Unreachable { url: name(url), detail })
            }
        }
    }

    /// The request target of a URL that may be asked for, as far as that can be said without asking anybody.
    pub(super) fn check(&self, url: &Url) -> Result<Uri, FetchError> {
        let unwritable = || FetchError::Unwritable { url: name(url) };
        if url.as_str().len() > MAX_URL {
            return Err(unwritable());
        }
        self.guard.check_url(url).map_err(|reason| FetchError::Blocked { url: name(url), reason })?;
        request_target(url).ok_or_else(unwritable)
    }

    /// The longest that [`Fetcher::get`] takes.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    async fn fetch(&self, url: &Url, target: Uri) -> Result<Bytes, FetchError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = target;
        request.headers_mut().insert(USER_AGENT, AGENT);
        let deadline = Instant::now() + self.timeout;
        let answer = self.client.request(request, deadline).await.map_err(|cause| unanswered(url, cause))?;
        if !answer.status.is_success() {
            return Err(FetchError::Status { url: name(url), status: answer.status.as_u16() });
        }
        let no_body = || unanswered(url, Cause::Protocol("the head of the answer cannot be read".to_owned()));
        whole(url, answer.body.ok_or_else(no_body)?).await
    }
}

async fn whole(url: &Url, body: Incoming) -> Result<Bytes, FetchError> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(FetchError::TooLarge { url: name(url) }),
        Err(error) => Err(FetchError::Unreachable { url: name(url), detail: error.to_string() }),
    }
}

fn unanswered(url: &Url, cause: Cause) -> FetchError {
    let url = name(url);
    match cause {
        Cause::Blocked(reason) => FetchError::Blocked { url, reason },
        Cause::Dns(detail)
        | Cause::Timeout(detail)
        | Cause::Connect(detail)
        | Cause::Tls(detail)
        | Cause::NoDescriptor(detail)
        | Cause::Protocol(detail) => FetchError::Unreachable { url, detail },
        Cause::NoAnswer => FetchError::Unreachable { url, detail: "there was no answer in time".to_owned() },
    }
}

/// What messages call a URL.
pub(super) fn name(url: &Url) -> String {
    public_url(url).chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::super::loopback::{Server, answer, guard};
    use super::*;
    use crate::config::Egress;

    fn fetcher() -> Fetcher {
        Fetcher::new(guard(), FETCH_TIMEOUT).unwrap()
    }

    #[tokio::test]
    async fn a_document_arrives_whole_and_the_request_says_who_asks() {
        let server = Server::start(|head| answer("200 OK", head)).await;

        let document = fetcher().get(&server.url("/cert.pem?a=b")).await.unwrap();

        let head = String::from_utf8(document.to_vec()).unwrap();
        assert!(head.starts_with("GET /cert.pem?a=b HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("user-agent: hookbridge/") && !head.contains("cookie"), "{head}");
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let to = "HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n";
        let server = Server::start(move |_| Some(to.to_owned())).await;

        let error = fetcher().get(&server.url("/here?token=t0ken")).await.unwrap_err();

        assert_eq!(error, FetchError::Status { url: server.url("/here").to_string(), status: 302 });
        assert_eq!(server.requests(), 1);
    }

    #[tokio::test]
    async fn what_the_guard_refuses_is_not_asked() {
        let server = Server::start(|_| answer("200 OK", "")).await;
        let strict = Guard::new(&Egress { allow_http: true, ..Egress::default() });
        let fetcher = Fetcher::new(strict, FETCH_TIMEOUT).unwrap();
        let mut by_name = server.url("/?token=t0ken");
        by_name.set_host(Some("localhost")).unwrap();

        for url in [server.url("/?token=t0ken"), by_name, "ftp://example.com/?token=t0ken".parse().unwrap()] {
            let error = fetcher.get(&url).await.unwrap_err();
            assert!(matches!(error, FetchError::Blocked { .. }), "{url}: {error}");
            assert!(!error.to_string().contains("t0ken"), "{error}");
        }
        assert_eq!(server.requests(), 0);
    }

    #[tokio::test]
    async fn an_answer_of_just_the_bound_is_taken_and_one_byte_more_is_an_error() {
        let server = Server::start(|head| {
            let more = usize::from(head.starts_with("GET /more"));
            answer("200 OK", &"x".repeat(MAX_ANSWER + more))
        })
        .await;

        assert_eq!(fetcher().get(&server.url("/just")).await.unwrap().len(), MAX_ANSWER);
        let error = fetcher().get(&server.url("/more")).await.unwrap_err();
        assert_eq!(error, FetchError::TooLarge { url: server.url("/more").to_string() });
    }

    #[tokio::test]
    async fn an_answer_that_does_not_come_or_does_not_end_is_given_up() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfive.";
        let server = Server::start(move |request| request.starts_with("GET /five").then(|| head.to_owned())).await;
        let fetcher = Fetcher::new(guard(), Duration::from_millis(100)).unwrap();

        for path in ["/never", "/five"] {
            let error = fetcher.get(&server.url(path)).await.unwrap_err();
            assert!(matches!(error, FetchError::Unreachable { .. }), "{path}: {error}");
        }
    }

    #[tokio::test]
    async fn a_refusal_and_a_closed_port_are_said_without_the_query() {
        let server = Server::start(|_| answer("404 Not Found", "t0ken")).await;
        let url = server.url("/gone?token=t0ken");

        let missing = fetcher().get(&url).await.unwrap_err().to_string();
        drop(server);
        let closed = fetcher().get(&url).await.unwrap_err().to_string();

        let name = public_url(&url);
        assert_eq!(missing, format!("{name} answered 404"));
        assert!(closed.starts_with(&format!("{name} gave no whole answer: ")) && !closed.contains("t0ken"), "{closed}");
    }

    #[tokio::test]
    async fn a_kept_connection_that_was_closed_meanwhile_costs_no_document() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // The first request is answered, the second is read and never answered.
                    let mut bytes = [0; 4096];
                    if stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await);
                        drop(stream.read(&mut bytes).await);
                    }
                });
            }
        });
        let fetcher = fetcher();

        for _ in 0..5 {
            assert_eq!(fetcher.get(&url).await, Ok(Bytes::from_static(b"ok")));
        }
        serving.abort();
    }

    #[tokio::test]
    async fn a_url_without_measure_is_not_asked_for_nor_repeated() {
        let url = format!("https://example.com/{}", "x".repeat(MAX_URL)).parse().unwrap();

        let error = fetcher().get(&url).await.unwrap_err();

        assert!(matches!(error, FetchError::Unwritable { .. }), "{error}");
        assert!(error.to_string().len() < 2 * MAX_NAME);
    }
}
