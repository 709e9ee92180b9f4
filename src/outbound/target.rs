//! How a URL is written: as the target of a request, and in what people read.

use http::Uri;
use url::Url;

/// The request target, without fragment and userinfo. `None` when the URL is none.
pub(crate) fn request_target(url: &Url) -> Option<Uri> {
    let mut plain = url.clone();
    plain.set_fragment(None);
    // Both fail only for URLs without a host, which http and https URLs have.
    plain.set_username("").ok()?;
    plain.set_password(None).ok()?;
    plain.as_str().parse().ok()
}

/// A URL without query and userinfo, which may hold secrets.
pub(crate) fn public_url(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return url.scheme().to_owned();
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_target_keeps_the_query_and_a_public_url_does_not() {
        let url = "https://user:pass@example.com/a?token=b#c".parse().unwrap();
        assert_eq!(request_target(&url).unwrap(), "https://example.com/a?token=b");
        assert_eq!(public_url(&url), "https://example.com/a");
    }
}
