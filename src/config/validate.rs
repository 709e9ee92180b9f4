//! What can be read and still cannot work.

mod sending;
mod tasks;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use http::{HeaderName, Method};
use url::Url;

use super::load::{Mistake, nearest};
use super::{Breaker, ClientTls, Config, Egress, Endpoint, SignatureForm, Source, StreamKind, signing};
use crate::event::{Name, Place, UrlPrefix, subject};
use crate::secret::{KeyRing, SecretEntry, SecretRef};
use crate::signature::{Handshake, Profile, Scheme, Verify, Ways, preset};

/// Room for the headers of a message beside its body, under the server's `max_payload`.
pub(crate) const HEADER_ROOM: u64 = 64 * 1024;

/// Headers that every delivery carries, so that a signature can cover them.
const CARRIED: [HeaderName; 4] = [
    http::header::CONTENT_TYPE,
    http::header::USER_AGENT,
    HeaderName::from_static("webhook-id"),
    HeaderName::from_static("webhook-timestamp"),
];

/// For how long the load balancers that most people have keep an unused connection.
const KEPT_BY_BALANCERS: Duration = Duration::from_secs(60);
/// A longer `shutdown_delay` is a mistake.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

/// Collects mistakes under a key.
struct Findings(Vec<Mistake>);

impl Findings {
    fn add(&mut self, key: impl Into<String>, reason: impl Into<String>) {
        self.0.push(Mistake { origin: None, key: key.into(), reason: reason.into() });
    }
}

/// Everything that cannot work, in the order of the manual.
pub(super) fn mistakes(config: &Config) -> Vec<Mistake> {
    let mut findings = Findings(Vec::new());
    nats(config, &mut findings);
    streams(config, &mut findings);
    gateway(config, &mut findings);
    for (name, source) in &config.sources {
        self::source(config, name, source, &mut findings);
    }
    for (name, agent) in &config.agents {
        self::agent(&format!("agents.{name}.events"), &agent.events, &mut findings);
    }
    for (name, endpoint) in &config.endpoints {
        findings.0.extend(endpoint_mistakes(config, name, endpoint));
    }
    callbacks(config, &mut findings);
    tasks::tasks(config, &mut findings);
    egress(config, &mut findings);
    if let Err(error) = config.telemetry.log.parse::<tracing_subscriber::EnvFilter>() {
        findings.add("telemetry.log", error.to_string());
    }
    if let Some(token) = &config.admin.token {
        check_secret("admin.token", token, &mut findings);
    }
    findings.0
}

/// What is wrong with one endpoint under this configuration, of which it need not be part.
pub(crate) fn endpoint_mistakes(config: &Config, name: &Name, endpoint: &Endpoint) -> Vec<Mistake> {
    let (mut findings, table) = (Findings(Vec::new()), format!("endpoints.{name}"));
    self::endpoint(&table, endpoint, config.egress.allow_http, &mut findings);
    let kept = config.streams.limits(StreamKind::Outbox).max_age;
    persistence(&table, &config.egress, Some(endpoint), kept, &mut findings);
    findings.0
}

fn nats(config: &Config, findings: &mut Findings) {
    let nats = &config.nats;
    if nats.url.as_slice().is_empty() {
        findings.add("nats.url", "names no server");
    }
    for url in nats.url.as_slice() {
        if let Some(problem) = nats_url_problem(url) {
            findings.add(
                "nats.url",
                format!(
                    "`{}` is not a NATS URL: {problem}",
                    url.rsplit_once('@').map_or(url.as_str(), |(_, host)| host)
                ),
            );
        }
    }
    if ![1, 3, 5].contains(&nats.replicas) {
        findings.add("nats.replicas", "must be 1, 3 or 5");
    }
    let ways = [nats.credentials.is_some(), nats.nkey.is_some(), nats.user.is_some(), nats.token.is_some()];
    if ways.iter().filter(|way| **way).count() > 1 {
        findings.add("nats", "has more than one way to authenticate: use one of credentials, nkey, user and token");
    }
    if nats.user.is_some() != nats.password.is_some() {
        findings.add("nats", "`user` and `password` need each other");
    }
    if nats.tls.certificate.is_some() != nats.tls.key.is_some() {
        findings.add("nats.tls", "`certificate` and `key` need each other");
    }
    for (key, secret) in [("nats.nkey", &nats.nkey), ("nats.password", &nats.password), ("nats.token", &nats.token)] {
        secret.iter().for_each(|secret| check_secret(key, secret, findings));
    }
    let tls = &nats.tls;
    for (key, path) in [
        ("nats.credentials", &nats.credentials),
        ("nats.tls.ca", &tls.ca),
        ("nats.tls.certificate", &tls.certificate),
        ("nats.tls.key", &tls.key),
    ] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_file()) {
            findings.add(key, format!("no such file: {}", path.display()));
        }
    }
}

/// Why a NATS URL cannot be used, if it cannot.
fn nats_url_problem(url: &str) -> Option<String> {
    match with_scheme(url).parse::<Url>() {
        Err(error) => Some(error.to_string()),
        Ok(url) if !matches!(url.scheme(), "nats" | "tls") => {
            Some(format!("scheme `{}` is not nats or tls", url.scheme()))
        }
        Ok(url) if url.host_str().is_none_or(str::is_empty) => Some("it names no host".to_owned()),
        Ok(_) => None,
    }
}

fn with_scheme(url: &str) -> String {
    if url.contains("://") { url.to_owned() } else { format!("nats://{url}") }
}

fn streams(config: &Config, findings: &mut Findings) {
    let retry = config.streams.table(StreamKind::Retry);
    if retry.max_age.is_some() || retry.max_messages.is_some() {
        findings.add("streams.retry", "only `max_bytes` can be set: any other limit would lose a waiting delivery");
    }
    for kind in StreamKind::ALL {
        let limits = config.streams.limits(kind);
        let table = format!("streams.{}", kind.name().to_lowercase());
        if limits.max_age.is_some_and(|age| age < limits.duplicate_window) {
            findings.add(
                format!("{table}.max_age"),
                "is shorter than `duplicate_window`: a repeat would be recognised only as long as the message is kept",
            );
        }
        if limits.max_bytes == Some(0) || limits.max_messages == Some(0) {
            findings.add(table, "a limit of 0 keeps nothing");
        }
    }
}

fn gateway(config: &Config, findings: &mut Findings) {
    let gateway = &config.gateway;
    if gateway.max_body.as_u64() == 0 {
        findings.add("gateway.max_body", "a limit of 0 refuses every webhook with a body");
    }
    if gateway.max_headers.as_u64() > HEADER_ROOM || gateway.max_headers.as_u64() < 1024 {
        findings.add("gateway.max_headers", "must be between 1 KiB and 64 KiB");
    }
    if gateway.max_in_flight < gateway.max_body {
        findings.add("gateway.max_in_flight", "is smaller than `max_body`: the largest webhook could never be taken");
    }
    if gateway.max_connections == 0 {
        findings.add("gateway.max_connections", "must be at least 1");
    }
    if config.shutdown_delay > LONGEST_DELAY {
        findings.add("shutdown_delay", "must be at most 1h");
    }
    if gateway.idle_timeout.is_zero() {
        findings.add("gateway.idle_timeout", "must be more than 0: a connection is idle before its first request");
    }
    for (key, timeout) in [
        ("gateway.header_timeout", gateway.header_timeout),
        ("gateway.body_timeout", gateway.body_timeout),
        ("gateway.request_timeout", gateway.request_timeout),
        ("gateway.publish_timeout", gateway.publish_timeout),
    ] {
        if timeout.is_zero() {
            findings.add(key, "a time limit of 0 refuses everything");
        }
    }
}

fn source(config: &Config, name: &Name, source: &Source, findings: &mut Findings) {
    let table = format!("sources.{name}");
    if name.as_str() == "callbacks" || name.as_str().starts_with('_') {
        findings.add(&table, "the name is reserved");
    }
    if let Some(preset) = source.preset.as_deref().filter(|_| source.find_preset().is_none()) {
        let reason = match nearest(preset, preset::names()) {
            Some(near) => format!("no preset `{preset}`, did you mean `{near}`?"),
            None => format!("no preset `{preset}`; there are {}", preset::names().collect::<Vec<_>>().join(", ")),
        };
        return findings.add(format!("{table}.preset"), reason);
    }
    let secrets = [("path_token", &source.path_token), ("verify_token", &source.verify_token)];
    for (key, secret) in secrets.into_iter().filter_map(|(key, secret)| Some((key, secret.as_ref()?))) {
        check_secret(&format!("{table}.{key}"), secret, findings);
    }
    if source.max_concurrent == Some(0) {
        findings.add(format!("{table}.max_concurrent"), "must be at least 1; leave it out for no limit");
    }
    let profile = source.profile();
    self::profile(&table, &profile, findings);
    if profile.max_body.is_some_and(|max| max > config.gateway.max_in_flight) {
        findings.add(format!("{table}.max_body"), "is larger than gateway.max_in_flight: it could never be taken");
    }
    if source.split && profile.batch.is_none() {
        findings.add(format!("{table}.split"), "needs `batch`, which says where the list is");
    }
    if profile.needs_url() && source.endpoint(name, config.gateway.public_url.as_ref()).is_none() {
        findings.add(
            format!("{table}.public_url"),
            "is missing: the sender signs the URL that it sends to; say it here or in gateway.public_url",
        );
    }
    match &profile.verify {
        None => findings
            .add(&table, "has neither `preset` nor `verify`; to take requests from anybody write verify = \"none\""),
        Some(Verify::None) => unproved(&table, source, &profile, findings),
        Some(Verify::Ways(ways)) => self::ways(&table, source, ways, config.egress.allow_http, findings),
    }
}

fn profile(table: &str, profile: &Profile, findings: &mut Findings) {
    for handshake in profile.handshakes() {
        if let Err(error) = handshake.validate() {
            findings.add(format!("{table}.handshake.{}.{}", handshake.name, error.key), error.reason);
        }
    }
    let methods = profile.methods.iter().flatten();
    if methods.clone().any(|method| method.parse::<Method>().is_err()) || profile.event_methods().is_empty() {
        findings.add(format!("{table}.methods"), "are not HTTP methods; write for example [\"POST\"]");
    }
    let answer = profile.answer.clone().unwrap_or_default();
    if answer.status.is_some_and(|status| !(200..300).contains(&status)) {
        findings.add(format!("{table}.answer.status"), "must be a 2xx: what is stored was taken");
    }
    if profile.max_body.is_some_and(|max| max.as_u64() == 0) {
        findings.add(format!("{table}.max_body"), "a limit of 0 refuses every webhook with a body");
    }
    if let Some(batch) = &profile.batch
        && !matches!(batch.items, Place::Json(_))
    {
        findings.add(format!("{table}.batch.items"), "must be a `json:` place");
    }
}

/// Nothing is verified: no secret is of use but to a handshake that answers with a code.
fn unproved(table: &str, source: &Source, profile: &Profile, findings: &mut Findings) {
    if source.preset.is_some() && source.verify.is_some() {
        return findings.add(table, "has both `preset` and verify = \"none\"; leave one of them out");
    }
    let wanted = profile.handshakes().iter().any(Handshake::needs_secret);
    match source.secrets.first() {
        Some(_) if !wanted => findings.add(format!("{table}.secrets"), "verify = \"none\" uses no secret"),
        None if wanted => findings.add(format!("{table}.secrets"), "has none, and a handshake answers with a code"),
        _ => source.secrets.iter().for_each(|secret| {
            check_secret(&format!("{table}.secrets"), secret.reference(), findings);
        }),
    }
    all_ended(&format!("{table}.secrets"), &source.secrets, findings);
}

fn ways(table: &str, source: &Source, ways: &Ways, allow_http: bool, findings: &mut Findings) {
    let id = source.profile().id;
    for scheme in ways.iter() {
        if let Err(error) = scheme.validate(id.as_ref()) {
            findings.add(format!("{table}.verify.{}", error.key), error.reason);
        }
        let jwks = scheme.jwks.as_ref().map(Url::scheme);
        if jwks.is_some_and(|scheme| scheme != "https" && !(scheme == "http" && allow_http)) {
            findings.add(format!("{table}.verify.jwks"), "is not https: whoever is in between would choose the keys");
        }
    }
    let captured = source.profile().handshakes().iter().any(Handshake::captures);
    if source.secrets.is_empty() && ways.iter().any(Scheme::needs_secret) {
        let reason = if captured {
            "has none; name a `file:` that the secret is kept in once the provider has sent it"
        } else {
            "has none; without a secret no signature can be checked"
        };
        findings.add(format!("{table}.secrets"), reason);
    }
    all_ended(&format!("{table}.secrets"), &source.secrets, findings);
    for secret in source.secrets.iter().map(SecretEntry::reference) {
        // A provider that chooses the secret will bring it.
        if captured && secret.is_absent_file() {
            let folder = secret.file().and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
            if folder.is_some_and(|folder| !folder.is_dir()) {
                let reason =
                    format!("the folder of `{secret}` is not there, so the provider's secret could not be kept");
                findings.add(format!("{table}.secrets"), reason);
            }
            continue;
        }
        let ways = ways.clone();
        if let Err(error) = KeyRing::load(vec![secret.clone()], move |secret| ways.credential(secret)) {
            findings.add(format!("{table}.secrets"), error.to_string());
        }
    }
}

fn agent(key: &str, events: &[String], findings: &mut Findings) {
    for (index, pattern) in events.iter().enumerate() {
        if !subject::is_pattern(pattern) || !pattern.starts_with("events.") {
            findings.add(key, format!("`{pattern}` is not a pattern over `events.…` subjects"));
        }
        if let Some(other) = events[..index].iter().find(|other| subject::overlap(other, pattern)) {
            findings.add(key, format!("`{other}` and `{pattern}` overlap, which NATS refuses: keep the wider one"));
        }
    }
}

fn endpoint(table: &str, endpoint: &Endpoint, allow_http: bool, findings: &mut Findings) {
    match endpoint.url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        "http" => findings.add(format!("{table}.url"), "is http; use https, or set egress.allow_http = true"),
        other => findings.add(format!("{table}.url"), format!("scheme `{other}` is not http or https")),
    }
    if !endpoint.url.username().is_empty() || endpoint.url.password().is_some() {
        findings.add(format!("{table}.url"), "carries a user name; say it in `headers`, where it is not printed");
    }
    let own = endpoint.headers.keys().filter_map(|name| name.parse().ok());
    let carried: Vec<HeaderName> = CARRIED.into_iter().chain(own).collect();
    signatures(table, &endpoint.signatures, &endpoint.secrets, &carried, findings);
    client_tls(table, endpoint.tls.as_ref(), findings);
    if endpoint.tls.is_some() && endpoint.url.scheme() == "http" {
        findings.add(format!("{table}.tls"), "is for https, and the URL is http");
    }
    for pattern in
        endpoint.subjects.iter().filter(|pattern| !subject::is_pattern(pattern) || !pattern.starts_with("outbox."))
    {
        findings.add(format!("{table}.subjects"), format!("`{pattern}` is not a pattern over `outbox.…` subjects"));
    }
    sending::endpoint(table, endpoint, allow_http, findings);
}

fn callbacks(config: &Config, findings: &mut Findings) {
    let callbacks = &config.callbacks;
    if !callbacks.allow.is_empty() {
        signatures("callbacks", &callbacks.signatures, &callbacks.secrets, &CARRIED, findings);
    }
    client_tls("callbacks", callbacks.tls.as_ref(), findings);
}

fn client_tls(table: &str, tls: Option<&ClientTls>, findings: &mut Findings) {
    let Some(tls) = tls else { return };
    if tls.is_empty() {
        return findings.add(format!("{table}.tls"), "names no file; leave it out for the system's authorities");
    }
    if let Err(error) = tls.load() {
        findings.add(format!("{table}.tls.{}", error.key), error.to_string());
    }
}

/// How a destination is signed.
fn signatures(
    table: &str,
    forms: &[SignatureForm],
    secrets: &[SecretEntry],
    carried: &[HeaderName],
    findings: &mut Findings,
) {
    let mistakes = signing::mistakes(forms, secrets, carried, SystemTime::now());
    mistakes.into_iter().for_each(|(key, reason)| findings.add(format!("{table}.{key}"), reason));
    all_ended(&format!("{table}.secrets"), secrets, findings);
}

/// Without a secret that holds nothing can be signed or verified, and nobody would see it before the first request.
fn all_ended(key: &str, secrets: &[SecretEntry], findings: &mut Findings) {
    if !secrets.is_empty() && !secrets.iter().any(|entry| entry.holds(SystemTime::now())) {
        findings.add(key, "every one of them has ended: add one that holds");
    }
}

fn egress(config: &Config, findings: &mut Findings) {
    let egress = &config.egress;
    if egress.concurrency == 0 {
        findings.add("egress.concurrency", "must be at least 1");
    }
    persistence("egress", egress, None, config.streams.limits(StreamKind::Outbox).max_age, findings);
}

/// How persistently deliveries are made: what an endpoint says for itself, else what all have.
fn persistence(table: &str, egress: &Egress, own: Option<&Endpoint>, kept: Option<Duration>, findings: &mut Findings) {
    let key = |key| format!("{table}.{key}");
    let timeout = own.map_or(Some(egress.timeout), |own| own.timeout);
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        findings.add(key("timeout"), "a time limit of 0 refuses everything");
    }
    let max_retry_after = own.map_or(Some(egress.max_retry_after), |own| own.max_retry_after);
    if max_retry_after.is_some_and(|longest| longest < Duration::from_secs(1)) {
        findings.add(key("max_retry_after"), "must be at least 1s");
    }
    let jitter = own.map_or(Some(egress.jitter), |own| own.jitter);
    if jitter.is_some_and(|jitter| !(0.0..=1.0).contains(&jitter)) {
        findings.add(key("jitter"), "must be between 0 and 1");
    }
    if own.map_or(egress.max_age, |own| own.max_age).is_some_and(|age| age.is_zero()) {
        findings.add(key("max_age"), "an age of 0 lets nobody try even once; leave it out for no limit");
    }
    let give_up_on = own.map_or(Some(&egress.give_up_on), |own| own.give_up_on.as_ref());
    if let Some(status) = give_up_on.into_iter().flatten().find(|status| !(300..600).contains(*status)) {
        findings.add(key("give_up_on"), format!("{status} is not a status that an attempt fails with: 300 to 599"));
    }
    if own.map_or(Some(egress.max_concurrent), |own| own.max_concurrent) == Some(0) {
        findings.add(key("max_concurrent"), "must be at least 1");
    }
    if let Some(breaker) = own.map_or(egress.breaker, |own| own.breaker.flatten()) {
        self::breaker(&key("breaker"), &breaker, findings);
    }
    let retry = own.map_or(Some(&egress.retry), |own| own.retry.as_ref());
    let (Some(retry), Some(kept)) = (retry, kept) else { return };
    // Jitter lengthens a wait, and every attempt may take its whole time.
    let jitter = own.and_then(|own| own.jitter).unwrap_or(egress.jitter).clamp(0.0, 1.0);
    let waits: Duration = retry.waits().iter().sum();
    let attempts = own.and_then(|own| own.timeout).unwrap_or(egress.timeout).saturating_mul(retry.attempts());
    let longest = Duration::try_from_secs_f64(waits.as_secs_f64() * (1.0 + jitter)).unwrap_or(Duration::MAX);
    let longest = longest.saturating_add(attempts);
    if longest > kept {
        findings.add(
            key("retry"),
            format!(
                "may take {} and OUTBOX keeps a message for {}: shorten it, or lengthen streams.outbox.max_age",
                humantime::format_duration(Duration::from_secs(longest.as_secs())),
                humantime::format_duration(kept)
            ),
        );
    }
}

fn breaker(key: &str, breaker: &Breaker, findings: &mut Findings) {
    let Breaker { failures, failure_rate, window, at_least, open, longest } = *breaker;
    if failures == 0 || at_least == 0 || window.is_zero() || open.is_zero() {
        findings
            .add(key, "`failures`, `at_least`, `window` and `open` must be more than 0; for no breaker write \"none\"");
    }
    if !(0.0..=1.0).contains(&failure_rate) || failure_rate == 0.0 {
        findings.add(key, "`failure_rate` must be more than 0 and at most 1");
    }
    if longest < open {
        findings.add(key, "`longest` is shorter than `open`");
    }
}

fn check_secret(key: &str, secret: &SecretRef, findings: &mut Findings) {
    if let Err(error) = secret.resolve() {
        findings.add(key, error.to_string());
    }
}

/// What works and is still worth a word.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.sources.is_empty() && config.endpoints.is_empty() && config.callbacks.allow.is_empty() {
        warnings
            .push("no source, endpoint or callback is configured: nothing comes in and nothing goes out".to_owned());
    }
    for (name, source) in &config.sources {
        let profile = source.profile();
        if profile.handshakes().iter().any(Handshake::needs_token) && source.verify_token.is_none() {
            warnings
                .push(format!("sources.{name}: has no `verify_token`, so the provider's handshake is answered 403"));
        }
        let delicate = source.find_preset().is_some_and(|preset| preset.about.path_token);
        if delicate && source.path_token.is_none() {
            warnings.push(format!(
                "sources.{name}: whoever knows the URL can take part in its handshake; a path_token would keep strangers out"
            ));
        }
        if matches!(profile.verify, Some(Verify::None)) && source.path_token.is_none() {
            warnings.push(format!(
                "sources.{name}: takes requests from anybody (verify = \"none\"); a path_token would keep strangers out"
            ));
        }
    }
    let keeps_nothing = |source: &Source| source.quarantine && matches!(source.profile().verify, Some(Verify::None));
    for (name, _) in config.sources.iter().filter(|(_, source)| keeps_nothing(source)) {
        warnings.push(format!(
            "sources.{name}: `quarantine` keeps what is rejected, and with verify = \"none\" nothing is"
        ));
    }
    for (key, entry) in secrets(config) {
        if let Some(until) = entry.until().filter(|_| !entry.holds(SystemTime::now())) {
            let until = humantime::format_rfc3339_seconds(until);
            warnings.push(format!("{key}: `{entry}` has ended ({until}) and counts no longer: take it out"));
        }
    }
    let nats = &config.nats;
    let authenticated =
        nats.credentials.is_some() || nats.nkey.is_some() || nats.user.is_some() || nats.token.is_some();
    let open = nats.url.as_slice().iter().filter(|url| !authenticated && !url.contains('@') && !is_loopback(url));
    for url in open {
        warnings.push(format!(
            "nats.url: {url} is neither on loopback nor authenticated: whoever reaches it can publish as any agent"
        ));
    }
    if config.gateway.idle_timeout <= KEPT_BY_BALANCERS {
        warnings.push(format!(
            "gateway.idle_timeout: {} is too short behind a load balancer: set it above the balancer's keep-alive timeout (AWS, nginx: 60s), or the balancer may answer 502 for requests on a connection that is being closed",
            humantime::format_duration(config.gateway.idle_timeout)
        ));
    }
    if config.streams.retry.max_bytes.is_some() {
        warnings.push("streams.retry.max_bytes: a full RETRY stream drops its oldest waiting delivery; watch its size long before".to_owned());
    }
    warnings.extend(tasks::warnings(config));
    if config.callbacks.allow.iter().any(UrlPrefix::is_any) {
        warnings.push("callbacks.allow: \"*\" lets an agent send to any public address".to_owned());
    }
    warnings
}

/// Every secret that can have an end, and the key that it is under.
fn secrets(config: &Config) -> impl Iterator<Item = (String, &SecretEntry)> {
    let sources = config.sources.iter().map(|(name, source)| (format!("sources.{name}.secrets"), &source.secrets));
    let endpoints = config.endpoints.iter().map(|(name, to)| (format!("endpoints.{name}.secrets"), &to.secrets));
    let callbacks = [("callbacks.secrets".to_owned(), &config.callbacks.secrets)];
    let clients = config.clients.iter().flat_map(|(name, client)| {
        let table = [("secrets", &client.secrets), ("callback_secrets", &client.callback_secrets)];
        table.map(|(key, secrets)| (format!("clients.{name}.{key}"), secrets))
    });
    let all = sources.chain(endpoints).chain(callbacks).chain(clients);
    all.flat_map(|(key, secrets)| secrets.iter().map(move |secret| (key.clone(), secret)))
}

fn is_loopback(url: &str) -> bool {
    let Ok(url) = with_scheme(url).parse::<Url>() else { return false };
    let Some(host) = url.host_str() else { return false };
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
