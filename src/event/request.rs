//! A webhook request as verification, naming and handshakes look at it: values, no I/O.

use std::borrow::Cow;
use std::convert::Infallible;
use std::future::ready;
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};

use super::json::Pointer;

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
    /// What was looked up in the JSON body: the configuration asks for the same few values again and again, for
    /// every item of a list even.
    scalars: Mutex<Vec<(Pointer, Option<String>)>>,
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
        Self { method, endpoint, query, headers, body, form: OnceLock::new(), scalars: Mutex::default() }
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
        let read = || match self.boundary() {
            Some(boundary) => parts(self.body, boundary),
            None => fields(self.body),
        };
        self.form.get_or_init(read).as_deref()
    }

    /// The text of the scalar there in the JSON body.
    pub(crate) fn scalar(&self, pointer: &Pointer) -> Option<String> {
        let mut scalars = self.scalars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = scalars.iter().find(|(known, _)| known == pointer) {
            return found.clone();
        }
        let found = pointer.scalar(self.body);
        scalars.push((pointer.clone(), found.clone()));
        found
    }

    /// What separates the parts, where the body is `multipart/form-data`.
    fn boundary(&self) -> Option<String> {
        multer::parse_boundary(self.headers.get(CONTENT_TYPE)?.to_str().ok()?).ok()
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

/// The text parts of a `multipart/form-data` body. `None` when it is not one, or has too many.
///
/// The reader is made for bodies that arrive bit by bit; this one is all there, so it never waits.
fn parts(body: &[u8], boundary: String) -> Option<Fields> {
    let body = Bytes::copy_from_slice(body);
    let mut reader = multer::Multipart::new(stream::once(ready(Ok::<_, Infallible>(body))), boundary);
    let mut fields = Fields::new();
    while let Some(part) = reader.next_field().now_or_never()?.ok()? {
        if fields.len() == MAX_FIELDS {
            return None;
        }
        // A part without a name would be in no field, and so not in what is signed.
        let name = part.name()?.to_owned();
        let value = part.bytes().now_or_never()?.ok()?;
        fields.push((name, String::from_utf8_lossy(&value).into_owned()));
    }
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_multipart_form_has_fields_as_well() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, "multipart/form-data; boundary=XX".parse().unwrap());
        let read = |body: &str| {
            let request = Request::new(&Method::POST, "", None, &headers, body.as_bytes());
            request.form().map(<[_]>::to_vec)
        };
        let whole = "--XX\r\ncontent-disposition: form-data; name=\"json\"\r\n\r\n{\"a\":1}\r\n--XX--\r\n";
        assert_eq!(read(whole), Some(vec![("json".to_owned(), "{\"a\":1}".to_owned())]));
        assert_eq!(read(&whole[..whole.len() - 10]), None);
        assert_eq!(read("a=1"), None);
    }

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
