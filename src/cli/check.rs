//! `hookbridge check`: what the configuration means, and everything that is wrong with it.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use clap::Args;

use super::{Common, Usage, complain, presets, say};
use crate::broker::{Broker, Names, Plan, Server, Visitor, affected_note, can_lose_streams, leaderless_note};
use crate::config::{
    self, AgentPattern, Authorization, Config, Durability, HEADER_ROOM, PayloadForm, Rate, SignatureForm, StreamKind,
};
use crate::secret::SecretEntry;
use crate::signature::preset::{self, Certainty};
use crate::signature::{Profile, Scheme, Verify};

/// Server memory per message id in a duplicate window, and replica. Measured on nats-server 2.15.1: 165 to 235.
const BYTES_PER_ID: u64 = 235;
/// Server memory per distinct subject of a stream. Measured on nats-server 2.15.1.
const BYTES_PER_SUBJECT: u64 = 363;
/// How long to wait for NATS.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(super) struct Arguments {
    /// Also ask the server: version, max_payload, and how its streams differ.
    #[arg(long)]
    online: bool,
    /// The webhooks a second that memory is reckoned for.
    #[arg(long, value_name = "N", default_value_t = 10)]
    rate: u64,
    /// Instead, print a preset in the language of the configuration: a source to paste and change.
    #[arg(long, value_name = "PRESET")]
    explain: Option<String>,
    /// Instead, list all presets: name, certainty, where the facts are from, handshakes, other names.
    #[arg(long, conflicts_with = "explain")]
    presets: bool,
    #[command(flatten)]
    common: Common,
}

/// Prints what the configuration means. Exit code 1 for every kind of mistake.
pub(super) async fn run(arguments: Arguments) -> ExitCode {
    if arguments.presets {
        presets::list().for_each(|line| say(&line));
        return ExitCode::SUCCESS;
    }
    if let Some(name) = &arguments.explain {
        return explain(name);
    }
    let config = match arguments.common.load() {
        Ok(config) => config,
        Err(error) => {
            complain(&error.to_string());
            if let Usage::Configuration(mistakes) = error {
                complain(&format!("{} wrong", count(mistakes.0.len(), "thing")));
            }
            return ExitCode::FAILURE;
        }
    };
    roles(&config);
    sources(&config);
    agents(&config);
    destinations(&config);
    streams(&config, arguments.rate);
    for warning in config::warnings(&config) {
        say(&format!("warning: {warning}"));
    }
    if arguments.online && !online(&config).await {
        return ExitCode::FAILURE;
    }
    say("the configuration is fine");
    ExitCode::SUCCESS
}

fn explain(name: &str) -> ExitCode {
    let Some(table) = presets::table(name) else {
        let near = config::nearest(name, preset::names());
        let near =
            near.map_or(", see `hookbridge check --presets`".to_owned(), |near| format!(", did you mean `{near}`?"));
        complain(&format!("error: no preset `{name}`{near}"));
        return ExitCode::FAILURE;
    };
    say(&table);
    ExitCode::SUCCESS
}

fn roles(config: &Config) {
    let nats = &config.nats;
    let servers = nats.url.public().join(", ");
    say(&format!("NATS      {servers}, replicas {}, durability {}", nats.replicas, nats.durability));
    if nats.durability == Durability::Synced {
        say("          you say that every server has sync_interval: always, which cannot be seen from here;");
        say("          webhooks that arrive together are stored together");
    }
    let gateway = &config.gateway;
    say(&format!("gateway   {}, bodies up to {}", gateway.listen, size(gateway.max_body.as_u64())));
    let rate = gateway.peer_rate.map_or("none".to_owned(), |rate| rate.to_string());
    let proxies = if gateway.trusted_proxies.is_empty() { "none".to_owned() } else { list(&gateway.trusted_proxies) };
    say(&format!("          peer rate {rate}; trusted proxies {proxies}"));
    say(&format!("admin     {}", config.admin.listen));
}

fn sources(config: &Config) {
    let names = Names::new(config.nats.prefix.clone());
    say(&format!("\n{}", count(config.sources.len(), "source")));
    let base =
        config.gateway.public_url.as_ref().map_or(String::new(), |url| url.as_str().trim_end_matches('/').to_owned());
    for (name, source) in &config.sources {
        let token = if source.path_token.is_some() { "/<token>" } else { "" };
        let profile = source.profile();
        let proof = match (&source.preset, &profile.verify) {
            (Some(preset), _) => format!("preset {preset}"),
            (None, Some(Verify::Ways(ways))) => {
                format!("proof in {}", ways.iter().map(Scheme::places).collect::<Vec<_>>().join(" or "))
            }
            (None, _) => "no proof (verify = \"none\")".to_owned(),
        };
        let id = match (&profile.id, profile.id_is_signed()) {
            (None, _) => "none: by body".to_owned(),
            (Some(place), Some(false)) => format!("{place} (not signed)"),
            (Some(place), _) => place.to_string(),
        };
        let secrets = count(source.secrets.len(), "secret");
        let methods = list(&profile.event_methods()).replace(", ", "|");
        say(&format!("  {methods} {base}/hooks/{name}{token} -> {}", names.subject(&format!("events.{name}.<type>"))));
        say(&format!("    {proof}, {secrets}, delivery id {id}"));
        ends(&source.secrets);
        naming(source, &profile).iter().for_each(|line| say(&format!("    {line}")));
        if let Some(limits) = source_limits(config, source) {
            say(&format!("    {limits}"));
        }
        if source.quarantine {
            let subject = names.subject(&format!("quarantine.{name}.<reason>"));
            let age = config.streams.limits(StreamKind::Quarantine).max_age;
            let kept = age.map_or(String::new(), |age| format!(" for {}", humantime::format_duration(age)));
            say(&format!("    rejected requests are kept{kept} on {subject}"));
        }
        if let (Some(name), Some(preset)) = (&source.preset, source.find_preset())
            && preset.about.certainty != Certainty::Provider
        {
            say(&format!("    note: preset {name} is {}", preset.about.certainty.meaning()));
        }
    }
}

/// How a source names its events, and which of them it publishes.
fn naming(source: &config::Source, profile: &Profile) -> Vec<String> {
    let event_type = profile.event_type.as_ref().map_or("none: unknown".to_owned(), ToString::to_string);
    let handshakes: Vec<&str> = profile.handshakes().iter().map(|rule| rule.name.as_str()).collect();
    let handshakes = (!handshakes.is_empty()).then(|| format!("handshakes {}", handshakes.join(", ")));
    let types = (!source.types.is_empty()).then(|| format!("only types {}", source.types.join(", ")));
    let split = profile.batch.as_ref().filter(|_| source.split).map(|batch| format!("split at {}", batch.items));
    let taken = profile.content_types.as_ref().map(|types| format!("content types {}", types.join(", ")));
    let max_body = profile.max_body.map(|max| format!("bodies up to {}", size(max.as_u64())));
    let rest: Vec<String> = [handshakes, types, split, taken, max_body].into_iter().flatten().collect();
    let rest = (!rest.is_empty()).then(|| rest.join("; "));
    std::iter::once(format!("type {event_type}")).chain(rest).collect()
}

/// The limits that a source has, if it has any.
fn source_limits(config: &Config, source: &config::Source) -> Option<String> {
    let networks = (!source.networks.is_empty()).then(|| format!("networks {}", list(&source.networks)));
    let rate = source.rate.map(|rate| format!("rate {rate}"));
    let places = source.max_concurrent.map(|most| format!("{most} at once"));
    let window = config.streams.limits(StreamKind::Events).duplicate_window;
    let ids = source
        .rate
        .map(|rate| format!("memory for ids up to {}", size(rate.most_in(window).saturating_mul(BYTES_PER_ID))));
    let limits: Vec<String> = [networks, rate, places, ids].into_iter().flatten().collect();
    (!limits.is_empty()).then(|| limits.join("; "))
}

fn agents(config: &Config) {
    say(&format!("\n{} with durables", count(config.agents.len(), "agent")));
    for (name, agent) in &config.agents {
        let events = if agent.events.is_empty() { "no events".to_owned() } else { agent.events.join(", ") };
        say(&format!("  {name}: {events}"));
    }
}

fn destinations(config: &Config) {
    say(&format!("\n{}", count(config.endpoints.len(), "endpoint")));
    for (name, endpoint) in &config.endpoints {
        let (signatures, secrets) = (endpoint.signatures.len(), endpoint.secrets.len());
        // A query may hold a secret.
        let mut url = endpoint.url.clone();
        url.set_query(None);
        say(&format!("  {name}: {url}"));
        let signed = format!("{}, {}", count(signatures, "signature"), count(secrets, "secret"));
        let subjects =
            if endpoint.subjects.is_empty() { "when named".to_owned() } else { endpoint.subjects.join(", ") };
        say(&format!("    {subjects}; agents {}; {signed}", agent_list(&endpoint.agents)));
        signed_as(&endpoint.signatures);
        ends(&endpoint.secrets);
        endpoint.tls.iter().for_each(|tls| say(&format!("    TLS: {}", own_tls(tls))));
        own_persistence(endpoint).iter().for_each(|line| say(&format!("    {line}")));
        sending(endpoint).iter().for_each(|line| say(&format!("    {line}")));
    }
    let callbacks = if config.callbacks.allow.is_empty() { "none allowed".to_owned() } else { allowed(config) };
    say(&format!("callbacks {callbacks}"));
    if !config.callbacks.allow.is_empty() {
        signed_as(&config.callbacks.signatures);
        ends(&config.callbacks.secrets);
        config.callbacks.tls.iter().for_each(|tls| say(&format!("          TLS: {}", own_tls(tls))));
    }
    clients(config);
    reach(config);
    let egress = &config.egress;
    say(&format!("retries   {}", retries(&egress.retry)));
    let rate = egress.rate.map_or("no rate".to_owned(), |rate| format!("rate {rate}"));
    let breaker = egress.breaker.map_or("no breaker".to_owned(), |breaker| {
        format!("left alone after {} failures for {}", breaker.failures, humantime::format_duration(breaker.open))
    });
    say(&format!("each      {} at once, {rate}; {breaker}", egress.max_concurrent));
    let keys = if egress.seal_keys.is_empty() { "none: set egress.seal_keys" } else { "sealed" };
    say(&format!("run time  endpoints {keys}"));
}

/// Who may delegate tasks, and what holds for these.
fn clients(config: &Config) {
    if !config.clients.is_empty() {
        say(&format!("\n{}", count(config.clients.len(), "client")));
    }
    for (name, client) in &config.clients {
        let proof = if client.token.is_some() { "token".to_owned() } else { count(client.secrets.len(), "secret") };
        let rate = client.rate.map_or("no rate".to_owned(), |rate| format!("rate {rate}"));
        say(&format!("  {name}: by {proof}; agents {}; {rate}", agent_list(&client.agents)));
        let urls = match client.callback_urls.is_empty() {
            true => "where callbacks may go".to_owned(),
            false => format!("at {}", list(&client.callback_urls)),
        };
        let secrets = if client.callback_secrets.is_empty() { "as callbacks are" } else { "with secrets of its own" };
        say(&format!("    called back {urls}; signed {secrets}"));
        ends(&client.secrets);
        ends(&client.callback_secrets);
    }
    if !config.clients.is_empty() {
        let kept = humantime::format_duration(config.tasks.retention);
        let deadline = config.tasks.deadline.map(humantime::format_duration);
        let deadline = deadline.map_or("no deadline".to_owned(), |deadline| format!("deadline {deadline}"));
        say(&format!("tasks     {deadline} unless they bring one; kept {kept} after their end"));
    }
    if let Some(url) = config.gateway.public_url.as_ref().filter(|_| !config.replies.keys.is_empty()) {
        let base = url.as_str().trim_end_matches('/');
        say(&format!("replies   to agents at {base}/callbacks/<agent>/<task id>"));
    }
}

fn signed_as(forms: &[SignatureForm]) {
    if !forms.is_empty() {
        say(&format!("    signed as {}", list(forms)));
    }
}

/// Which secrets hold until when.
fn ends(secrets: &[SecretEntry]) {
    let ends = secrets.iter().filter_map(|secret| Some((secret, secret.until()?)));
    for (secret, until) in ends {
        let word = if secret.holds(SystemTime::now()) { "holds until" } else { "has ended, at" };
        say(&format!("    secret {secret} {word} {}", humantime::format_rfc3339_seconds(until)));
    }
}

fn own_tls(tls: &config::ClientTls) -> String {
    let ca = tls.ca.as_ref().map_or("system's authorities".to_owned(), |ca| format!("authorities {}", ca.display()));
    let certificate = tls.certificate.as_ref().map(|path| format!(", client certificate {}", path.display()));
    format!("{ca}{}", certificate.unwrap_or_default())
}

/// What the address guard lets through beyond public addresses over https.
fn reach(config: &Config) {
    let egress = &config.egress;
    let scheme = if egress.allow_http { "http and https" } else { "https" };
    let ports = if egress.allow_ports.is_empty() { "usual".to_owned() } else { list(&egress.allow_ports) };
    say(&format!("reach     {scheme}, public addresses, ports {ports}"));
    for (what, items) in [
        ("also networks", strings(&egress.allow_networks)),
        ("also hosts", strings(&egress.allow_hosts)),
        ("never hosts", strings(&egress.deny_hosts)),
        ("name servers", strings(&egress.nameservers)),
    ] {
        if !items.is_empty() {
            say(&format!("          {what} {}", items.join(", ")));
        }
    }
}

fn strings(items: &[impl ToString]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn retries(retry: &config::Retry) -> String {
    let waits: Vec<String> = retry.waits().iter().map(|wait| humantime::format_duration(*wait).to_string()).collect();
    let after = if waits.is_empty() { String::new() } else { format!(", after {}", waits.join(", ")) };
    format!("{} attempts{after}", retry.attempts())
}

/// How persistently an endpoint is tried, as far as it differs from the others.
fn own_persistence(endpoint: &config::Endpoint) -> Option<String> {
    let rate = |rate: &Option<Rate>| rate.map_or("no rate".to_owned(), |rate| format!("rate {rate}"));
    let lines = [
        endpoint.ordered.then(|| "in order, one at a time".to_owned()),
        (!endpoint.types.is_empty()).then(|| format!("types {}", endpoint.types.join(", "))),
        endpoint.retry.as_ref().map(retries),
        endpoint.timeout.map(|timeout| format!("timeout {}", humantime::format_duration(timeout))),
        endpoint.max_age.map(|age| format!("no older than {}", humantime::format_duration(age))),
        endpoint.give_up_on.as_ref().map(|statuses| format!("gives up on {}", list(statuses))),
        endpoint.max_concurrent.map(|most| format!("{most} at once")),
        endpoint.rate.as_ref().map(rate),
    ];
    let lines: Vec<String> = lines.into_iter().flatten().collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// What an endpoint's requests carry beside the usual, and what is kept of its answers.
fn sending(endpoint: &config::Endpoint) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(auth) = &endpoint.auth {
        lines.push(format!("authentication {}", authentication(auth)));
    }
    if !endpoint.secret_headers.is_empty() {
        let secrets = endpoint.secret_headers.iter().map(|(name, secret)| format!("{name} ({secret})"));
        lines.push(format!("secret headers {}", secrets.collect::<Vec<_>>().join(", ")));
    }
    let transform = endpoint.transform.as_ref();
    lines.extend(transform.map(|transform| format!("transformed by {}", transform.source().escape_debug())));
    let limit = endpoint.max_body.map_or(String::new(), |max| format!(", at most {}", size(max.as_u64())));
    if endpoint.payload != PayloadForm::AsIs || !limit.is_empty() {
        lines.push(format!("payload {}{limit}", endpoint.payload));
    }
    if endpoint.capture_response {
        lines.push(format!("answers are captured, with {}", endpoint.capture_headers.join(", ")));
    }
    lines
}

fn authentication(auth: &Authorization) -> String {
    match auth {
        Authorization { oauth2: Some(client), .. } => {
            // A query may hold a secret.
            let mut url = client.token_url.clone();
            url.set_query(None);
            let scopes = if client.scopes.is_empty() { "no scopes".to_owned() } else { client.scopes.join(" ") };
            format!("OAuth 2.0 client {} at {url}, {scopes}", client.client_id)
        }
        Authorization { basic: Some(basic), .. } => format!("basic, as {}", basic.user),
        _ => "bearer token".to_owned(),
    }
}

fn allowed(config: &Config) -> String {
    format!("{}; agents {}", list(&config.callbacks.allow), agent_list(&config.callbacks.agents))
}

fn agent_list(agents: &[AgentPattern]) -> String {
    let names: Vec<&str> = agents
        .iter()
        .map(|agent| match agent {
            AgentPattern::Any => "*",
            AgentPattern::Named(name) => name.as_str(),
        })
        .collect();
    names.join(", ")
}

fn streams(config: &Config, rate: u64) {
    let names = Names::new(config.nats.prefix.clone());
    say("\nstreams, and what they may take");
    for kind in StreamKind::ALL {
        let limits = config.streams.limits(kind);
        let age = limits.max_age.map_or("for ever".to_owned(), |age| humantime::format_duration(age).to_string());
        let bytes = limits.max_bytes.map_or("the server's disk".to_owned(), size);
        let messages = limits.max_messages.map_or(String::new(), |messages| format!(", {messages} messages"));
        let memory = memory(config, kind, rate);
        let subjects = names.subject(kind.subjects());
        say(&format!("  {:<12} {subjects:<14} {age}, {bytes}{messages}; memory {memory}", names.stream(kind)));
    }
    say(&format!("  buckets      {}, {}", names.endpoints_bucket(), names.tasks_bucket()));
    let each = size(BYTES_PER_SUBJECT * 1_000_000);
    say(&format!("               memory {each} per million tasks that are open or ended and kept"));
}

/// What the server holds in memory for a stream, beyond its working set.
fn memory(config: &Config, kind: StreamKind, rate: u64) -> String {
    let limits = config.streams.limits(kind);
    match kind {
        StreamKind::Events => {
            let (window, ids) = (limits.duplicate_window, rate.saturating_mul(limits.duplicate_window.as_secs()));
            let (all, million) = (size(ids.saturating_mul(BYTES_PER_ID)), size(BYTES_PER_ID * 1_000_000));
            let hours = window.as_secs().is_multiple_of(3600).then(|| format!("{}h", window.as_secs() / 3600));
            let window = hours.unwrap_or_else(|| humantime::format_duration(window).to_string());
            format!("{all} for ids at {rate}/s in the {window} window, {million} per million ids")
        }
        StreamKind::Receipts | StreamKind::Dead => {
            let subjects = limits.max_messages.unwrap_or(1_000_000);
            format!("up to {} for subjects", size(subjects.saturating_mul(BYTES_PER_SUBJECT)))
        }
        StreamKind::Retry => format!("{} per million waiting", size(BYTES_PER_SUBJECT.saturating_mul(1_000_000))),
        // The offer, and where its moves are told.
        StreamKind::Tasks => format!("{} per million tasks", size(2 * BYTES_PER_SUBJECT * 1_000_000)),
        StreamKind::Outbox | StreamKind::Quarantine => "small".to_owned(),
    }
}

async fn online(config: &Config) -> bool {
    say("\nserver");
    let names = Names::new(config.nats.prefix.clone());
    let visitor = match Broker::visit(&config.nats, names, PATIENCE).await {
        Ok(visitor) => visitor,
        Err(error) => {
            complain(&format!("error: {error:#}"));
            return false;
        }
    };
    let server = visitor.server();
    let fits = payload_fits(config, &server);
    let compared = differences(config, &visitor).await;
    let new_enough = server.new_enough;
    say(&format!("  nats-server {}, max_payload {}", server.version, size(server.max_payload as u64)));
    if !new_enough {
        complain(&format!("error: nats-server {} is too old: Hookbridge needs 2.12 or newer", server.version));
    }
    let led = cluster(config, &server, &visitor).await;
    fits && compared && new_enough && led
}

/// What a cluster's operator has to know. A stream without a leader is an error.
async fn cluster(config: &Config, server: &Server, visitor: &Visitor) -> bool {
    let replicas = config.nats.replicas;
    if !server.clustered {
        return true;
    }
    if replicas == 1 {
        say(
            "  warning: the server is part of a cluster; with nats.replicas = 1, each stream is unavailable while the one",
        );
        say("           server that stores it is down; set nats.replicas = 3 and start once with --update-streams");
    } else if can_lose_streams(&server.version) {
        say(&format!("  warning: {}", affected_note(&server.name, &server.version)));
    }
    let leaderless = visitor.streams_without_leader().await;
    leaderless.iter().for_each(|stream| complain(&format!("error: {}", leaderless_note(stream))));
    leaderless.is_empty()
}

fn payload_fits(config: &Config, server: &Server) -> bool {
    let largest = config.largest_body();
    let needed = largest + HEADER_ROOM;
    if needed <= server.max_payload as u64 {
        return true;
    }
    complain(&format!(
        "error: a max_body of {} with headers needs max_payload {}, and the server has {}: larger bodies would be answered 413",
        size(largest),
        size(needed),
        size(server.max_payload as u64)
    ));
    false
}

async fn differences(config: &Config, visitor: &Visitor) -> bool {
    match visitor.compare(&Plan::new(config, false)).await {
        Ok(differences) => {
            differences.iter().for_each(|difference| say(&format!("  {difference}")));
            true
        }
        Err(error) => {
            complain(&format!("error: {error:#}"));
            false
        }
    }
}

fn list(items: &[impl ToString]) -> String {
    strings(items).join(", ")
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
