//! `hookbridge endpoints`

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgGroup, Args, Subcommand};
use figment::Figment;
use figment::providers::{Format, Toml};
use serde_json::Value;
use url::Url;

use super::{Common, Usage, say, visible};
use crate::broker::{Broker, Names};
use crate::clock::Clock;
use crate::config::{AgentPattern, Config};
use crate::egress::control::{self, Control, Said, Word};
use crate::event::Name;
use crate::secret::SecretRef;

/// How long to wait for NATS.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a test delivery carries unless told otherwise.
const TEST_BODY: &str = r#"{"type":"hookbridge.test","message":"This is a test delivery."}"#;
/// Who speaks, in the records.
pub(super) const BY: &str = "cli";
/// The keys of an endpoint's table whose values name secrets, wherever they stand.
const SECRET_KEYS: [&str; 6] = ["secrets", "secret", "bearer", "password", "client_secret", "secret_headers"];

#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// Endpoints of the configuration and of run time, and their state: paused, disabled, circuit breaker open, or held
    /// by Retry-After.
    List {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Creates or changes an endpoint of run time. Needs egress.seal_keys; couriers follow within a second.
    Put {
        /// The endpoint's name.
        name: Name,
        /// The table of `[endpoints.<name>]`, as TOML or JSON. `env:` and `file:` secrets are read here and now.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Takes an endpoint of run time away. What waits for it is dead when it is due.
    Delete {
        /// The endpoint's name.
        name: Name,
    },
    /// Lets deliveries wait until they are resumed.
    Pause(Target),
    /// Resumes deliveries after a pause, or before a Retry-After has elapsed, and sends what waited.
    Resume(Target),
    /// Ends every delivery, waiting and to come, with a dead letter.
    Disable(Target),
    /// Lets deliveries be made again, also after a 410.
    Enable(Target),
    /// Cancels every delivery of what was published until now.
    Cancel(Target),
    /// Makes a delivery on purpose, and prints the receipt of its first attempt.
    Test {
        /// The endpoint's name.
        name: Name,
        /// The agent in whose name it is made [default: one that may use the endpoint].
        #[arg(long)]
        agent: Option<Name>,
        /// The body.
        #[arg(long, default_value = TEST_BODY)]
        body: String,
        /// How long to wait for the receipt.
        #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
}

/// A destination, and why something is said about it.
#[derive(Args)]
#[command(group(ArgGroup::new("destination").required(true).args(["name", "callback"])))]
struct Target {
    /// The endpoint's name.
    name: Option<Name>,
    /// Instead of an endpoint: all callbacks to this URL's scheme, host and port.
    #[arg(long, value_name = "URL")]
    callback: Option<Url>,
    /// Why, for whoever reads receipts and records.
    #[arg(long, default_value = "by an operator")]
    reason: String,
}

impl Target {
    fn token(&self) -> Option<String> {
        self.name.as_ref().map(control::of_endpoint).or_else(|| self.callback.as_ref().map(control::of_callback))
    }
}

/// Says it, and prints what that means.
pub(super) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load_or_default()?;
    let control = visit(&config).await?;
    match &arguments.command {
        Command::List { json } => list(&control, &config, *json).await,
        Command::Put { name, file } => {
            let table = table(file)?;
            control.put(&config, name, &table).await.map_err(|error| Usage::Other(format!("{error:#}")))?;
            say(&format!("endpoint {name} is stored; couriers follow within a second"));
            Ok(())
        }
        Command::Delete { name } => {
            if !control.delete(name).await? {
                bail!("there is no endpoint `{name}` of run time");
            }
            say(&format!("endpoint {name} is deleted"));
            Ok(())
        }
        Command::Pause(target) => word(&control, &config, target, Word::Pause).await,
        Command::Resume(target) => word(&control, &config, target, Word::Resume).await,
        Command::Disable(target) => word(&control, &config, target, Word::Disable).await,
        Command::Enable(target) => word(&control, &config, target, Word::Enable).await,
        Command::Cancel(target) => word(&control, &config, target, Word::Cancel).await,
        Command::Test { name, agent, body, wait } => {
            let agent = agent.clone().map_or_else(|| tester(&config, name), Ok)?;
            let receipt = control.test(name, &agent, body.clone().into(), *wait).await?;
            let Some(receipt) = receipt else { bail!("no receipt within {}", humantime::format_duration(*wait)) };
            say(&visible(&receipt.to_string()));
            if receipt["outcome"] != "delivered" {
                bail!("the test was not delivered");
            }
            Ok(())
        }
    }
}

/// A visit that may say something.
pub(super) async fn visit(config: &Config) -> anyhow::Result<Control> {
    let names = Names::new(config.nats.prefix.clone());
    let visitor = Broker::visit(&config.nats, names, PATIENCE).await?;
    Control::new(visitor, config, Clock::default(), BY)
}

async fn word(control: &Control, config: &Config, target: &Target, word: Word) -> anyhow::Result<()> {
    let Some(token) = target.token() else { bail!(Usage::Other("name an endpoint or a callback".to_owned())) };
    if let Some(name) = &target.name {
        let runs =
            || async { anyhow::Ok(control.said().await?.iter().any(|said| said.key == format!("endpoint.{name}"))) };
        // What is said of nobody helps nobody; taking something back is always right.
        if !matches!(word, Word::Resume | Word::Enable) && !config.endpoints.contains_key(name) && !runs().await? {
            bail!("there is no endpoint `{name}`, in the configuration or at run time");
        }
    }
    let what = target.name.as_ref().map_or_else(|| format!("callbacks as {token}"), |name| format!("endpoint {name}"));
    let lifted = word == Word::Resume && control.lift(&token).await?;
    let changed = control.say(&token, word, &target.reason).await? || lifted;
    let now = match word {
        Word::Pause => "paused: deliveries wait",
        Word::Resume => "resumed: waiting deliveries are being sent",
        Word::Disable => "disabled: deliveries are dead",
        Word::Enable => "not disabled",
        Word::Cancel => "rid of everything published until now: each delivery gets its cancelled receipt",
    };
    say(&format!("{what} {} {now}", if changed { "is now" } else { "was already" }));
    Ok(())
}

async fn list(control: &Control, config: &Config, json: bool) -> anyhow::Result<()> {
    let said = control.said().await?;
    let of = |key: String| said.iter().find(|said| said.key == key).map(|said| &said.value);
    let mut rows: Vec<(String, &str, String)> = Vec::new();
    for (name, endpoint) in &config.endpoints {
        let mut url = endpoint.url.clone();
        url.set_query(None);
        rows.push((name.to_string(), "configuration", url.to_string()));
    }
    for found in &said {
        if let Some(name) = found.key.strip_prefix("endpoint.") {
            rows.push((name.to_owned(), "run time", found.value["url"].as_str().unwrap_or_default().to_owned()));
        }
    }
    // Callbacks have no name, only what is said about them.
    let tokens = said.iter().filter_map(|said| said.key.split_once('.').map(|(_, token)| token));
    let tokens = tokens.map(|token| token.split('.').next().unwrap_or(token));
    let mut callbacks: Vec<&str> = tokens.filter(|token| token.starts_with("c_")).collect();
    callbacks.sort_unstable();
    callbacks.dedup();
    rows.extend(callbacks.into_iter().map(|token| (token.to_owned(), "callbacks", String::new())));
    for (name, from, url) in rows {
        let token = if from == "callbacks" { name.clone() } else { format!("e_{name}") };
        let (state, breaker) = (of(format!("state.{token}")), of(format!("breaker.{token}")));
        let own = config.endpoints.iter().find(|(endpoint, _)| endpoint.as_str() == name);
        let own = own.and_then(|(_, endpoint)| endpoint.max_retry_after);
        let held = held(control, &said, &token, own.unwrap_or(config.egress.max_retry_after));
        if json {
            let held: Vec<_> =
                held.iter().map(|(agent, until)| serde_json::json!({"agent": agent, "until": until})).collect();
            let line = serde_json::json!({
                "name": name, "from": from, "url": url, "said": state, "breaker": breaker, "held": held,
            });
            say(&line.to_string());
            continue;
        }
        let word = state.and_then(|state| state["state"].as_str()).unwrap_or("open");
        let mut line = format!("{name:<24} {from:<14} {word:<9} {url}");
        if let Some(until) = breaker.and_then(|breaker| breaker["until"].as_str()) {
            line.push_str(&format!("  left alone until {until}"));
        }
        for (agent, until) in held {
            let whose = agent.map(|agent| format!(" for agent {agent}")).unwrap_or_default();
            line.push_str(&format!("  held{whose} until {until} (Retry-After)"));
        }
        if let Some(reason) = state.and_then(|state| state["reason"].as_str()).filter(|_| word != "open") {
            line.push_str(&format!("  ({reason})"));
        }
        say(&visible(&line));
    }
    Ok(())
}

/// Until when nothing begins to a destination because it asked for that, for callbacks by agent.
fn held<'a>(control: &Control, said: &'a [Said], token: &str, most: Duration) -> Vec<(Option<&'a str>, String)> {
    let of = |said: &'a Said| {
        let (_, agent) = control::held(&said.key).filter(|(of, _)| *of == token)?;
        Some((agent, control.held_until(&said.value, most)?))
    };
    said.iter().filter_map(of).collect()
}

/// An agent that may use the endpoint, as far as the configuration tells.
fn tester(config: &Config, name: &Name) -> anyhow::Result<Name> {
    let any = || "hookbridge".parse::<Name>().context("the name of the tester");
    let Some(endpoint) = config.endpoints.get(name) else { return any() };
    match endpoint.agents.first() {
        Some(AgentPattern::Named(agent)) => Ok(agent.clone()),
        Some(AgentPattern::Any) | None => any(),
    }
}

/// Reads a table, and every secret that it names.
fn table(file: &Path) -> anyhow::Result<Value> {
    let unreadable = || format!("{} cannot be read", file.display());
    let text = std::fs::read_to_string(file).with_context(unreadable)?;
    let mut table: Value = if file.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| Usage::Other(format!("{}: {error}", file.display())))?
    } else {
        Figment::from(Toml::string(&text))
            .extract()
            .map_err(|error| Usage::Other(format!("{}: {error}", file.display())))?
    };
    read_secrets(&mut table, false)?;
    Ok(table)
}

/// Puts the value of every secret where its name stands: couriers have other files and another environment.
fn read_secrets(value: &mut Value, is_secret: bool) -> anyhow::Result<()> {
    match value {
        Value::String(text) if is_secret => {
            let reference: SecretRef = text.parse().map_err(|error| Usage::Other(format!("{error}")))?;
            let secret = reference.resolve().map_err(|error| Usage::Other(error.to_string()))?;
            let plain = std::str::from_utf8(secret.expose())
                .map_err(|_| Usage::Other(format!("secret `{reference}` is not text")))?;
            *text = format!("plain:{plain}");
        }
        Value::Array(items) => items.iter_mut().try_for_each(|item| read_secrets(item, is_secret))?,
        Value::Object(members) => {
            for (key, member) in members {
                // Beside the secret of an entry stands when it ends.
                let names_secrets = SECRET_KEYS.contains(&key.as_str()) || (is_secret && key != "until");
                read_secrets(member, names_secrets)?;
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_secret_of_a_table_is_read_and_nothing_else_is_touched() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "value\n").unwrap();
        let reference = format!("file:{}", file.path().display());
        let mut table = serde_json::json!({
            "url": "https://a.example/", "subjects": ["outbox.>"],
            "secrets": [reference, {"secret": reference, "until": "2030-01-01T00:00:00Z"}],
            "auth": {"basic": {"user": "u", "password": reference}},
            "secret_headers": {"x-api-key": reference},
        });
        read_secrets(&mut table, false).unwrap();
        assert_eq!(
            table,
            serde_json::json!({
                "url": "https://a.example/", "subjects": ["outbox.>"],
                "secrets": ["plain:value", {"secret": "plain:value", "until": "2030-01-01T00:00:00Z"}],
                "auth": {"basic": {"user": "u", "password": "plain:value"}},
                "secret_headers": {"x-api-key": "plain:value"},
            })
        );
    }
}
