//! `hookbridge send`

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use url::Url;

use super::{Common, Usage, say};
use crate::config::{Config, Source};
use crate::event::{Name, Place};
use crate::secret::KeyRing;
use crate::signature::Scheme;

/// The most bytes of an answer that are printed.
const MAX_ANSWER: usize = 64 * 1024;
/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(super) struct Arguments {
    /// The source to send to, as configured.
    source: String,
    /// The body [default: a small JSON object].
    #[arg(long, conflicts_with = "file")]
    body: Option<String>,
    /// A file with the body.
    #[arg(long)]
    file: Option<PathBuf>,
    /// The event type, put where the source looks for it if that is a header.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The delivery id, put where the source looks for it if that is a header [default: a new one].
    #[arg(long)]
    id: Option<String>,
    /// Another request header, `name: value`; may be repeated.
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    /// Sign wrongly on purpose.
    #[arg(long)]
    wrong_signature: bool,
    /// The gateway [default: the configured listener on this machine].
    #[arg(long)]
    url: Option<Url>,
    #[command(flatten)]
    common: Common,
}

/// What a server answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Posts a signed webhook and prints the answer. Fails unless it is a 2xx.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    // As in `dev`, so that the first try needs no file.
    let config = arguments.common.load_or(super::dev::BUILTIN)?;
    let name: Name = arguments.source.parse().map_err(|error| Usage::Other(format!("{error}")))?;
    let Some(source) = config.sources.get(&name) else {
        let known: Vec<_> = config.sources.keys().map(Name::as_str).collect();
        bail!(Usage::Other(format!("there is no source `{name}`; configured are: {}", known.join(", "))));
    };
    let body = body(&arguments)?;
    let mut request = Request::post(url(&arguments, &config, &name, source)?.as_str()).body(body.clone())?;
    *request.headers_mut() = headers(&arguments, source, &body)?;
    let answer = exchange(request, PATIENCE).await.context("the gateway does not answer")?;
    say(&format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)));
    if !answer.status.is_success() {
        bail!("the gateway did not take the webhook");
    }
    Ok(())
}

fn body(arguments: &Arguments) -> anyhow::Result<Bytes> {
    if let Some(file) = &arguments.file {
        return Ok(std::fs::read(file).with_context(|| file.display().to_string())?.into());
    }
    let sample = || {
        let event_type = arguments.event_type.as_deref().unwrap_or("ping");
        serde_json::json!({ "type": event_type, "message": "hello from hookbridge send" }).to_string()
    };
    Ok(arguments.body.clone().unwrap_or_else(sample).into())
}

fn url(arguments: &Arguments, config: &Config, name: &Name, source: &Source) -> anyhow::Result<Url> {
    let listen = config.gateway.listen;
    let host = if listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { listen.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let base = match &arguments.url {
        Some(url) => url.clone(),
        None => format!("http://{host}:{}", listen.port()).parse()?,
    };
    let mut path = format!("/hooks/{name}");
    if let Some(token) = &source.path_token {
        path.push('/');
        path.push_str(std::str::from_utf8(token.resolve()?.expose()).context("path_token is not text")?);
    }
    Ok(base.join(&path)?)
}

fn headers(arguments: &Arguments, source: &Source, body: &[u8]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let id = arguments.id.clone().unwrap_or_else(|| format!("send_{:016x}", rand::random::<u64>()));
    let profile = source.profile();
    if let Some(Place::Header(name)) = profile.id.as_ref().and_then(|id| id.places().first().copied()) {
        headers.insert(name, id.parse()?);
    }
    if let Some(Place::Header(name)) = profile.event_type.as_ref().and_then(|of| of.places().first().copied()) {
        headers.insert(name, arguments.event_type.as_deref().unwrap_or("ping").parse()?);
    }
    if let Some(scheme) = profile.schemes().next() {
        sign(arguments, source, scheme, &id, body, &mut headers)?;
    }
    for header in &arguments.headers {
        let (name, value) =
            header.split_once(':').ok_or_else(|| Usage::Other(format!("`{header}` is not `name: value`")))?;
        headers.insert(name.trim().parse::<HeaderName>()?, value.trim().parse()?);
    }
    Ok(headers)
}

fn sign(
    arguments: &Arguments,
    source: &Source,
    scheme: &Scheme,
    id: &str,
    body: &[u8],
    headers: &mut HeaderMap,
) -> anyhow::Result<()> {
    let of_secret = scheme.clone();
    let first = source.secrets.first().cloned().into_iter().collect();
    let keys = KeyRing::load(first, move |secret| of_secret.key(secret))?;
    let signed = if arguments.wrong_signature { [body, b"!"].concat() } else { body.to_vec() };
    for (name, value) in scheme.sign(&keys.keys(), id, SystemTime::now(), &signed) {
        headers.insert(name, value.parse()?);
    }
    Ok(())
}

/// One request to a server of the operator's own; the address guard is for what agents ask for.
pub(super) async fn exchange(request: Request<Bytes>, patience: Duration) -> anyhow::Result<Answer> {
    let client = crate::tls::http_client()?;
    let answer = async {
        let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| anyhow::anyhow!(error))?;
        Ok(Answer { status: parts.status, body: body.to_bytes() })
    };
    tokio::time::timeout(patience, answer).await.context("no answer in time")?
}
