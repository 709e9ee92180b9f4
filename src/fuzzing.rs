//! What reads strangers' bytes, each behind one plain function: for the fuzz targets in `fuzz/`, which are built
//! with `--cfg fuzzing`, and for the tests here. No other build has this module.
//!
//! The functions check themselves what must be so for any input, and return what a target can hold against
//! another implementation. None does I/O or reads a clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Value, from_value, json};

use crate::egress;
use crate::event::json::{MAX_ITEMS, Pointer};
use crate::event::place::Scope;
use crate::event::subject::MAX_TYPE_BYTES;
use crate::event::{Headers, Place, Request, id, trace};
use crate::secret::Secret;
use crate::signature::{
    Credential, Document, Inquiry, Key, Known, Profile, Scheme, Template, Values, Verify, Ways, preset,
};

/// The most secrets that a source is given; every one of them costs a verification.
const MAX_SECRETS: usize = 3;

/// What stands at the addresses that requests and presets name.
#[derive(Default)]
pub struct Documents(BTreeMap<String, Arc<Document>>);

impl Documents {
    /// The documents at these addresses; what is none is left out.
    pub fn new<'a>(all: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let read = |(url, bytes): (&str, &[u8])| Some((url.to_owned(), Arc::new(Document::parse(bytes).ok()?)));
        Self(all.into_iter().filter_map(read).collect())
    }
}

/// A source with a preset, as a gateway has it.
pub struct Source {
    profile: Profile,
    credentials: Vec<Credential>,
    secrets: Vec<Secret>,
}

impl Source {
    /// A source of this preset with the first few of the secrets that have a form it takes.
    pub fn new<'a>(preset: &str, secrets: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let profile = preset::find(preset)?.profile;
        let (mut credentials, mut taken) = (Vec::new(), Vec::new());
        for secret in secrets.into_iter().map(Secret::new) {
            if let Some(Verify::Ways(ways)) = &profile.verify
                && let Ok(credential) = ways.credential(&secret)
            {
                credentials.push(credential);
                taken.push(secret);
            }
            if credentials.len() == MAX_SECRETS {
                break;
            }
        }
        Some(Self { profile, credentials, secrets: taken })
    }

    /// Does with a request what a gateway does before it stores anything: shakes hands, verifies, names, takes
    /// apart. Naming and taking apart are done even if the request proves nothing. Says whether it is genuine.
    pub fn receive(&self, request: &Request<'_>, now: SystemTime, documents: &Documents) -> bool {
        let known = |secret| Known { verify_token: self.secrets.first(), secret };
        let of_document = |url: &str| documents.0.get(url).cloned();
        let genuine = match &self.profile.verify {
            Some(Verify::Ways(ways)) => {
                let inquiry = Inquiry { request, id: self.profile.id.as_ref(), now, documents: &of_document };
                ways.verify(&self.credentials, &inquiry).map(|genuine| Some(genuine.secret))
            }
            _ => Ok(None),
        };
        if let Err(rejection) = &genuine {
            assert!(rejection.to_string().len() < 2048 + request.body.len(), "{}", rejection.as_str());
        }
        for rule in self.profile.handshakes().iter().filter(|rule| rule.fits(request)) {
            let secret = self.secrets.get(genuine.as_ref().ok().copied().flatten().unwrap_or(0));
            if let Ok(reply) = rule.answer(request, known(secret)) {
                let most = 4096 + 6 * (request.body.len() + request.url().len());
                assert!(reply.body.len() < most, "the answer is far longer than the request");
                assert!(!self.secrets.iter().any(|secret| reply.body.as_bytes() == secret.expose()));
            }
        }
        let scope = Scope::of(request);
        self.name(scope);
        if let Some(batch) = &self.profile.batch
            && let Place::Json(pointer) = &batch.items
            && let Some(Ok(items)) = pointer.items(request.body)
        {
            for item in items {
                let scope = Scope { item: Some(item), ..scope };
                let _ = batch.event_type.as_ref().map(|naming| naming.event_type(scope));
                let _ = batch.id.as_ref().map(|naming| naming.id(scope));
            }
        }
        genuine.is_ok_and(|secret| secret.is_some())
    }

    fn name(&self, scope: Scope<'_>) {
        let event_type = self.profile.event_type.as_ref().and_then(|naming| naming.event_type(scope));
        assert!(event_type.is_none_or(|name| !name.is_empty() && name.len() <= MAX_TYPE_BYTES));
        if let Some(Ok(Some(text))) = self.profile.id.as_ref().map(|naming| naming.id(scope)) {
            let id = id::provider(&text);
            assert!(id.is_none_or(|id| id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic())), "{text:?}");
        }
    }
}

/// What a JSON pointer finds in a body.
#[derive(Debug)]
pub struct InJson {
    /// The text of a scalar.
    pub scalar: Option<String>,
    /// Whether anything but null is there.
    pub exists: bool,
    /// The items of a list as they are written; `None` also for more than are taken apart.
    pub items: Option<Vec<Vec<u8>>>,
    /// The first member that holds an object or a list.
    pub first_key: Option<String>,
}

/// Looks a pointer up in every way. `None` if the text is not a pointer.
pub fn json(pointer: &str, body: &[u8]) -> Option<InJson> {
    let parsed = Pointer::parse(pointer)?;
    assert_eq!(Pointer::parse(&parsed.to_string()).as_ref(), Some(&parsed));
    let items = parsed.items(body).and_then(Result::ok);
    assert!(items.as_ref().is_none_or(|items| items.len() <= MAX_ITEMS));
    Some(InJson {
        scalar: parsed.scalar(body),
        exists: parsed.exists(body),
        items: items.map(|items| items.into_iter().map(<[u8]>::to_vec).collect()),
        first_key: parsed.first_key(body),
    })
}

/// Finds what is at a place of any kind, written as in a configuration.
pub fn place(place: &str, request: &Request<'_>, entries: &[&str]) -> Option<String> {
    let parsed: Place = place.parse().ok()?;
    let scope = Scope { entries, item: Some(request.body), ..Scope::of(request) };
    parsed.find(scope).ok().flatten().map(Into::into)
}

/// A form, and how Twilio signs it: every field's name and value, sorted, once.
pub struct Form {
    /// Names and values, in their order.
    pub fields: Vec<(String, String)>,
    /// What is signed.
    pub signed: String,
}

/// Reads a body as a form of this content type. `None` if it is none, or has more fields than anybody sends.
pub fn form(content_type: &'static str, body: &[u8]) -> Option<Form> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    let request = Request::new(&Method::POST, "https://hooks.example.com/in", None, &headers, body);
    let fields = request.form()?.to_vec();
    let template: Template = "{form}".parse().ok()?;
    Some(Form { fields, signed: template.text(Values::of(Scope::of(&request))).ok()? })
}

/// The secret that the schemes below share with whoever tries them.
const SECRET: &str = "correct horse battery staple";

/// Verifies a request whose timestamp is signed as it should be. `unit` is `s`, `ms` or `rfc3339`. Says whether the
/// time is within five minutes of now.
pub fn timestamp(unit: &str, text: &str, now: SystemTime) -> bool {
    let (Some(scheme), Ok(value)) = (
        scheme(json!({
            "algorithm": "hmac-sha256", "header": "x-signature", "signed": "{timestamp}", "timestamp": "header:x-time",
            "unit": unit, "tolerance": "5m", "unsigned_body": true,
        })),
        HeaderValue::from_str(text),
    ) else {
        return false;
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-time", value);
    let code = code(&scheme, text.as_bytes()).map(|code| data_encoding::HEXLOWER.encode(&code));
    headers.extend(code.and_then(|code| code.parse().ok()).map(|code| (SIGNATURE, code)));
    verifies(scheme, SECRET, &headers, &Documents::default(), now)
}

/// Verifies a token as it is, by each algorithm, under `secret` and the keys of a set at [`KEY_SET`].
pub fn token(text: &[u8], secrets: &[&str], documents: &Documents, now: SystemTime) -> bool {
    let mut headers = HeaderMap::new();
    headers.extend(HeaderValue::from_bytes(text).ok().map(|value| (SIGNATURE, value)));
    let mut genuine = false;
    for algorithm in ["HS256", "RS256", "ES256"] {
        for secret in secrets {
            genuine |=
                token_scheme(algorithm, None).is_some_and(|scheme| verifies(scheme, secret, &headers, documents, now));
        }
        genuine |= token_scheme(algorithm, Some(KEY_SET))
            .is_some_and(|scheme| verifies(scheme, SECRET, &headers, documents, now));
    }
    genuine
}

/// The address of the key set that [`token`] looks at.
pub const KEY_SET: &str = "https://keys.example.com/jwks";

/// Verifies a token with any header and claims that is signed as it should be. What is accepted says of itself what
/// it must: the algorithm, the issuer, one audience of several, a time that is not long ago.
pub fn signed_token(header: &[u8], claims: &[u8], now: SystemTime) -> bool {
    let Some(scheme) = token_scheme("HS256", None) else { return false };
    let signed = format!("{}.{}", BASE64URL_NOPAD.encode(header), BASE64URL_NOPAD.encode(claims));
    let Some(code) = code(&scheme, signed.as_bytes()) else { return false };
    let mut headers = HeaderMap::new();
    let token = format!("{signed}.{}", BASE64URL_NOPAD.encode(&code));
    headers.extend(HeaderValue::from_str(&token).ok().map(|value| (SIGNATURE, value)));
    let genuine = verifies(scheme, SECRET, &headers, &Documents::default(), now);
    // A header may hold, in members that are not looked at, what another reader does not take for JSON.
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes);
    if let (true, Ok(header), Ok(claims)) = (genuine, read(header), read(claims)) {
        assert!(header["alg"] == "HS256" && header["crit"].is_null(), "{header}");
        assert!(claims["iss"] == "sender", "{claims}");
        assert!(claims["aud"] == "us" || claims["aud"].as_array().is_some_and(|all| all.contains(&json!("us"))));
        let (now, issued) = (crate::clock::unix_seconds(now) as f64, claims["iat"].as_f64());
        assert!(issued.is_some_and(|issued| (now - issued).abs() < 302.0), "{claims}");
        assert!(claims["exp"].is_null() || claims["exp"].as_f64().is_some_and(|end| end > now - 302.0), "{claims}");
        assert!(claims["nbf"].is_null() || claims["nbf"].as_f64().is_some_and(|start| start < now + 302.0), "{claims}");
    }
    genuine
}

/// Reads a document that was fetched, and checks nonsense with the keys in it. Says whether there is one.
pub fn document(bytes: &[u8]) -> bool {
    let Ok(document) = Document::parse(bytes) else { return false };
    let genuine = Documents(BTreeMap::from([(KEY_SET.to_owned(), Arc::new(document))]));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_760_000_000);
    let mut headers = HeaderMap::new();
    headers.insert(SIGNATURE, HeaderValue::from_static("AAAA"));
    headers.insert("x-certificate", HeaderValue::from_static(KEY_SET));
    for algorithm in ["rsa-sha1", "rsa-sha256", "ecdsa-p256", "ed25519"] {
        let scheme = scheme(json!({
            "algorithm": algorithm, "header": "x-signature", "encoding": "base64",
            "certificate": { "at": "header:x-certificate", "urls": ["https://keys.example.com/"] },
        }));
        assert!(!scheme.is_some_and(|scheme| verifies(scheme, SECRET, &headers, &genuine, now)), "{algorithm}");
    }
    for (algorithm, header) in [("RS256", "eyJhbGciOiJSUzI1NiJ9"), ("ES256", "eyJhbGciOiJFUzI1NiJ9")] {
        headers.insert(
            SIGNATURE,
            HeaderValue::from_str(&format!("{header}.e30.AAAA")).unwrap_or(HeaderValue::from_static("")),
        );
        let scheme = token_scheme(algorithm, Some(KEY_SET));
        assert!(!scheme.is_some_and(|scheme| verifies(scheme, SECRET, &headers, &genuine, now)), "{algorithm}");
    }
    true
}

/// Understands a message of an agent; the id that it gets, or that a refusal gets.
pub fn outbox(subject: &str, headers: &[(&str, &str)], payload: &[u8]) -> String {
    let mut all = Headers::default();
    for (name, value) in headers {
        all.push((*name).to_owned(), *value);
    }
    egress::understood_id(subject, all, payload)
}

/// Reads a trace context, and hands on what is good of it.
pub fn trace(traceparent: &str, tracestate: &str) -> Option<(String, Option<String>)> {
    let context = trace::Context::parse(Some(traceparent), Some(tracestate))?;
    let mut headers = Headers::default();
    context.write(&mut headers);
    assert_eq!(trace::Context::read(&headers).as_ref(), Some(&context));
    assert!(headers.iter().all(|(_, value)| HeaderValue::from_str(value).is_ok()));
    Some((context.traceparent, context.tracestate))
}

const SIGNATURE: http::HeaderName = http::HeaderName::from_static("x-signature");

fn scheme(table: Value) -> Option<Scheme> {
    from_value(table).ok()
}

fn token_scheme(algorithm: &str, key_set: Option<&str>) -> Option<Scheme> {
    scheme(json!({
        "algorithm": "jwt", "header": "x-signature", "jwks": key_set, "tolerance": "5m",
        "jwt": { "algorithms": [algorithm], "issuer": "sender", "audience": "us", "max_age": "5m" },
    }))
}

fn code(scheme: &Scheme, text: &[u8]) -> Option<Vec<u8>> {
    match scheme.key(&Secret::new(SECRET)) {
        Ok(Key::Mac(key)) => Some(key.mac(&[text])),
        _ => None,
    }
}

fn verifies(scheme: Scheme, secret: &str, headers: &HeaderMap, documents: &Documents, now: SystemTime) -> bool {
    let ways = Ways::new(vec![scheme]);
    let Ok(credential) = ways.credential(&Secret::new(secret)) else { return false };
    let request = Request::new(&Method::POST, "https://hooks.example.com/in", None, headers, b"{}");
    let of_document = |url: &str| documents.0.get(url).cloned();
    ways.verify(&[credential], &Inquiry { request: &request, id: None, now, documents: &of_document }).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;
    use std::time::UNIX_EPOCH;

    use http::HeaderName;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    /// A source of every preset, and the headers, parameters and members of JSON that its file mentions.
    struct Known {
        source: Source,
        names: Vec<String>,
    }

    static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| preset::names().filter_map(known).collect());

    /// Secrets in each of the forms that presets take: texts, hexadecimal, base64, and public keys of each kind.
    const SECRETS: [&str; 6] = [
        "user:password",
        "aGVsbG8gd29ybGQh",
        "c3d7c48ab0ca492e1b182da0706a22fdcc702c30bba93970082380b7b508b24d",
        r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
        r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqsKJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB"}"#,
        "secret",
    ];

    fn known(name: &'static str) -> Option<Known> {
        let file = preset::text(name)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let words = file.split(|c| !is_name(c)).filter(|word| word.len() > 1).map(str::to_owned);
        let mut names: Vec<String> = words.collect();
        names.sort();
        names.dedup();
        Some(Known { source: Source::new(name, SECRETS)?, names })
    }

    /// A text as parsers of headers, times, tokens and lists meet it, or anything.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ -~]{0,24}",
            "(sha256|sha1|v0|v1|v1a|t|Bearer|Basic)?[=, ]?[0-9a-zA-Z+/=_-]{0,88}",
            "t=[0-9]{0,21}(,v1=[0-9a-f]{0,66}){0,20}",
            "[A-Za-z0-9_-]{0,40}(\\.[A-Za-z0-9_-]{0,40}){0,3}",
            "https://(sns\\.us-east-1\\.amazonaws\\.com|api\\.paypal\\.com)/[a-z?#%.:@]{0,12}",
            "17[56][0-9]{7,10}|2025-1[0-9]-[0-9]{2}T08:53:20(\\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})",
            "\\PC{0,12}",
        ]
    }

    /// JSON with the names that the preset mentions, now and then cut off.
    fn json_body() -> impl Strategy<Value = Vec<Piece>> {
        vec(
            prop_oneof![
                select(vec!["{", "}", "[", "]", ",", ":", "null", "true", "-1", "1e400", "\"\\u0000\"", "\"\\ud800\""])
                    .prop_map(|mark| Piece::Mark(mark.to_owned())),
                any::<Index>().prop_map(Piece::Member),
                text().prop_map(|text| Piece::Mark(json!(text).to_string())),
            ],
            0..40,
        )
    }

    #[derive(Clone, Debug)]
    enum Piece {
        Mark(String),
        /// The name of a member, and its colon.
        Member(Index),
    }

    #[derive(Clone, Debug)]
    enum Body {
        Bytes(Vec<u8>),
        Json(Vec<Piece>),
        Form(Vec<(Index, String)>),
    }

    impl Body {
        fn write(&self, names: &[String]) -> Vec<u8> {
            match self {
                Self::Bytes(bytes) => bytes.clone(),
                Self::Json(pieces) => {
                    let piece = |piece: &Piece| match piece {
                        Piece::Mark(mark) => mark.clone(),
                        Piece::Member(index) => format!("{:?}:", index.get(names)),
                    };
                    format!("{{{}}}", pieces.iter().map(piece).collect::<String>()).into_bytes()
                }
                Self::Form(fields) => {
                    let field = |(index, value): &(Index, String)| format!("{}={value}", index.get(names));
                    fields.iter().map(field).collect::<Vec<_>>().join("&").into_bytes()
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(192) })]

        #[test]
        fn no_request_makes_a_gateway_panic(
            method in prop_oneof![Just("POST"), Just("GET"), Just("HEAD"), Just("PUT"), Just("X")],
            query in proptest::option::of(prop_oneof![
                "[!-~]{0,40}",
                "(([a-zA-Z_]{1,16}|hub\\.(mode|challenge|verify_token)|bodySHA256)=[0-9a-zA-Z%+]{0,64}&?){0,4}",
            ]),
            headers in vec((any::<Index>(), prop_oneof![text().prop_map(String::into_bytes), vec(any::<u8>(), 0..32)]), 0..12),
            body in prop_oneof![
                vec(any::<u8>(), 0..200).prop_map(Body::Bytes),
                json_body().prop_map(Body::Json),
                vec((any::<Index>(), "[ -~]{0,16}"), 0..8).prop_map(Body::Form),
            ],
            seconds in prop_oneof![Just(1_760_000_000_u64), 0..u64::from(u32::MAX)],
        ) {
            let method = method.parse().unwrap();
            // One request is another one to each preset: indexes stand for names that its file mentions.
            for Known { source, names } in KNOWN.iter() {
                let mut map = HeaderMap::new();
                for (name, value) in &headers {
                    if let (Ok(name), Ok(value)) = (name.get(names).parse::<HeaderName>(), HeaderValue::from_bytes(value)) {
                        map.append(name, value);
                    }
                }
                let body = body.write(names);
                let request = Request::new(&method, "https://hooks.example.com/in", query.as_deref(), &map, &body);
                source.receive(&request, UNIX_EPOCH + Duration::from_secs(seconds), &Documents::default());
            }
        }
    }
}
