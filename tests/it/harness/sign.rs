//! Signatures, made independently of the code under test.

use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The source that most tests send to, and its headers.
pub(crate) const SOURCES: &str = r#"
[sources.github]
preset = "github"
secrets = ["plain:s3cret"]
"#;

/// HMAC-SHA256.
pub(crate) fn hmac(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(bytes);
    mac.finalize().into_bytes().to_vec()
}

/// Bare hexadecimal over the body.
pub(crate) fn bare(secret: &str, body: &[u8]) -> String {
    HEXLOWER.encode(&hmac(secret.as_bytes(), body))
}

/// `sha256=<hex>` over the body.
pub(crate) fn hex(secret: &str, body: &[u8]) -> String {
    format!("sha256={}", bare(secret, body))
}

/// `v1,<base64>` over id, timestamp and body.
pub(crate) fn v1(key: &[u8], id: &str, timestamp: &str, body: &[u8]) -> String {
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    format!("v1,{}", BASE64.encode(&hmac(key, &signed)))
}

/// The headers of a genuine GitHub webhook for [`SOURCES`].
pub(crate) fn github<'a>(signature: &'a str, event: &'a str, id: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("content-type", "application/json"),
        ("x-github-event", event),
        ("x-github-delivery", id),
        ("x-hub-signature-256", signature),
    ]
}
