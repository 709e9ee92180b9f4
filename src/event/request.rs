//! A webhook request as verification, naming and handshakes look at it: values, no I/O.

use std::borrow::Cow;
use std::sync::OnceLock;

use http::{HeaderMap, Method};

/// The most fields of a form that are read; honest senders have a few dozen.
const MAX_FIELDS: usize = 1_000;

/// What arrived, and the public address that it was sent to.
#[derive(Debug)]
pub struct Request<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The public URL as the sender knows it, without a query. Empty where nobody said it.
    pub endpoint: &'a str,
    /// The query without its question mark.
    pub query: Option<&'a str>,
    /// The request's headers.
    pub headers: &'a HeaderMap,
    /// The raw body.
    pub body: &'a [u8],
    form: OnceLock<Option<Fields>>,
}

/// The fields of a form in their order.
type Fields = Vec<(String, String)>;

impl<'a> Request<'a> {
    /// Looks at a request. Forms are read only when something asks for them.
    pub fn new(
        method: &'a Method,
        endpoint: &'a str,
        query: Option<&'a str>,
        headers: &'a HeaderMap,
        body: &'a [u8],
    ) -> Self {
        Self { method, endpoint, query, headers, body, form: OnceLock::new() }
    }

    /// The public URL with its query.
    pub(crate) fn url(&self) -> Cow<'a, str> {
        match self.query {
            Some(query) => format!("{}?{query}", self.endpoint).into(),
            None => self.endpoint.into(),
        }
    }

    /// The fields of a form body. `None` when there are more than anybody honest sends.
    pub(crate) fn form(&self) -> Option<&[(String, String)]> {
        self.form.get_or_init(|| fields(self.body)).as_deref()
    }

    /// The parameters of the query, percent-decoded. As many as headers can hold.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)> {
        url::form_urlencoded::parse(self.query.unwrap_or_default().as_bytes())
    }
}

fn fields(body: &[u8]) -> Option<Fields> {
    let fields = url::form_urlencoded::parse(body).into_owned().take(MAX_FIELDS + 1);
    let fields: Fields = fields.collect();
    (fields.len() <= MAX_FIELDS).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_with_more_fields_than_anybody_sends_is_none() {
        let headers = HeaderMap::new();
        let form = |fields: usize| "a=1&".repeat(fields);
        let read = |body: &str| {
            let request = Request::new(&Method::POST, "", None, &headers, body.as_bytes());
            request.form().map(<[_]>::len)
        };
        assert_eq!(read(&form(MAX_FIELDS)), Some(MAX_FIELDS));
        assert_eq!(read(&form(10_000)), None);
        assert_eq!(read(""), Some(0));
    }
}
