//! Text with names in braces: what a signature covers, what a handshake answers, what a type is made of.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::HeaderName;
use serde::Deserialize;

use super::Rejection;
use super::encoding::Encoding;
use super::mac::Hash;
use crate::event::Place;
use crate::event::json::Pointer;
use crate::event::place::Scope;

/// What HubSpot decodes in a URL before it signs it (developers.hubspot.com, "Validating requests").
const DECODED: [&str; 12] = ["3A", "2F", "3F", "40", "21", "24", "27", "28", "29", "2A", "2C", "3B"];

/// The most headers that a request may say are signed.
const MAX_LISTED: usize = 32;

/// A template, for example `{id}.{timestamp}.{body}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name { name: Name, optional: bool },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Body,
    BodySha256,
    BodyCrc32,
    Timestamp,
    Id,
    Url,
    UrlAnyPort,
    UrlDecoded,
    Endpoint,
    Path,
    Method,
    Form,
    Headers(HeaderName),
    Line(Pointer),
    Secret,
    Mac,
    At(Place),
}

/// The text is not a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A name in braces that nothing stands for.
    #[error("`{{{0}}}` is not known: use {{body}}, {{timestamp}}, {{id}}, {{url}} or a place such as {{header:NAME}}")]
    Unknown(String),
    /// An opening brace without its end.
    #[error("a `{{` is not closed")]
    Open,
}

/// What the names in a template stand for, beside what the request itself says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Values<'a> {
    pub(crate) scope: Scope<'a>,
    pub(crate) timestamp: Option<&'a str>,
    pub(crate) id: Option<&'a str>,
    pub(crate) secret: Option<&'a [u8]>,
    pub(crate) mac: Option<&'a str>,
    /// Which of the [`Template::variants`] of the URL is meant.
    pub(crate) variant: usize,
}

/// What a template needs of a request.
pub(super) enum Need<'a> {
    /// Something at a place.
    At(&'a Place),
    /// Something at a pointer into the body.
    Line(&'a Pointer),
    /// A header that lists others, and those.
    Headers(&'a HeaderName),
}

/// A name in a template, and what stands for it.
pub(super) struct Named<'a> {
    pub(super) name: String,
    pub(super) optional: bool,
    pub(super) part: Part,
    pub(super) value: Option<Cow<'a, [u8]>>,
}

/// What a name stands for, as far as it matters to whoever shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of the body.
    Body,
    /// A value in the body.
    OfBody,
    Secret,
    Other,
}

impl<'a> Values<'a> {
    /// Nothing but the request.
    pub(crate) fn of(scope: Scope<'a>) -> Self {
        Self { scope, timestamp: None, id: None, secret: None, mac: None, variant: 0 }
    }
}

impl Template {
    /// How many forms of the URL may have been signed.
    pub(crate) fn variants(&self) -> usize {
        if self.has(|name| *name == Name::UrlAnyPort) { 3 } else { 1 }
    }

    /// Whether it covers the timestamp.
    pub(crate) fn has_timestamp(&self) -> bool {
        self.has(|name| *name == Name::Timestamp)
    }

    /// Whether it covers the delivery id by its own name.
    pub(crate) fn has_id(&self) -> bool {
        self.has(|name| *name == Name::Id)
    }

    /// Whether it covers the secret, as plain hashes must.
    pub(crate) fn has_secret(&self) -> bool {
        self.has(|name| *name == Name::Secret)
    }

    /// Whether it needs the public URL.
    pub(crate) fn has_url(&self) -> bool {
        self.has(|name| matches!(name, Name::Url | Name::UrlAnyPort | Name::UrlDecoded | Name::Endpoint | Name::Path))
    }

    /// Whether it covers the whole body.
    pub(crate) fn covers_body(&self) -> bool {
        self.has(|name| {
            matches!(name, Name::Body | Name::BodySha256 | Name::BodyCrc32 | Name::Form | Name::At(Place::Body))
        })
    }

    /// Whether it covers what is at a place.
    pub(crate) fn covers(&self, place: &Place) -> bool {
        let whole_url =
            || self.has(|name| matches!(name, Name::Url | Name::UrlAnyPort | Name::UrlDecoded | Name::Path));
        let listed = || self.list().is_some() && matches!(place, Place::Header(_));
        self.has(|name| *name == Name::At(place.clone()))
            || listed()
            || (place.reads_body() && self.covers_body())
            || (matches!(place, Place::Query(_)) && whole_url())
    }

    /// The header that lists which others are covered.
    pub(crate) fn list(&self) -> Option<&HeaderName> {
        self.0.iter().find_map(|piece| match piece {
            Piece::Name { name: Name::Headers(list), .. } => Some(list),
            _ => None,
        })
    }

    /// The places in it.
    pub(crate) fn places(&self) -> impl Iterator<Item = &Place> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Name { name: Name::At(place), .. } => Some(place),
            _ => None,
        })
    }

    /// What a request must have so that the template can be filled; what may be missing is left out.
    pub(super) fn needs(&self) -> impl Iterator<Item = Need<'_>> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Name { name, optional: false } => match name {
                Name::At(place) => Some(Need::At(place)),
                Name::Line(pointer) => Some(Need::Line(pointer)),
                Name::Headers(list) => Some(Need::Headers(list)),
                _ => None,
            },
            _ => None,
        })
    }

    /// Whether it covers the fields of a form.
    pub(super) fn has_form(&self) -> bool {
        self.has(|name| *name == Name::Form)
    }

    /// The text before the first name.
    pub(super) fn beginning(&self) -> &str {
        match self.0.first() {
            Some(Piece::Text(text)) => text,
            _ => "",
        }
    }

    /// Each name in it, what stands for it, and what that is.
    pub(super) fn named<'a>(&'a self, values: Values<'a>) -> Vec<Named<'a>> {
        let named = |piece: &'a Piece| match piece {
            Piece::Text(_) => None,
            Piece::Name { name, optional } => {
                let part = match name {
                    Name::Body | Name::Form | Name::At(Place::Body) => Part::Body,
                    Name::Line(_) => Part::OfBody,
                    Name::At(place) if place.reads_body() => Part::OfBody,
                    Name::Secret => Part::Secret,
                    _ => Part::Other,
                };
                let value = name.find(values).ok().flatten();
                Some(Named { name: name.to_string(), optional: *optional, part, value })
            }
        };
        self.0.iter().filter_map(named).collect()
    }

    fn has(&self, wanted: impl Fn(&Name) -> bool) -> bool {
        self.0.iter().any(|piece| matches!(piece, Piece::Name { name, .. } if wanted(name)))
    }

    /// The bytes in pieces, so that the body is not copied.
    pub(crate) fn fill<'a>(&'a self, values: Values<'a>) -> Result<Vec<Cow<'a, [u8]>>, Rejection> {
        let piece = |(position, piece): (usize, &'a Piece)| match piece {
            Piece::Text(text) => Ok(Cow::Borrowed(text.as_bytes())),
            Piece::Name { name, optional } => match name.find(values)? {
                Some(found) if self.runs_into_next(position, name, &found) => {
                    Err(Rejection::Ambiguous(name.to_string()))
                }
                Some(found) => Ok(found),
                // What is there and cannot be used would reach agents unsigned.
                None if *optional && name.is_there(values.scope) => Err(Rejection::Ambiguous(name.to_string())),
                None if *optional => Ok(Cow::Borrowed(&b""[..])),
                None => Err(Rejection::Missing(name.to_string())),
            },
        };
        self.0.iter().enumerate().map(piece).collect()
    }

    /// Whether an id or a header holds the very text that separates it from what follows: then what is signed
    /// could be taken apart in another place, and a part of the body be passed off as the id.
    fn runs_into_next(&self, position: usize, name: &Name, found: &[u8]) -> bool {
        let Some(Piece::Text(separator)) = self.0.get(position + 1) else { return false };
        let separator = separator.as_bytes();
        matches!(name, Name::Id | Name::At(Place::Header(_)))
            && found.windows(separator.len()).any(|window| window == separator)
    }

    /// The text, for templates of text: what is not UTF-8 is replaced.
    pub(crate) fn text(&self, values: Values<'_>) -> Result<String, Rejection> {
        Ok(String::from_utf8_lossy(&self.fill(values)?.concat()).into_owned())
    }

    /// The text with every name optional, as types are written.
    pub(crate) fn lenient(&self, values: Values<'_>) -> String {
        let mut text = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(literal) => text.extend_from_slice(literal.as_bytes()),
                Piece::Name { name, .. } => {
                    text.extend_from_slice(&name.find(values).ok().flatten().unwrap_or_default());
                }
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Name {
    /// Whether something is in the body where the name looks, usable or not.
    fn is_there(&self, scope: Scope<'_>) -> bool {
        match self {
            Self::Line(pointer) => pointer.exists(scope.request.body),
            Self::At(place) => place.is_there(scope),
            _ => false,
        }
    }

    fn find<'a>(&self, values: Values<'a>) -> Result<Option<Cow<'a, [u8]>>, Rejection> {
        let request = values.scope.request;
        let text = |text: Cow<'a, str>| match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        let known = |url: Cow<'a, str>| if request.endpoint.is_empty() { None } else { Some(text(url)) };
        Ok(match self {
            Self::Body => Some(Cow::Borrowed(request.body)),
            Self::BodySha256 => Some(Encoding::Hex.encode(&Hash::Sha256.digest(&[request.body])).into_bytes().into()),
            Self::BodyCrc32 => Some(crc32fast::hash(request.body).to_string().into_bytes().into()),
            Self::Timestamp => values.timestamp.map(|timestamp| timestamp.as_bytes().into()),
            Self::Id => values.id.map(|id| id.as_bytes().into()),
            Self::Url => known(request.url()),
            Self::UrlAnyPort => known(with_port(&request.url(), values.variant).into()),
            Self::UrlDecoded => known(decoded(&request.url()).into()),
            Self::Endpoint => known(request.endpoint.into()),
            Self::Path => known(path_of(&request.url()).to_owned().into()),
            Self::Method => Some(request.method.as_str().as_bytes().into()),
            Self::Form => Some(sorted_form(values.scope)?.into()),
            Self::Headers(list) => signed_headers(values.scope, list)?.map(|lines| lines.into_bytes().into()),
            Self::Line(pointer) => {
                pointer.scalar(request.body).map(|value| format!("{}\n{value}\n", pointer.last()).into_bytes().into())
            }
            Self::Secret => values.secret.map(Cow::Borrowed),
            Self::Mac => values.mac.map(|mac| mac.as_bytes().into()),
            Self::At(place) => place.find(values.scope).map_err(|_| Rejection::Ambiguous(place.to_string()))?.map(text),
        })
    }
}

/// The URL as it is, without its port, or with the port of its scheme written out.
fn with_port(url: &str, variant: usize) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let bare = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let default = if scheme == "http" { 80 } else { 443 };
    match variant {
        0 => url.to_owned(),
        1 => format!("{scheme}://{bare}{path}"),
        _ => format!("{scheme}://{bare}:{default}{path}"),
    }
}

fn decoded(url: &str) -> String {
    let mut rest = url;
    let mut text = String::with_capacity(url.len());
    while let Some((before, after)) = rest.split_once('%') {
        text.push_str(before);
        let code = after.get(..2).filter(|code| DECODED.iter().any(|known| known.eq_ignore_ascii_case(code)));
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                rest = &after[2..];
            }
            None => {
                text.push('%');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}

fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find('/').map_or("/", |start| &rest[start..])
}

/// Every field's name and value, sorted, equal pairs once: how Twilio signs a form
/// (twilio.com/docs/usage/security).
fn sorted_form(scope: Scope<'_>) -> Result<Vec<u8>, Rejection> {
    let fields = scope.request.form().ok_or_else(|| Rejection::Ambiguous("form:".to_owned()))?;
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort();
    fields.dedup();
    let mut text = Vec::with_capacity(scope.request.body.len());
    for (name, value) in fields {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(value.as_bytes());
    }
    Ok(text)
}

/// `name:value` of the headers that a header lists, as the list spells them, joined by semicolons.
fn signed_headers(scope: Scope<'_>, list: &HeaderName) -> Result<Option<String>, Rejection> {
    let ambiguous = |name: &str| Rejection::Ambiguous(format!("header:{name}"));
    let named = Place::Header(list.clone()).find(scope).map_err(|_| ambiguous(list.as_str()))?;
    let Some(named) = named else { return Ok(None) };
    let mut lines = Vec::new();
    let names: Vec<&str> = named.split(',').map(str::trim).take(MAX_LISTED + 1).collect();
    // Each name copies a value, so a long list or one name again and again would be more than was sent.
    let again = |position: usize| names[..position].iter().any(|name| name.eq_ignore_ascii_case(names[position]));
    if names.len() > MAX_LISTED || (0..names.len()).any(again) {
        return Err(ambiguous(list.as_str()));
    }
    for name in names {
        let header = name.parse::<HeaderName>().map_err(|_| Rejection::Malformed {
            place: format!("header:{list}"),
            reason: "it lists what is no header name",
        })?;
        let value = Place::Header(header).find(scope).map_err(|_| ambiguous(name))?;
        let value = value.ok_or_else(|| Rejection::Missing(format!("header:{name}")))?;
        lines.push(format!("{}:{}", name.to_ascii_lowercase(), value.trim()));
    }
    Ok(Some(lines.join(";")))
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or(TemplateError::Open)?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let (bare, optional) = name.strip_suffix('?').map_or((name, false), |bare| (bare, true));
            pieces.push(Piece::Name { name: bare.parse()?, optional });
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }
}

impl FromStr for Name {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let unknown = || TemplateError::Unknown(text.to_owned());
        Ok(match text {
            "body" => Self::Body,
            "body:sha256" => Self::BodySha256,
            "body:crc32" => Self::BodyCrc32,
            "timestamp" => Self::Timestamp,
            "id" => Self::Id,
            "url" => Self::Url,
            "url:any-port" => Self::UrlAnyPort,
            "url:decoded" => Self::UrlDecoded,
            "endpoint" => Self::Endpoint,
            "path" => Self::Path,
            "method" => Self::Method,
            "form" => Self::Form,
            "secret" => Self::Secret,
            "mac" => Self::Mac,
            other => match other.split_once(':') {
                Some(("headers", name)) => Self::Headers(name.parse().map_err(|_| unknown())?),
                Some(("line", pointer)) => Self::Line(Pointer::parse(pointer).ok_or_else(unknown)?),
                _ => Self::At(other.parse().map_err(|_| unknown())?),
            },
        })
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        text.parse()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => formatter.write_str("body"),
            Self::BodySha256 => formatter.write_str("body:sha256"),
            Self::BodyCrc32 => formatter.write_str("body:crc32"),
            Self::Timestamp => formatter.write_str("timestamp"),
            Self::Id => formatter.write_str("id"),
            Self::Url => formatter.write_str("url"),
            Self::UrlAnyPort => formatter.write_str("url:any-port"),
            Self::UrlDecoded => formatter.write_str("url:decoded"),
            Self::Endpoint => formatter.write_str("endpoint"),
            Self::Path => formatter.write_str("path"),
            Self::Method => formatter.write_str("method"),
            Self::Form => formatter.write_str("form"),
            Self::Headers(name) => write!(formatter, "headers:{name}"),
            Self::Line(pointer) => write!(formatter, "line:{pointer}"),
            Self::Secret => formatter.write_str("secret"),
            Self::Mac => formatter.write_str("mac"),
            Self::At(place) => place.fmt(formatter),
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => formatter.write_str(text),
            Piece::Name { name, optional } => write!(formatter, "{{{name}{}}}", if *optional { "?" } else { "" }),
        })
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::event::Request;

    fn fill(template: &str, request: &Request<'_>) -> Result<String, Rejection> {
        let values = Values { timestamp: Some("17"), id: Some("i"), ..Values::of(Scope::of(request)) };
        template.parse::<Template>().unwrap().text(values)
    }

    fn request<'a>(headers: &'a HeaderMap, query: Option<&'a str>, body: &'a str) -> Request<'a> {
        Request::new(&Method::POST, "https://h.example/in", query, headers, body.as_bytes())
    }

    #[test]
    fn a_template_fills_with_what_the_request_says() {
        let mut headers = HeaderMap::new();
        headers.insert("x-a", "1".parse().unwrap());
        headers.insert("x-list", "X-A, x-b".parse().unwrap());
        headers.insert("x-b", "2".parse().unwrap());
        let form = request(&headers, Some("q=%2Fx%20"), "b=2&a=1&b=2");
        for (template, expected) in [
            ("v0:{timestamp}:{body}", "v0:17:b=2&a=1&b=2"),
            ("{method}|{url}", "POST|https://h.example/in?q=%2Fx%20"),
            ("{url:decoded}", "https://h.example/in?q=/x%20"),
            ("{path} {endpoint}", "/in?q=%2Fx%20 https://h.example/in"),
            ("{form}", "a1b2"),
            ("{header:x-a}{header:x-none?}.", "1."),
            ("{headers:x-list}", "x-a:1;x-b:2"),
            ("{body:crc32}", "2763858078"),
        ] {
            assert_eq!(fill(template, &form).as_deref(), Ok(expected), "{template}");
        }
        let json = request(&headers, None, r#"{"Message":"a\nb","n":1}"#);
        assert_eq!(fill("{line:/Message}{line:/Subject?}", &json).as_deref(), Ok("Message\na\nb\n"));
    }

    #[test]
    fn a_missing_value_is_named() {
        let headers = HeaderMap::new();
        let request = request(&headers, None, "x");
        assert_eq!(fill("{header:x-none}.{body}", &request), Err(Rejection::Missing("header:x-none".to_owned())));
    }

    #[test]
    fn an_optional_value_that_is_there_and_unusable_is_not_missing() {
        let headers = HeaderMap::new();
        for body in [r#"{"a":"x","a":"y"}"#, r#"{"a":{"b":1}}"#, r#"{"a":["x"]}"#] {
            let request = request(&headers, None, body);
            for (template, name) in [("{json:/a?}.", "json:/a"), ("{line:/a?}.", "line:/a")] {
                assert_eq!(fill(template, &request), Err(Rejection::Ambiguous(name.to_owned())), "{body}");
            }
        }
        let none = request(&headers, None, r#"{"a":null}"#);
        assert_eq!(fill("{json:/a?}{line:/a?}.", &none).as_deref(), Ok("."));
    }

    #[test]
    fn a_header_that_is_listed_twice_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("x-list", "x-a,X-A".parse().unwrap());
        headers.insert("x-a", "1".parse().unwrap());
        let request = request(&headers, None, "");
        assert_eq!(fill("{headers:x-list}", &request), Err(Rejection::Ambiguous("header:x-list".to_owned())));
    }

    #[test]
    fn a_url_is_tried_with_and_without_its_port() {
        let all = |url: &str| [0, 1, 2].map(|variant| with_port(url, variant));
        assert_eq!(all("https://h/x?y")[1..], ["https://h/x?y", "https://h:443/x?y"]);
        assert_eq!(all("https://h:1234/x")[1..], ["https://h/x", "https://h:443/x"]);
        assert_eq!(all("http://[::1]:8080/")[1..], ["http://[::1]/", "http://[::1]:80/"]);
    }

    #[test]
    fn a_template_prints_as_it_is_written_and_nonsense_is_refused() {
        for text in ["{id}.{timestamp}.{body}", "{line:/A}{json:/b?}x", "{url:any-port}{form}", "[{timestamp};{body}]"]
        {
            assert_eq!(text.parse::<Template>().unwrap().to_string(), text);
        }
        for bad in ["{bodi}", "{body", "{json:x}", "{headers:a b}"] {
            assert!(bad.parse::<Template>().is_err(), "{bad}");
        }
    }
}
