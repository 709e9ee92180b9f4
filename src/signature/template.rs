//! What a signature covers: text with `{body}`, `{timestamp}` and `{id}` in it.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// The signed bytes as a template, for example `{id}.{timestamp}.{body}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Body,
    Timestamp,
    Id,
}

/// The text is not a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A name in braces that nothing stands for.
    #[error("`{{{0}}}` is not known: use {{body}}, {{timestamp}} and {{id}}")]
    Unknown(String),
    /// An opening brace without its end.
    #[error("a `{{` is not closed")]
    Open,
    /// A signature that does not cover the body proves nothing about it.
    #[error("the signed bytes must contain {{body}}")]
    NoBody,
}

/// What the names in a template stand for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Values<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) timestamp: Option<&'a str>,
    pub(crate) id: Option<&'a str>,
}

impl Template {
    /// Whether the signature covers a timestamp.
    pub(crate) fn has_timestamp(&self) -> bool {
        self.0.contains(&Piece::Timestamp)
    }

    /// Whether the signature covers the delivery id.
    pub(crate) fn has_id(&self) -> bool {
        self.0.contains(&Piece::Id)
    }

    /// The signed bytes in pieces, so that the body is not copied; `None` when a value is missing.
    pub(crate) fn fill<'a>(&'a self, values: Values<'a>) -> Option<Vec<&'a [u8]>> {
        let piece = |piece: &'a Piece| match piece {
            Piece::Text(text) => Some(text.as_bytes()),
            Piece::Body => Some(values.body),
            Piece::Timestamp => values.timestamp.map(str::as_bytes),
            Piece::Id => values.id.map(str::as_bytes),
        };
        self.0.iter().map(piece).collect()
    }
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
            pieces.push(match name {
                "body" => Piece::Body,
                "timestamp" => Piece::Timestamp,
                "id" => Piece::Id,
                other => return Err(TemplateError::Unknown(other.to_owned())),
            });
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        if pieces.contains(&Piece::Body) { Ok(Self(pieces)) } else { Err(TemplateError::NoBody) }
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        text.parse()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => formatter.write_str(text),
            Piece::Body => formatter.write_str("{body}"),
            Piece::Timestamp => formatter.write_str("{timestamp}"),
            Piece::Id => formatter.write_str("{id}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_fills_and_prints_as_written() {
        let template: Template = "v0:{timestamp}:{body}".parse().unwrap();
        let values = Values { body: b"x", timestamp: Some("17"), id: None };
        assert_eq!(template.fill(values).unwrap().concat(), b"v0:17:x");
        assert_eq!(template.to_string(), "v0:{timestamp}:{body}");
    }

    #[test]
    fn a_missing_value_fills_nothing() {
        let template: Template = "{id}.{body}".parse().unwrap();
        assert!(template.fill(Values { body: b"x", ..Values::default() }).is_none());
    }

    #[test]
    fn a_template_that_proves_nothing_is_refused() {
        for bad in ["", "{timestamp}", "{bodi}", "{body"] {
            assert!(bad.parse::<Template>().is_err(), "{bad}");
        }
    }
}
