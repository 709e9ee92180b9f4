//! What an endpoint's requests carry: headers, authentication, payload, and what is kept of the answer.

use http::{HeaderName, HeaderValue};
use url::Url;

use super::{Findings, check_secret};
use crate::config::{Authorization, Basic, ClientCredentials, Endpoint};
use crate::secret::{KeyRing, SecretRef};

/// Headers that Hookbridge writes itself, or that frame the request.
const OWN_HEADERS: [&str; 8] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "user-agent",
];

/// Headers of an answer that are meant for nobody but a browser or a proxy, and may hold a secret.
const NEVER_CAPTURED: [&str; 6] =
    ["set-cookie", "set-cookie2", "authorization", "proxy-authorization", "www-authenticate", "proxy-authenticate"];

pub(super) fn endpoint(table: &str, endpoint: &Endpoint, allow_http: bool, findings: &mut Findings) {
    headers(table, endpoint, findings);
    if let Some(auth) = &endpoint.auth {
        authorization(&format!("{table}.auth"), auth, allow_http, findings);
    }
    if endpoint.max_body.is_some_and(|max| max.as_u64() == 0) {
        findings.add(format!("{table}.max_body"), "a limit of 0 sends nothing; leave it out for no limit");
    }
    for name in &endpoint.capture_headers {
        let reason = match name.parse::<HeaderName>() {
            Err(_) => "is not a header name",
            Ok(name) if NEVER_CAPTURED.contains(&name.as_str()) => "may hold a secret and is never captured",
            Ok(_) => continue,
        };
        findings.add(format!("{table}.capture_headers"), format!("`{name}` {reason}"));
    }
}

fn headers(table: &str, endpoint: &Endpoint, findings: &mut Findings) {
    let plain = endpoint.headers.iter().map(|(name, value)| (format!("{table}.headers.{name}"), name, Some(value)));
    let secret = endpoint.secret_headers.keys().map(|name| (format!("{table}.secret_headers.{name}"), name, None));
    for (key, name, value) in plain.chain(secret) {
        match name.parse::<HeaderName>() {
            Err(_) => findings.add(key, "is not a header name"),
            Ok(parsed) if OWN_HEADERS.contains(&parsed.as_str()) => findings.add(key, "is set by Hookbridge itself"),
            Ok(_) if value.is_some_and(|value| HeaderValue::from_str(value).is_err()) => {
                findings.add(key, "has a value that a header cannot carry")
            }
            Ok(parsed) if parsed == "authorization" && endpoint.auth.is_some() => {
                findings.add(key, "is set by `auth`; use one of the two")
            }
            Ok(_) => {}
        }
    }
    let is_plain = |name: &str| endpoint.headers.keys().any(|plain| plain.eq_ignore_ascii_case(name));
    for (name, secret) in &endpoint.secret_headers {
        let key = format!("{table}.secret_headers.{name}");
        if is_plain(name) {
            findings.add(&key, "stands in `headers` as well; use one of the two");
        }
        check_header_secret(&key, secret, findings);
    }
}

fn authorization(table: &str, auth: &Authorization, allow_http: bool, findings: &mut Findings) {
    if auth.kinds() != 1 {
        findings.add(table, "needs exactly one of `basic`, `bearer` and `oauth2`");
    }
    if let Some(Basic { user, password }) = &auth.basic {
        // RFC 7617, section 2: the first colon ends the name, and controls cannot be carried at all.
        if user.is_empty() || user.contains(|c: char| c == ':' || c.is_control()) {
            findings.add(format!("{table}.basic.user"), "must be a name without a colon or control characters");
        }
        check_secret(&format!("{table}.basic.password"), password, findings);
    }
    if let Some(token) = &auth.bearer {
        check_header_secret(&format!("{table}.bearer"), token, findings);
    }
    if let Some(client) = &auth.oauth2 {
        client_credentials(&format!("{table}.oauth2"), client, allow_http, findings);
    }
}

fn client_credentials(table: &str, client: &ClientCredentials, allow_http: bool, findings: &mut Findings) {
    let url: &Url = &client.token_url;
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        "http" => {
            findings.add(format!("{table}.token_url"), "is http, which would show the client's secret: use https")
        }
        other => findings.add(format!("{table}.token_url"), format!("scheme `{other}` is not https")),
    }
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        findings.add(format!("{table}.token_url"), "must have neither a user name nor a fragment");
    }
    if client.client_id.is_empty() {
        findings.add(format!("{table}.client_id"), "is empty");
    }
    check_secret(&format!("{table}.client_secret"), &client.client_secret, findings);
    // RFC 6749, section 3.3: a blank separates two scopes.
    for scope in client.scopes.iter().filter(|scope| scope.is_empty() || !scope.bytes().all(|b| b.is_ascii_graphic())) {
        findings.add(format!("{table}.scopes"), format!("`{}` is not a scope: one word each", scope.escape_debug()));
    }
    for name in client.parameters.keys().filter(|name| ClientCredentials::OWN_PARAMETERS.contains(&name.as_str())) {
        findings.add(format!("{table}.parameters.{name}"), "is set by Hookbridge itself");
    }
}

/// A secret that a header has to carry as it is.
fn check_header_secret(key: &str, secret: &SecretRef, findings: &mut Findings) {
    let carried = KeyRing::load(vec![secret.clone()], |secret| match HeaderValue::from_bytes(secret.expose()) {
        Ok(_) => Ok(()),
        Err(_) => Err("has bytes that a header cannot carry".to_owned()),
    });
    if let Err(error) = carried {
        findings.add(key, error.to_string());
    }
}
