//! What Hookbridge can sign, Hookbridge can verify, and nothing else passes for it: in every way of every preset
//! that has a shared secret or an ed25519 key.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use proptest::collection::{hash_set, vec};
use proptest::prelude::*;
use proptest::sample::Index;
use ring::signature::{Ed25519KeyPair, KeyPair};
use url::Url;

use super::requests;
use crate::event::place::Scope;
use crate::event::{Place, Request};
use crate::secret::Secret;
use crate::signature::outgoing::{Outgoing, Unsigned};
use crate::signature::preset_files::FILES;
use crate::signature::signing_form::SigningForm;
use crate::signature::{
    Algorithm, Encoding, Genuine, Inquiry, KeyForm, Profile, Rejection, Scheme, Verify, Ways, preset,
};

const FORM: &str = "application/x-www-form-urlencoded";
const ENDPOINT: &str = "https://crm.example.com/hooks/a";

/// Each preset that a form can be made of, made once.
type Forms = Vec<(&'static str, Profile, SigningForm, [[Secret; 2]; 2])>;
static FORMS: OnceLock<Forms> = OnceLock::new();

/// A request as it leaves, and what its receiver knows.
struct Sent {
    url: Url,
    headers: HeaderMap,
    body: Vec<u8>,
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_760_000_000)
}

/// The headers that every delivery carries.
fn carried() -> Vec<HeaderName> {
    ["content-type", "user-agent", "webhook-id", "webhook-timestamp"].map(HeaderName::from_static).to_vec()
}

fn send(form: &SigningForm, secrets: &[&Secret], content_type: &str, body: &[u8]) -> Result<Sent, Unsigned> {
    send_as("id-1", form, secrets, content_type, body)
}

fn send_as(
    id: &str,
    form: &SigningForm,
    secrets: &[&Secret],
    content_type: &str,
    body: &[u8],
) -> Result<Sent, Unsigned> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap());
    headers.insert("webhook-id", HeaderValue::from_str(id).unwrap());
    headers.insert("webhook-timestamp", HeaderValue::from(1_760_000_000));
    let url: Url = format!("{ENDPOINT}?a=b%20c").parse().unwrap();
    let mut outgoing = Outgoing {
        id,
        event_type: Some("invoice.paid"),
        now: now(),
        body,
        url: Cow::Borrowed(&url),
        headers: &mut headers,
    };
    let credentials: Vec<_> = secrets.iter().map(|secret| form.credential(secret).unwrap()).collect();
    form.sign(&credentials, &mut outgoing)?;
    let url = outgoing.url.into_owned();
    Ok(Sent { url, headers, body: body.to_vec() })
}

fn verify(profile: &Profile, secret: &Secret, sent: &Sent, now: SystemTime) -> Result<Genuine, Rejection> {
    let Some(Verify::Ways(ways)) = &profile.verify else { panic!("nothing is verified") };
    let credentials = [ways.credential(secret).unwrap()];
    see(sent, |request| {
        let inquiry = Inquiry { request, id: profile.id.as_ref(), now, documents: &|_| None };
        ways.verify(&credentials, &inquiry)
    })
}

fn see<T>(sent: &Sent, look: impl FnOnce(&Request<'_>) -> T) -> T {
    look(&Request::new(&Method::POST, ENDPOINT, sent.url.query(), &sent.headers, &sent.body))
}

/// A key pair: what signs, and what the receiver has.
fn pair(seed: u8) -> [Secret; 2] {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let public = BASE64.encode(pair.public_key().as_ref());
    [Secret::new(format!("whsk_{}", BASE64.encode(&[seed; 32]))), Secret::new(format!("whpk_{public}"))]
}

/// Two secrets that the way can use: each as the sender has it, and as the receiver does.
fn secrets(profile: &Profile, way: &Scheme) -> [[Secret; 2]; 2] {
    const SHARED: [[&str; 2]; 5] = [
        ["a plain secret", "another plain secret"],
        ["whsec_c2VjcmV0LW9uZQ==", "whsec_c2VjcmV0LXR3bw=="],
        ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"],
        ["c2VjcmV0LW9uZQ==", "c2VjcmV0LXR3bw=="],
        ["user:password", "user:passw0rd"],
    ];
    if way.algorithm == Algorithm::Ed25519 {
        return [pair(1), pair(2)];
    }
    let Some(Verify::Ways(ways)) = &profile.verify else { panic!("nothing is verified") };
    let usable = |texts: &&[&str; 2]| {
        let secret = Secret::new(texts[0]);
        way.takes(&secret) && way.key(&secret).is_ok() && ways.credential(&secret).is_ok()
    };
    SHARED.iter().find(usable).unwrap().map(|text| [Secret::new(text), Secret::new(text)])
}

/// Every way of every preset, alone.
fn ways() -> impl Iterator<Item = (String, Profile, Profile, Scheme)> {
    FILES.iter().flat_map(|(name, _)| {
        let profile = preset::find(name).unwrap().profile;
        let schemes: Vec<Scheme> = profile.schemes().cloned().collect();
        schemes.into_iter().enumerate().map(move |(way, scheme)| {
            let verify = Some(Verify::Ways(Ways::new(vec![scheme.clone()])));
            (format!("{name} {}", way + 1), profile.clone(), Profile { verify, ..profile.clone() }, scheme)
        })
    })
}

#[test]
fn whatever_can_be_signed_verifies_and_nothing_else_does() {
    let mut count = 0;
    for (name, profile, alone, way) in ways() {
        let form = SigningForm::new(&alone);
        if form.validate(&carried()).is_err() {
            continue;
        }
        let [[secret, theirs], [other, other_theirs]] = secrets(&profile, &way);
        let needs_form = way.signed.has_form() || format!("{:?}", way.when).contains(FORM);
        let (content_type, body) = match needs_form {
            true => (FORM, &b"From=%2B4930&Body=hi"[..]),
            false => ("application/json", &br#"{"a": 1}"#[..]),
        };
        let sent = send(&form, &[&secret], content_type, body).unwrap_or_else(|why| panic!("{name}: {why}"));

        let genuine = verify(&profile, &theirs, &sent, now());
        assert_eq!(genuine, Ok(Genuine { secret: 0 }), "{name}: {} {:?}", sent.url, sent.headers);
        assert_eq!(sent.body, body, "{name}");
        assert!(verify(&profile, &other_theirs, &sent, now()).is_err(), "{name} takes any secret");
        if way.timestamp.is_some() || way.algorithm == Algorithm::Jwt {
            let late = verify(&profile, &theirs, &sent, now() + way.tolerance + Duration::from_secs(305));
            assert!(matches!(late, Err(Rejection::TooOld { .. })), "{name}: {late:?}");
        }
        let covers = way.signed.covers_body() && way.algorithm.is_code();
        if covers || way.body_hash.is_some() || way.jwt.as_ref().is_some_and(|jwt| jwt.body_claim.is_some()) {
            let changed = Sent { body: [body, b"0"].concat(), url: sent.url.clone(), headers: sent.headers.clone() };
            let refused = verify(&profile, &theirs, &changed, now());
            assert!(refused.is_err(), "{name}: the body is not covered");
        } else {
            assert!(way.unsigned_body || !way.algorithm.is_code(), "{name}");
        }
        // A second secret signs beside the first where there is a place for it.
        let credentials = [&secret, &other].map(|secret| form.credential(secret).unwrap());
        if form.has_room(&credentials) {
            let sent = send(&form, &[&other, &secret], content_type, body).unwrap();
            assert!(verify(&profile, &theirs, &sent, now()).is_ok(), "{name}: {:?}", sent.headers);
            assert!(verify(&profile, &other_theirs, &sent, now()).is_ok(), "{name}: {:?}", sent.headers);
        } else {
            assert!(matches!(send(&form, &[&other, &secret], content_type, body), Err(Unsigned::NoRoom)), "{name}");
        }
        count += 1;
    }
    assert!(count > 110, "{count}");
}

#[test]
fn what_cannot_be_signed_is_known_by_name_and_reason() {
    const INSIDE: &str = "signature: stands inside the body, and the body is sent as it is";
    let refused: Vec<(String, String)> = ways()
        .filter(|(_, _, _, way)| way.is_shared() || way.algorithm == Algorithm::Ed25519)
        .filter_map(|(name, _, alone, _)| {
            Some((name, SigningForm::new(&alone).validate(&carried()).err()?.to_string()))
        })
        .collect();
    let refused: Vec<_> = refused.iter().map(|(name, reason)| (name.as_str(), reason.as_str())).collect();
    let expected = [
        ("adyen 1", INSIDE),
        ("aircall 1", INSIDE),
        ("braintree 1", INSIDE),
        ("dropbox-sign 1", INSIDE),
        ("feishu-lark 1", INSIDE),
        ("grafana 2", "when: asks for something in the body, and the body is sent as it is"),
        ("linear 1", "timestamp: stands inside the body, and the body is sent as it is"),
        ("livechat 1", INSIDE),
        ("mailgun 1", INSIDE),
        ("mailgun 2", INSIDE),
        ("msgraph 1", INSIDE),
    ];
    assert_eq!(refused, expected);
    let manual = include_str!("../../../docs/verification.md");
    for name in expected.iter().filter_map(|(name, _)| name.split(' ').next()).filter(|name| *name != "grafana") {
        assert!(manual.contains(&format!("`{name}`")), "the manual does not say that {name} cannot sign");
    }
}

#[test]
fn a_way_that_needs_the_providers_own_key_is_refused() {
    for (name, _, alone, way) in ways().filter(|(_, _, _, way)| !way.is_shared()) {
        let refused = SigningForm::new(&alone).validate(&carried());
        match way.algorithm {
            Algorithm::Ed25519 => assert_eq!(refused, Ok(()), "{name}"),
            _ => assert_eq!(refused.unwrap_err().key, "algorithm", "{name}"),
        }
    }
}

/// Each preset that a form can be made of, whole, with a pair of secrets for its first way that signs.
fn forms() -> Forms {
    let form = |name: &'static str| {
        let profile = preset::find(name).unwrap().profile;
        let form = SigningForm::new(&profile);
        let way = form.ways().next()?.clone();
        form.validate(&carried()).ok()?;
        let secrets = secrets(&profile, &way);
        Some((name, profile, form, secrets))
    };
    FILES.iter().filter_map(|(name, _)| form(name)).collect()
}

#[test]
fn a_whole_preset_signs_what_its_own_source_takes_and_names_it() {
    let mut named = 0;
    for (name, profile, form, [[secret, theirs], _]) in forms() {
        for (content_type, body) in [("application/json", &br#"{"a":1}"#[..]), (FORM, &b"a=1&b=%20"[..])] {
            let sent = match send(&form, &[&secret], content_type, body) {
                Ok(sent) => sent,
                // These sign the fields of a form, and have no way for another body.
                Err(Unsigned::NoWay) if ["mandrill", "plivo"].contains(&name) => continue,
                Err(why) => panic!("{name}: {why}"),
            };
            assert_eq!(
                verify(&profile, &theirs, &sent, now()),
                Ok(Genuine { secret: 0 }),
                "{name}: {:?}",
                sent.headers
            );
            let in_header = |place: &&Place| matches!(place, Place::Header(_));
            if let Some(id) = profile.id.as_ref().filter(|id| id.places().iter().any(in_header)) {
                let found = see(&sent, |request| id.id(Scope::of(request)).unwrap().map(Cow::into_owned));
                assert!(found.as_ref().is_some_and(|found| found.ends_with("id-1")), "{name}: {found:?}");
                named += 1;
            }
        }
    }
    assert!(named > 50, "{named}");
}

#[test]
fn shared_secrets_and_ed25519_keys_stand_in_one_list_and_all_sign() {
    let profile = preset::find("standard-webhooks").unwrap().profile;
    let form = SigningForm::new(&profile);
    let (shared, [private, public], [other, other_public]) = (Secret::new("whsec_c2VjcmV0"), pair(1), pair(2));

    let sent = send(&form, &[&private, &shared, &other], "application/json", b"{}").unwrap();

    let value = sent.headers["webhook-signature"].to_str().unwrap();
    let versions: Vec<&str> = value.split(' ').map(|entry| entry.split_once(',').unwrap().0).collect();
    assert_eq!(versions, ["v1", "v1a", "v1a"], "{value}");
    for key in [&shared, &public, &other_public] {
        assert!(verify(&profile, key, &sent, now()).is_ok());
    }
    assert!(verify(&profile, &pair(3)[1], &sent, now()).is_err());
}

#[test]
fn an_ed25519_key_signs_as_another_implementation_does() {
    // RFC 8032, section 7.1, test 1 is the key; OpenSSL 3.0 made the signature over `id-1.1760000000.{}`.
    let form = SigningForm::new(&preset::find("standard-webhooks").unwrap().profile);
    let seed =
        data_encoding::HEXLOWER.decode(b"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
    let secret = Secret::new(format!("whsk_{}", BASE64.encode(&seed)));

    let sent = send(&form, &[&secret], "application/json", b"{}").unwrap();

    assert_eq!(
        sent.headers["webhook-signature"],
        "v1a,XNL9bgAR+vuRbIqvj37Rk5EuAWrNwm1Q4YQrnRgPORweWJtIvuMekYt6n5fG1AScdluEkVoI+S6c2rh+DzpuAA=="
    );
}

/// What an outgoing request has to start from: everything but the signature, which stands in one header.
fn unsigned(genuine: &requests::Genuine, way: &Scheme) -> Option<(HeaderMap, HeaderName, String)> {
    let mut headers = genuine.sent.headers.clone();
    let name = way.header()?.clone();
    let value = headers.remove(&name)?.to_str().ok()?.to_owned();
    Some((headers, name, value))
}

#[test]
fn what_is_signed_is_what_the_vectors_of_the_providers_have() {
    let mut same = BTreeSet::new();
    for genuine in requests::genuine() {
        let profile = preset::find(&genuine.preset).unwrap().profile;
        let form = SigningForm::new(&profile);
        let way = form.ways().find(|way| way.header().is_some_and(|name| genuine.sent.headers.contains_key(name)));
        let Some((mut headers, name, expected)) = way.and_then(|way| unsigned(&genuine, way)) else { continue };
        let credentials: Vec<_> = genuine.secrets.iter().filter_map(|secret| form.credential(secret).ok()).collect();
        let request = genuine.sent.request();
        let id = profile.id.as_ref().and_then(|id| id.id(Scope::of(&request)).ok().flatten());
        let query = genuine.sent.query.as_ref().map_or(String::new(), |query| format!("?{query}"));
        let Ok(url) = format!("{}{query}", genuine.sent.endpoint).parse::<Url>() else { continue };
        let mut outgoing = Outgoing {
            id: id.as_deref().unwrap_or("id-1"),
            event_type: None,
            now: genuine.judge.now,
            body: &genuine.sent.body,
            url: Cow::Borrowed(&url),
            headers: &mut headers,
        };
        let signed = form.sign(&credentials, &mut outgoing).is_ok();
        let ours = headers.get(&name).and_then(|value| value.to_str().ok());
        if signed && ours == Some(&expected) {
            same.insert(genuine.preset);
        }
    }
    // The others say the time more finely than to the second, write blanks that mean nothing, or have keys of
    // their own.
    for name in ["github", "paddle", "shopify", "slack", "square", "standard-webhooks", "stripe", "svix", "twilio"] {
        assert!(same.contains(name), "{name} is not signed as its provider signs: {same:?}");
    }
    assert!(same.len() > 60, "{same:?}");
}

#[test]
fn a_public_key_never_signs_and_a_private_one_is_no_shared_secret() {
    let [private, public] = pair(1);
    for (name, _, form, _) in forms() {
        let reason = form.credential(&public).err().unwrap();
        assert!(reason.contains("public key"), "{name}: {reason}");
        let has_way = form.ways().any(|way| way.algorithm == Algorithm::Ed25519);
        let signs = form.credential(&private).unwrap().iter().any(Option::is_some);
        assert_eq!(signs, has_way, "{name}");
    }
}

#[test]
fn nothing_is_signed_without_a_key() {
    let form = SigningForm::new(&preset::find("standard-webhooks").unwrap().profile);
    assert!(matches!(send(&form, &[], "application/json", b"{}"), Err(Unsigned::NoKey)));
}

/// One of the headers or parameters that were added, with one bit changed; `None` where that is no header, or the
/// same to every reader.
fn flipped(sent: &Sent, way: &Scheme, at: Index, bit: u8) -> Option<Sent> {
    let flip = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let same = bytes.eq_ignore_ascii_case(text.as_bytes());
        let case = matches!(way.encoding, Encoding::HexAny) || way.algorithm == Algorithm::Basic;
        String::from_utf8(bytes).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()) && !(same && case))
    };
    let mut changed = Sent { url: sent.url.clone(), headers: sent.headers.clone(), body: sent.body.clone() };
    match way.signature.iter().find(|place| see(sent, |request| place.is_there(Scope::of(request)))) {
        Some(Place::Query(name)) => {
            let pairs: Vec<_> = sent.url.query_pairs().into_owned().collect();
            let pairs: Option<Vec<_>> = pairs
                .into_iter()
                .map(|(key, value)| Some((key.clone(), if key == *name { flip(&value)? } else { value })))
                .collect();
            changed.url.query_pairs_mut().clear().extend_pairs(pairs?);
        }
        Some(Place::Header(name)) => {
            let value = flip(sent.headers[name].to_str().unwrap())?;
            changed.headers.insert(name, value.parse().ok()?);
        }
        _ => return None,
    }
    Some(changed)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn each_of_a_set_of_secrets_signs_and_one_that_is_not_in_it_does_not(
        id in "[A-Za-z0-9_-]{1,64}",
        body in vec(any::<u8>(), 0..300),
        texts in hash_set("[ -~]{1,40}", 2..6),
        seeds in hash_set(any::<u8>(), 1..4),
        prefix in any::<bool>(),
    ) {
        let profile = preset::find("standard-webhooks").unwrap().profile;
        let form = SigningForm::new(&profile);
        let shared = |text: &String| match prefix {
            true => Secret::new(format!("whsec_{}", BASE64.encode(text.as_bytes()))),
            false => Secret::new(format!("text {text}")),
        };
        let mut keys: Vec<[Secret; 2]> = texts.iter().map(shared).map(|secret| [secret.clone(), secret]).collect();
        let [_, stranger] = keys.pop().unwrap();
        keys.extend(seeds.iter().map(|seed| pair(*seed)));

        let ours: Vec<&Secret> = keys.iter().map(|[ours, _]| ours).collect();
        let sent = send_as(&id, &form, &ours, "application/json", &body).unwrap();

        for [_, theirs] in &keys {
            prop_assert!(verify(&profile, theirs, &sent, now()).is_ok(), "{:?}", sent.headers);
        }
        prop_assert!(verify(&profile, &stranger, &sent, now()).is_err());
    }

    #[test]
    fn in_every_form_what_is_signed_verifies_and_one_changed_bit_does_not(
        form in any::<Index>(),
        id in "[A-Za-z0-9_-]{1,64}",
        body in vec(any::<u8>(), 0..300),
        at in any::<Index>(),
        bit in 0..7_u8,
        secret in "[ -~]{1,40}",
    ) {
        let forms = FORMS.get_or_init(forms);
        let (name, profile, form, secrets) = &forms[form.index(forms.len())];
        let own = Secret::new(secret);
        let first = form.ways().next().unwrap();
        // A text of their own is a secret for most.
        let texts = first.key == KeyForm::Text && first.algorithm.is_hmac();
        let [secret, theirs] = if texts && profile.schemes().count() == 1 { [own.clone(), own] } else { secrets[0].clone() };
        let is_form = first.signed.has_form() || format!("{:?}", first.when).contains(FORM);
        let content_type = if is_form { FORM } else { "application/octet-stream" };
        let sent = send_as(&id, form, &[&secret], content_type, &body).unwrap();
        prop_assert!(verify(profile, &theirs, &sent, now()).is_ok(), "{}: {:?}", name, sent.headers);

        if let Some(changed) = flipped(&sent, first, at, bit) {
            prop_assert!(verify(profile, &theirs, &changed, now()).is_err(), "{}: {:?}", name, changed.headers);
        }
        let covers = first.signed.covers_body() && first.algorithm.is_code() && !first.signed.has_form();
        if covers && !body.is_empty() {
            let mut changed = Sent { url: sent.url.clone(), headers: sent.headers.clone(), body: body.clone() };
            changed.body[at.index(body.len())] ^= 1 << bit;
            prop_assert!(verify(profile, &theirs, &changed, now()).is_err(), "{}", name);
        }
    }
}
