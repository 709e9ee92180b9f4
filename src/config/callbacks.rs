//! `[callbacks]`

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

use super::endpoints::{AgentPattern, SignatureForm, any_agent, default_signatures};
use crate::secret::SecretRef;

/// Destinations whose URL comes with a message or a task instead of from the configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Callbacks {
    /// URL prefixes that may be used at all, for example `https://*.example.com/hooks/`. A `*` stands for one
    /// label of the host; `"*"` alone allows any URL. Nothing is allowed unless it is listed.
    pub allow: Vec<AllowedUrl>,
    /// The agents that may use callbacks; `"*"` is every agent.
    pub agents: Vec<AgentPattern>,
    /// The secrets that sign; all of them do.
    pub secrets: Vec<SecretRef>,
    /// How callbacks are signed.
    pub signatures: Vec<SignatureForm>,
}

impl Default for Callbacks {
    fn default() -> Self {
        Self { allow: Vec::new(), agents: any_agent(), secrets: Vec::new(), signatures: default_signatures() }
    }
}

/// A URL prefix that callbacks may begin with.
///
/// Scheme and port must be equal, every label of the host equal or `*` in the pattern, and the path must begin
/// with the pattern's path at a segment's border: `/hooks` allows `/hooks/a` and not `/hooksters`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AllowedUrl(Option<Prefix>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Prefix {
    scheme: String,
    labels: Vec<String>,
    port: Option<u16>,
    path: String,
}

/// Stands in for `*` while the pattern goes through the URL parser, which refuses the character in a host.
const STAR_LABEL: &str = "hookbridge-any-label";

impl AllowedUrl {
    /// Whether the pattern is `"*"`, any URL.
    pub fn is_any(&self) -> bool {
        self.0.is_none()
    }

    /// Whether a callback may go to this URL, as far as this pattern is concerned.
    pub fn allows(&self, url: &Url) -> bool {
        let Some(prefix) = &self.0 else { return true };
        let host = url.host_str().unwrap_or_default();
        let labels: Vec<&str> = host.split('.').collect();
        let same_host = labels.len() == prefix.labels.len()
            && prefix.labels.iter().zip(&labels).all(|(wanted, label)| wanted == STAR_LABEL || wanted == label);
        let rest = url.path().strip_prefix(prefix.path.as_str());
        let at_border = rest.is_some_and(|rest| prefix.path.ends_with('/') || rest.is_empty() || rest.starts_with('/'));
        url.scheme() == prefix.scheme && same_host && url.port_or_known_default() == prefix.port && at_border
    }
}

impl FromStr for AllowedUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self(None));
        }
        let wrong = |reason: &str| Err(format!("`{text}`: {reason}"));
        let Ok(url) = text.replace('*', STAR_LABEL).parse::<Url>() else {
            return wrong("is not a URL; write for example https://*.example.com/");
        };
        let labels: Vec<String> = url.host_str().unwrap_or_default().split('.').map(str::to_owned).collect();
        if !matches!(url.scheme(), "http" | "https") {
            return wrong("only http and https URLs can be called");
        }
        if labels.iter().any(|label| label.contains(STAR_LABEL) && label != STAR_LABEL)
            || url.path().contains(STAR_LABEL)
        {
            return wrong("a `*` stands for one whole label of the host");
        }
        if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() {
            return wrong("a prefix has a scheme, a host and a path only");
        }
        let (scheme, port, path) = (url.scheme().to_owned(), url.port_or_known_default(), url.path().to_owned());
        Ok(Self(Some(Prefix { scheme, labels, port, path })))
    }
}

impl fmt::Display for AllowedUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(prefix) = &self.0 else { return formatter.write_str("*") };
        let host = prefix.labels.join(".").replace(STAR_LABEL, "*");
        let default = if prefix.scheme == "https" { 443 } else { 80 };
        match prefix.port.filter(|port| *port != default) {
            Some(port) => write!(formatter, "{}://{host}:{port}{}", prefix.scheme, prefix.path),
            None => write!(formatter, "{}://{host}{}", prefix.scheme, prefix.path),
        }
    }
}

impl TryFrom<String> for AllowedUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, url: &str) -> bool {
        pattern.parse::<AllowedUrl>().unwrap().allows(&url.parse().unwrap())
    }

    #[test]
    fn a_prefix_allows_what_begins_with_it() {
        assert!(allows("https://*.example.com/", "https://a.example.com/x?y=1"));
        assert!(allows("https://example.com/hooks", "https://example.com/hooks/a"));
        assert!(allows("http://127.0.0.1:9000/", "http://127.0.0.1:9000/cb"));
        assert!(allows("*", "https://anything.example/"));
    }

    #[test]
    fn nothing_else_is_allowed() {
        for (pattern, url) in [
            ("https://*.example.com/", "https://example.com/"),
            ("https://*.example.com/", "https://a.b.example.com/"),
            ("https://*.example.com/", "https://a.example.com.evil.test/"),
            ("https://*.example.com/", "http://a.example.com/"),
            ("https://example.com/", "https://example.com:8443/"),
            ("https://example.com/", "https://example.com@evil.test/"),
            ("https://example.com/hooks", "https://example.com/hooksters"),
            ("https://example.com/hooks/", "https://example.com/hooks/../admin"),
            ("https://example.com/hooks/", "https://example.com/hooks/%2e%2e/admin"),
        ] {
            assert!(!allows(pattern, url), "{pattern} allowed {url}");
        }
    }

    #[test]
    fn a_pattern_that_cannot_be_meant_is_refused() {
        for bad in [
            "example.com",
            "ftp://example.com/",
            "https://a*.example.com/",
            "https://example.com/*",
            "https://example.com/?a",
        ] {
            assert!(bad.parse::<AllowedUrl>().is_err(), "{bad}");
        }
    }
}
