//! `hookbridge send`

use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use url::Url;

use super::{Common, Usage, complain, explain, say};
use crate::config::{Config, Source};
use crate::event::Name;
use crate::event::place::Scope;
use crate::event::request::Request as Incoming;
use crate::secret::{Secret, SecretEntry};
use crate::signature::{Credential, Handshake, Profile, Sample, Unsignable, Verify, Wish};

/// The most bytes of an answer that are printed.
const MAX_ANSWER: usize = 64 * 1024;
/// How long to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Headers of a pasted request that belonged to its connection.
const OF_A_CONNECTION: [HeaderName; 3] = [CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION];

#[derive(Args)]
pub(super) struct Arguments {
    /// The source to send to, as configured.
    source: String,
    /// The body [default: one that the provider could send].
    #[arg(long, conflicts_with = "file")]
    body: Option<String>,
    /// A file with the body.
    #[arg(long)]
    file: Option<PathBuf>,
    /// The event type, put where the source looks for it [default: ping].
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The delivery id, put where the source looks for it [default: a new one].
    #[arg(long)]
    id: Option<String>,
    /// Another request header, `name: value`; may be repeated.
    #[arg(long = "header", short = 'H', value_name = "HEADER")]
    headers: Vec<String>,
    /// The query of the URL, `name=value&…`.
    #[arg(long)]
    query: Option<String>,
    /// Sign wrongly on purpose.
    #[arg(long)]
    wrong_signature: bool,
    /// Make it as of another time: RFC 3339, or `-10m` for ten minutes ago.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<At>,
    /// Send exactly these headers and this body: for a request that was refused.
    #[arg(long, conflicts_with_all = ["event_type", "id", "wrong_signature", "at"])]
    no_sign: bool,
    /// First say, step by step, what the source makes of this request. Secrets are not printed.
    #[arg(long)]
    explain: bool,
    /// The gateway [default: the configured listener on this machine].
    #[arg(long)]
    url: Option<Url>,
    #[command(flatten)]
    common: Common,
}

/// A time, or so much before or after now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Time(SystemTime),
    Ago(Duration),
    Ahead(Duration),
}

impl At {
    fn from(self, now: SystemTime) -> Option<SystemTime> {
        match self {
            Self::Time(time) => Some(time),
            Self::Ago(by) => now.checked_sub(by),
            Self::Ahead(by) => now.checked_add(by),
        }
    }
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither an RFC 3339 time nor a distance such as `-10m`");
        let distance = |text: &str| humantime::parse_duration(text).map_err(|_| wrong());
        match (text.strip_prefix('-'), text.strip_prefix('+')) {
            (Some(ago), _) => distance(ago).map(Self::Ago),
            (_, Some(ahead)) => distance(ahead).map(Self::Ahead),
            _ => OffsetDateTime::parse(text, &Rfc3339).map(|time| Self::Time(time.into())).map_err(|_| wrong()),
        }
    }
}

/// What a server answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// A source, and everything of it that is needed here.
struct Target<'a> {
    name: &'a Name,
    profile: Profile,
    /// Where each secret is, and what it is.
    secrets: Vec<(String, Secret)>,
    path_token: Option<Secret>,
    verify_token: Option<Secret>,
    /// The public URL that the provider knows, without a query.
    endpoint: String,
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
    let (target, now) = (Target::new(&config, &name, source)?, SystemTime::now());
    let sample = if arguments.no_sign { as_it_is(&arguments, &target)? } else { sample(&arguments, &target, now)? };
    if arguments.explain {
        target.explain(&sample, now)?;
    }
    let mut url = url(&arguments, &config, &target)?.to_string();
    if let Some(query) = &sample.query {
        // As text: a URL type would write some characters in another way.
        url = format!("{url}?{query}");
    }
    let mut request = Request::builder().method(sample.method).uri(url).body(Bytes::from(sample.body))?;
    *request.headers_mut() = sample.headers;
    OF_A_CONNECTION.iter().for_each(|name| drop(request.headers_mut().remove(name)));
    let answer = exchange(request, PATIENCE).await.context("the gateway does not answer")?;
    say(&format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)));
    if !answer.status.is_success() {
        bail!("the gateway did not take the webhook");
    }
    Ok(())
}

impl<'a> Target<'a> {
    fn new(config: &Config, name: &'a Name, source: &Source) -> anyhow::Result<Self> {
        let profile = source.profile();
        let captured = profile.handshakes().iter().any(Handshake::captures);
        let held = source.secrets.iter().filter(|secret| secret.holds(SystemTime::now()));
        let there = held.map(SecretEntry::reference).filter(|secret| !(captured && secret.is_absent_file()));
        let secrets = there.map(|secret| Ok((secret.to_string(), secret.resolve()?)));
        let path_token = source.path_token.as_ref().map(|token| token.resolve()).transpose()?;
        let mut endpoint = source.endpoint(name, config.gateway.public_url.as_ref()).unwrap_or_default();
        if let Some(token) = path_token.as_ref().filter(|_| !endpoint.is_empty()) {
            endpoint = format!("{endpoint}/{}", text(token)?);
        }
        Ok(Self {
            name,
            secrets: secrets.collect::<anyhow::Result<_>>()?,
            verify_token: source.verify_token.as_ref().map(|token| token.resolve()).transpose()?,
            profile,
            path_token,
            endpoint,
        })
    }

    /// The path of the source's hook.
    fn path(&self) -> anyhow::Result<String> {
        let token = self.path_token.as_ref().map(|token| Ok::<_, anyhow::Error>(format!("/{}", text(token)?)));
        Ok(format!("/hooks/{}{}", self.name, token.transpose()?.unwrap_or_default()))
    }

    fn look<T>(&self, sample: &Sample, see: impl FnOnce(&Incoming<'_>) -> T) -> T {
        let Sample { method, query, headers, body, .. } = sample;
        see(&Incoming::new(method, &self.endpoint, query.as_deref(), headers, body))
    }

    fn explain(&self, sample: &Sample, now: SystemTime) -> anyhow::Result<()> {
        let credentials: Vec<Credential> = match &self.profile.verify {
            Some(Verify::Ways(ways)) => {
                let prepared = self.secrets.iter().map(|(_, secret)| ways.credential(secret));
                prepared.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?
            }
            Some(Verify::None) | None => Vec::new(),
        };
        let hidden: Vec<Secret> = self.path_token.iter().chain(&self.verify_token).cloned().collect();
        let known = explain::Known {
            profile: &self.profile,
            secrets: &self.secrets,
            credentials: &credentials,
            hidden: &hidden,
            now,
        };
        self.look(sample, |request| explain::print(&known, request));
        Ok(())
    }
}

fn text(token: &Secret) -> anyhow::Result<&str> {
    std::str::from_utf8(token.expose()).context("path_token is not text")
}

fn body(arguments: &Arguments) -> anyhow::Result<Option<Vec<u8>>> {
    match &arguments.file {
        Some(file) => Ok(Some(std::fs::read(file).with_context(|| file.display().to_string())?)),
        None => Ok(arguments.body.clone().map(String::into_bytes)),
    }
}

/// The request exactly as it was given.
fn as_it_is(arguments: &Arguments, target: &Target<'_>) -> anyhow::Result<Sample> {
    Ok(Sample {
        method: target.profile.event_methods().into_iter().next().unwrap_or(Method::POST),
        query: arguments.query.clone(),
        headers: headers(arguments)?,
        body: body(arguments)?.unwrap_or_default(),
        rewritten: false,
    })
}

/// A request as the provider would send it, signed with the first of the secrets that can.
fn sample(arguments: &Arguments, target: &Target<'_>, now: SystemTime) -> anyhow::Result<Sample> {
    let id = arguments.id.clone().unwrap_or_else(|| format!("send_{:016x}", rand::random::<u64>()));
    let (body, headers) = (body(arguments)?, headers(arguments)?);
    let at = arguments.at.map_or(Some(now), |at| at.from(now));
    let wish = Wish {
        profile: &target.profile,
        event_type: arguments.event_type.as_deref().unwrap_or("ping"),
        id: &id,
        body: body.as_deref(),
        query: arguments.query.as_deref(),
        headers: &headers,
        endpoint: &target.endpoint,
        now: at.ok_or_else(|| Usage::Other("--at is a time that no clock shows".to_owned()))?,
        wrong: arguments.wrong_signature,
    };
    let mut tried = target.secrets.iter().map(|(_, secret)| wish.dress(Some(secret)));
    let first = tried.next().unwrap_or_else(|| wish.dress(None));
    let dressed = first.or_else(|why| tried.find_map(Result::ok).ok_or(why));
    let sample = dressed.map_err(|why| Usage::Other(advice(target.name, &why)))?;
    if sample.rewritten {
        complain("note: the signature stands inside the body, so yours was written anew around it");
    }
    target.look(&sample, |request| notes(arguments, &target.profile, request)).iter().for_each(|note| complain(note));
    Ok(sample)
}

/// Why a request cannot be made here, and what to do.
fn advice(name: &Name, why: &Unsignable) -> String {
    let paste = format!("hookbridge send {name} --no-sign --explain --header '…' --file BODY");
    let what = match why {
        Unsignable::ProvidersKey(_) => {
            format!("have the provider send a test event, or paste one of its requests: {paste}")
        }
        Unsignable::NoSecret => {
            format!("set sources.{name}.secrets; where the provider chooses the secret, let it connect first")
        }
        Unsignable::Secret(_) => format!("see docs/verification.md for the form that sources.{name}.secrets needs"),
        Unsignable::Place(_) | Unsignable::Refused(_) => {
            format!("change what you give with --body, --file or --header, or send it unsigned: {paste}")
        }
    };
    format!("nothing is sent to `{name}`: {why}\n{what}")
}

/// What was asked for and is not so: a body that is given stays as it is.
fn notes(arguments: &Arguments, profile: &Profile, request: &Incoming<'_>) -> Vec<String> {
    let scope = Scope::of(request);
    let event_type = profile.event_type.as_ref().and_then(|of| of.event_type(scope));
    let id = profile.id.as_ref().and_then(|of| of.id(scope).ok().flatten());
    let differs = |asked: &Option<String>, found: Option<&str>, key: &str| {
        let found_text = found.map_or("nothing is there".to_owned(), |found| format!("`{found}` is there"));
        let differs = asked.as_deref().is_some_and(|asked| found.is_none_or(|found| !found.ends_with(asked)));
        differs.then(|| format!("note: --{key} has no effect: where the source looks for it {found_text}"))
    };
    let found =
        [differs(&arguments.event_type, event_type.as_deref(), "type"), differs(&arguments.id, id.as_deref(), "id")];
    found.into_iter().flatten().collect()
}

fn url(arguments: &Arguments, config: &Config, target: &Target<'_>) -> anyhow::Result<Url> {
    let listen = config.gateway.listen;
    let host = if listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { listen.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let base = match &arguments.url {
        Some(url) => url.clone(),
        None => format!("http://{host}:{}", listen.port()).parse()?,
    };
    Ok(base.join(&target.path()?)?)
}

fn headers(arguments: &Arguments) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for header in &arguments.headers {
        let wrong = || Usage::Other(format!("`{header}` is not `name: value`"));
        let (name, value) = header.split_once(':').ok_or_else(wrong)?;
        let name = name.trim().parse::<HeaderName>().map_err(|_| wrong())?;
        headers.append(name, HeaderValue::from_bytes(value.trim().as_bytes()).map_err(|_| wrong())?);
    }
    Ok(headers)
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_time_is_said_as_it_is_or_by_its_distance() {
        let now = UNIX_EPOCH + Duration::from_secs(1_760_000_000);
        for (text, expected) in [
            ("-10m", 1_759_999_400),
            ("+1h", 1_760_003_600),
            ("2025-10-09T08:53:20Z", 1_760_000_000),
            ("2025-10-09T10:53:20+02:00", 1_760_000_000),
        ] {
            let at = text.parse::<At>().unwrap().from(now);
            assert_eq!(at, Some(UNIX_EPOCH + Duration::from_secs(expected)), "{text}");
        }
        for bad in ["", "10m", "-", "yesterday", "-10"] {
            assert!(bad.parse::<At>().is_err(), "{bad}");
        }
    }
}
