//! How an input of the `verify` target is written: like a request on the wire, so that a corpus can be read, and
//! the requests of `tests/it/data/providers.json` are inputs.
//!
//! ```text
//! PRESET SECONDS METHOD QUERY
//! Name: value
//!
//! body
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value;

/// Where all requests are sent to.
pub const ENDPOINT: &str = "https://hooks.example.com/in";

/// A request, and the source and the time that it is for.
pub struct Input<'a> {
    /// The name of a preset, or anything.
    pub preset: &'a str,
    pub now: SystemTime,
    pub method: Method,
    pub query: Option<&'a str>,
    pub headers: HeaderMap,
    pub body: &'a [u8],
}

impl<'a> Input<'a> {
    /// Makes the best of any bytes. What could not arrive, such as a header with a line end, is left out.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (first, mut rest) = line(bytes);
        let mut words = std::str::from_utf8(first).ok()?.splitn(4, ' ');
        let preset = words.next()?;
        let seconds: u32 = words.next()?.parse().ok()?;
        let method = words.next()?.parse().ok()?;
        let query = words.next().filter(|query| query.bytes().all(|byte| byte.is_ascii_graphic()));
        let mut headers = HeaderMap::new();
        loop {
            let (header, after) = line(rest);
            rest = after;
            let Some(colon) = header.iter().position(|byte| *byte == b':') else { break };
            let (name, value) = (&header[..colon], header[colon + 1..].trim_ascii());
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        let now = UNIX_EPOCH + Duration::from_secs(seconds.into());
        Some(Self { preset, now, method, query, headers, body: rest })
    }
}

/// The bytes up to a line end, and those behind it.
pub fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

/// The requests of the project's own tests.
pub struct Vectors(Vec<Value>);

impl Vectors {
    pub fn read() -> Self {
        let text = include_str!("../../tests/it/data/providers.json");
        Self(serde_json::from_str(text).expect("the project's tests read the same file"))
    }

    /// The secrets of each provider, as an operator pastes them.
    pub fn secrets(&self) -> BTreeMap<String, Vec<String>> {
        let mut all = BTreeMap::<String, Vec<String>>::new();
        for vector in self.0.iter().filter(|vector| vector["expect"] == "accept") {
            let of_provider = all.entry(preset(vector)).or_default();
            for secret in vector["secrets"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !of_provider.iter().any(|known| known == secret) {
                    of_provider.push(secret.to_owned());
                }
            }
        }
        all
    }

    /// The documents at addresses that requests name.
    pub fn documents(&self) -> BTreeMap<String, String> {
        let named = self.0.iter().filter_map(|vector| vector["certs"].as_object()).flatten();
        named.filter_map(|(url, text)| Some((url.clone(), text.as_str()?.to_owned()))).collect()
    }

    /// Every request as an input, with a name for its file.
    pub fn inputs(&self) -> Vec<(String, Vec<u8>)> {
        self.0.iter().filter_map(input).collect()
    }
}

/// The preset of a vector: of the variant, if there is one.
fn preset(vector: &Value) -> String {
    let provider = vector["provider"].as_str().unwrap_or_default();
    let variant = vector["variant"].as_str().map(|variant| format!("{provider}-{variant}"));
    let known = |name: &String| hookbridge::signature::preset::find(name).is_some();
    variant.filter(known).unwrap_or_else(|| provider.to_owned())
}

fn input(vector: &Value) -> Option<(String, Vec<u8>)> {
    let request = vector.get("request").unwrap_or(vector);
    let query = request["url"].as_str()?.split_once('?').map_or(String::new(), |(_, query)| format!(" {query}"));
    let preset = preset(vector);
    let mut text = format!("{preset} {} {}{query}\n", vector["now_unix"], request["method"].as_str()?);
    for (name, values) in request["headers"].as_object()? {
        for value in values.as_array().map_or(std::slice::from_ref(values), Vec::as_slice) {
            text.push_str(&format!("{name}: {}\n", value.as_str()?));
        }
    }
    let body = BASE64.decode(request["body_base64"].as_str().unwrap_or_default().as_bytes()).ok()?;
    let bytes = [text.as_bytes(), b"\n", &body].concat();
    Some((format!("{preset}-{}", vector["name"].as_str()?), bytes))
}
