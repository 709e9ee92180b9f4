//! What is wrong with clients, tasks and replies.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::{CARRIED, Findings, all_ended, check_secret};
use crate::config::{Client, Config, signing};
use crate::event::UrlPrefix;

/// The longest time until a deadline; the server takes no date that far away.
const MAX_DEADLINE: Duration = Duration::from_secs(366 * 24 * 3600);
/// The shortest time that the state of a task is kept.
const LEAST_RETENTION: Duration = Duration::from_secs(60);

pub(super) fn tasks(config: &Config, findings: &mut Findings) {
    for (name, client) in &config.clients {
        self::client(config, &format!("clients.{name}"), client, findings);
    }
    shared_tokens(config, findings);
    let tasks = &config.tasks;
    let tried: Duration = config.egress.retry.waits().iter().sum();
    if tasks.retention < LEAST_RETENTION {
        findings.add("tasks.retention", "is shorter than a minute: nobody could ask what became of a task");
    } else if !config.clients.is_empty() && tasks.retention < tried {
        let tried = humantime::format_duration(tried);
        findings.add("tasks.retention", format!("is shorter than egress.retry ({tried}): a callback needs the state"));
    }
    if tasks.deadline.is_some_and(|deadline| deadline.is_zero() || deadline > MAX_DEADLINE) {
        findings.add("tasks.deadline", "must be more than nothing and at most a year");
    }
    if tasks.max_body.is_some_and(|max| max > config.gateway.max_in_flight) {
        findings.add("tasks.max_body", "is larger than gateway.max_in_flight: it could never be taken");
    }
    if tasks.max_streams == 0 {
        findings.add("tasks.max_streams", "must be at least 1");
    }
    config.replies.keys.iter().for_each(|key| check_secret("replies.keys", key, findings));
    if !config.replies.keys.is_empty() && config.gateway.public_url.is_none() {
        findings.add("replies.keys", "needs `gateway.public_url`: replies are sent there");
    }
}

fn client(config: &Config, table: &str, client: &Client, findings: &mut Findings) {
    if client.token.is_some() != client.secrets.is_empty() {
        findings.add(table, "needs either `token` or `secrets`");
    }
    client.token.iter().for_each(|token| check_secret(&format!("{table}.token"), token, findings));
    for (key, secrets) in [("secrets", &client.secrets), ("callback_secrets", &client.callback_secrets)] {
        secrets.iter().for_each(|secret| check_secret(&format!("{table}.{key}"), secret.reference(), findings));
        all_ended(&format!("{table}.{key}"), secrets, findings);
    }
    if client.agents.is_empty() {
        findings.add(format!("{table}.agents"), "is empty: the client could delegate to nobody");
    }
    // What is allowed for all was looked at where it stands.
    let (own, all) = (&client.callback_secrets, &config.callbacks);
    if own.is_empty() && client.callback_urls.is_empty() {
        return;
    }
    let secrets = if own.is_empty() { &all.secrets } else { own };
    for (_, reason) in signing::mistakes(&all.signatures, secrets, &CARRIED, SystemTime::now()) {
        findings.add(format!("{table}.callback_secrets"), reason);
    }
}

/// What works and is still worth a word.
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if !config.clients.is_empty() && config.agents.is_empty() {
        warnings.push("clients: no agent is configured, so there is nobody to delegate to".to_owned());
    }
    for (name, client) in &config.clients {
        if client.callback_urls.iter().any(UrlPrefix::is_any) {
            warnings.push(format!("clients.{name}.callback_urls: \"*\" lets it have any public address called back"));
        }
    }
    warnings
}

/// Who brings the token of two clients would be one of them by chance.
fn shared_tokens(config: &Config, findings: &mut Findings) {
    let mut seen = BTreeMap::<Vec<u8>, String>::new();
    for (name, client) in &config.clients {
        let Some(Ok(token)) = client.token.as_ref().map(|token| token.resolve()) else { continue };
        if let Some(other) = seen.insert(token.expose().to_vec(), name.to_string()) {
            findings.add(format!("clients.{name}.token"), format!("is that of client `{other}` too"));
        }
    }
}
