//! URL prefixes: how an operator or a preset says which of the URLs that others name may be used.
//!
//! A prefix is compared label by label and segment by segment, never as text: `https://example.com` as text
//! would also begin `https://example.com.evil.test/`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use url::Url;

/// What a URL may begin with.
///
/// Scheme and port must be equal, every label of the host equal or `*` in the pattern, or of the form of an AWS
/// region where the pattern has `{region}` (a bucket of S3 can have almost any other name), and the path must begin
/// with the pattern's path at a segment's border: `/hooks` allows `/hooks/a` and not `/hooksters`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct UrlPrefix(Option<Prefix>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Prefix {
    scheme: String,
    labels: Vec<String>,
    port: Option<u16>,
    path: String,
}

/// Stands in for `*` while the pattern goes through the URL parser, which refuses the character in a host.
const STAR_LABEL: &str = "hookbridge-any-label";
/// Stands in for `{region}`.
const REGION_LABEL: &str = "hookbridge-region-label";

impl UrlPrefix {
    /// Whether the pattern is `"*"`, any URL.
    pub fn is_any(&self) -> bool {
        self.0.is_none()
    }

    /// Whether the URL begins with this prefix.
    pub fn allows(&self, url: &Url) -> bool {
        let Some(prefix) = &self.0 else { return true };
        let host = url.host_str().unwrap_or_default();
        let labels: Vec<&str> = host.split('.').collect();
        let same_host = labels.len() == prefix.labels.len()
            && prefix.labels.iter().zip(&labels).all(|(wanted, label)| match wanted.as_str() {
                STAR_LABEL => true,
                REGION_LABEL => is_region(label),
                wanted => wanted == *label,
            });
        let rest = url.path().strip_prefix(prefix.path.as_str());
        let at_border = rest.is_some_and(|rest| prefix.path.ends_with('/') || rest.is_empty() || rest.starts_with('/'));
        url.scheme() == prefix.scheme && same_host && url.port_or_known_default() == prefix.port && at_border
    }
}

/// Two letters, words and a number, joined by dashes: `us-east-1`, `us-gov-west-1`.
fn is_region(label: &str) -> bool {
    let parts: Vec<&str> = label.split('-').collect();
    let [area, words @ .., number] = &parts[..] else { return false };
    let letters = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
    area.len() == 2
        && letters(area)
        && !words.is_empty()
        && words.iter().all(letters)
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

impl FromStr for UrlPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self(None));
        }
        let wrong = |reason: &str| Err(format!("`{text}`: {reason}"));
        let Ok(url) = text.replace('*', STAR_LABEL).replace("{region}", REGION_LABEL).parse::<Url>() else {
            return wrong("is not a URL; write for example https://*.example.com/");
        };
        let labels: Vec<String> = url.host_str().unwrap_or_default().split('.').map(str::to_owned).collect();
        if !matches!(url.scheme(), "http" | "https") {
            return wrong("only http and https URLs can be called");
        }
        let partly = |label: &str, whole: &str| label.contains(whole) && label != whole;
        if labels.iter().any(|label| partly(label, STAR_LABEL) || partly(label, REGION_LABEL))
            || [STAR_LABEL, REGION_LABEL].iter().any(|label| url.path().contains(label))
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

impl fmt::Display for UrlPrefix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(prefix) = &self.0 else { return formatter.write_str("*") };
        let host = prefix.labels.join(".").replace(STAR_LABEL, "*").replace(REGION_LABEL, "{region}");
        let default = if prefix.scheme == "https" { 443 } else { 80 };
        match prefix.port.filter(|port| *port != default) {
            Some(port) => write!(formatter, "{}://{host}:{port}{}", prefix.scheme, prefix.path),
            None => write!(formatter, "{}://{host}{}", prefix.scheme, prefix.path),
        }
    }
}

impl TryFrom<String> for UrlPrefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, url: &str) -> bool {
        pattern.parse::<UrlPrefix>().unwrap().allows(&url.parse().unwrap())
    }

    #[test]
    fn a_region_is_no_bucket() {
        let sns = "https://sns.{region}.amazonaws.com/";
        for host in ["us-east-1", "ap-southeast-2", "us-gov-west-1"] {
            assert!(allows(sns, &format!("https://sns.{host}.amazonaws.com/a.pem")), "{host}");
        }
        for host in ["s3", "s3-ap-southeast-2", "evil", "us-east-1.evil", "us--1", "us-1", "us-east-1a"] {
            assert!(!allows(sns, &format!("https://sns.{host}.amazonaws.com/a.pem")), "{host}");
        }
        assert_eq!(sns.parse::<UrlPrefix>().unwrap().to_string(), sns);
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
            assert!(bad.parse::<UrlPrefix>().is_err(), "{bad}");
        }
    }
}
