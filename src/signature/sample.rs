//! A sample request, as the provider of a source would send it.
//!
//! The scheme that verifies also says where a signature stands and what it covers, so it is read the other way:
//! what a rule looks for is put there, and what is signed is signed. Every sample is verified before it is given
//! away, so nothing leaves here that the gateway would refuse, unless that was asked for.
//!
//! Only who shares a secret can do this. A private key is the provider's alone.

use std::time::SystemTime;

use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use url::form_urlencoded;

use super::draft::{Content, Draft, Medium};
use super::key::Key;
use super::profile::{Naming, Profile};
use super::template::Need;
use super::timestamp::Unit;
use super::{Algorithm, Inquiry, Rejection, Scheme, Verify, Ways};
use crate::clock::{rfc3339, unix_seconds};
use crate::event::Place;
use crate::event::place::Scope;
use crate::secret::Secret;

const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
/// What stands where something must and nobody cares what.
const FILLER: &str = "sample";
/// What a sample says.
const GREETING: &str = "hello from hookbridge send";

/// What a sample is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) profile: &'a Profile,
    /// The event type; of several parts they are separated by dots.
    pub(crate) event_type: &'a str,
    /// The delivery id.
    pub(crate) id: &'a str,
    /// The body byte for byte; without one, it is made up.
    pub(crate) body: Option<&'a [u8]>,
    pub(crate) query: Option<&'a str>,
    /// Headers that win over everything that is put here.
    pub(crate) headers: &'a HeaderMap,
    /// The public URL, without a query.
    pub(crate) endpoint: &'a str,
    pub(crate) now: SystemTime,
    /// Whether the signature is to be a wrong one.
    pub(crate) wrong: bool,
}

/// A request that can be sent.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The request's method.
    pub method: Method,
    /// The query without its question mark.
    pub query: Option<String>,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// Whether the given body had to be written anew, because the signature stands inside.
    pub rewritten: bool,
}

/// Why nobody here can make such a request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsignable {
    /// It is signed with a private key.
    #[error("only the provider has the key: its requests are signed with {0}")]
    ProvidersKey(&'static str),
    /// There is nothing to sign with.
    #[error("there is no secret to sign with")]
    NoSecret,
    /// The secret is not what the scheme needs.
    #[error("the secret {0}")]
    Secret(String),
    /// The signature has no place in such a body.
    #[error("nothing can be put at `{0}` in this body")]
    Place(String),
    /// What was given contradicts what the source asks for.
    #[error("it would be refused: {0}")]
    Refused(Rejection),
}

/// A request with this body as the provider would send it, for programs that measure or test.
pub fn sample(
    profile: &Profile,
    secret: &Secret,
    body: &[u8],
    endpoint: &str,
    now: SystemTime,
) -> Result<Sample, Unsignable> {
    let (none, event_type, id) = (HeaderMap::new(), "sample", "sample-1");
    let (body, query, headers) = (Some(body), None, &none);
    Wish { profile, event_type, id, body, query, headers, endpoint, now, wrong: false }.dress(Some(secret))
}

impl Wish<'_> {
    /// A request as the provider would send it, signed with this secret in the first way that it can be.
    pub(crate) fn dress(&self, secret: Option<&Secret>) -> Result<Sample, Unsignable> {
        let Some(Verify::Ways(ways)) = &self.profile.verify else { return Ok(self.unsigned()) };
        let shared: Vec<&Scheme> = ways.iter().filter(|scheme| scheme.is_shared()).collect();
        let Some(secret) = secret else {
            return Err(if shared.is_empty() { private(ways) } else { Unsignable::NoSecret });
        };
        let taking = |scheme: &&Scheme| scheme.takes(secret);
        let (mut fitting, others): (Vec<&Scheme>, Vec<&Scheme>) =
            shared.into_iter().filter(taking).partition(|scheme| self.fits(scheme));
        fitting.extend(others);
        let mut why = private(ways);
        for scheme in fitting {
            match self.signed(scheme, ways, secret) {
                Ok(sample) => return Ok(sample),
                Err(reason) if matches!(why, Unsignable::ProvidersKey(_)) => why = reason,
                Err(_) => {}
            }
        }
        Err(why)
    }

    /// Whether the given body is written as this way expects it.
    fn fits(&self, scheme: &Scheme) -> bool {
        let given = self.body.map(Content::parse);
        given.is_none_or(|given| matches!(given, Content::Json(_)) == (self.medium(Some(scheme)) == Medium::Json))
    }

    fn unsigned(&self) -> Sample {
        let mut draft = self.draft(None);
        self.name(&mut draft);
        self.finish(draft, false)
    }

    fn signed(&self, scheme: &Scheme, ways: &Ways, secret: &Secret) -> Result<Sample, Unsignable> {
        let key = scheme.key(secret).map_err(Unsignable::Secret)?;
        let mut draft = self.draft(Some(scheme));
        let rewritten = self.body.is_some() && !matches!(draft.content, Content::Bytes(_));
        self.prepare(scheme, &mut draft);
        let pen = Pen { wish: self, scheme, key: &key, secret, wrong: false };
        let mut right = draft.clone();
        pen.sign(&mut right)?;
        self.check(&right, ways, secret)?;
        if self.wrong {
            Pen { wrong: true, ..pen }.sign(&mut draft)?;
            return Ok(self.finish(draft, rewritten));
        }
        Ok(self.finish(right, rewritten))
    }

    /// Nothing but what is known from the start.
    fn draft(&self, scheme: Option<&Scheme>) -> Draft {
        let (medium, method) = (self.medium(scheme), self.profile.event_methods().into_iter().next());
        let method = method.unwrap_or(Method::POST);
        let inside = scheme.is_some_and(|scheme| scheme.signature.iter().all(is_inside));
        let content = match (self.body, medium) {
            (Some(body), _) if inside => Content::parse(body),
            (Some(body), _) => Content::Bytes(body.to_vec()),
            (None, _) if method == Method::GET || method == Method::HEAD => Content::Bytes(Vec::new()),
            (None, Medium::Json) => Content::Json(Value::Null),
            (None, Medium::Form) => Content::Form(Vec::new()),
        };
        let mut headers = HeaderMap::new();
        if let Some(content_type) = self.content_type(&content) {
            headers.insert(CONTENT_TYPE, content_type);
        }
        let query = self.query.unwrap_or_default().as_bytes();
        let mut draft = Draft {
            method,
            endpoint: self.endpoint.to_owned(),
            query: form_urlencoded::parse(query).into_owned().collect(),
            headers,
            content,
            closed: scheme.iter().flat_map(|scheme| scheme.when.forbidden()).cloned().collect(),
        };
        self.put_given(&mut draft);
        draft
    }

    /// The headers that somebody gave, in place of those of the same name.
    fn put_given(&self, draft: &mut Draft) {
        for name in self.headers.keys() {
            draft.headers.remove(name);
            for value in self.headers.get_all(name) {
                draft.headers.append(name, value.clone());
            }
        }
    }

    fn medium(&self, scheme: Option<&Scheme>) -> Medium {
        let of = |form: bool| if form { Medium::Form } else { Medium::Json };
        let said = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if let Some(said) = said.filter(|_| self.body.is_none()) {
            return of(said.starts_with(FORM));
        }
        if let Some(taken) = &self.profile.content_types {
            return of(taken.iter().any(|taken| taken == FORM) && !taken.iter().any(|taken| taken == JSON));
        }
        let places: Vec<&Place> = scheme.map(places).unwrap_or_default();
        let is_form = |place: &&Place| matches!(place, Place::Form(..));
        let is_json = |place: &&Place| matches!(place, Place::Json(_) | Place::Item(_) | Place::Key(_));
        let labelled = |scheme: &Scheme| scheme.when.wishes().any(|(_, value)| value.is_some_and(|v| v == FORM));
        if scheme.is_some_and(|scheme| scheme.signed.has_form() || labelled(scheme)) || places.iter().any(is_form) {
            return Medium::Form;
        }
        if scheme.is_some_and(|scheme| scheme.each.is_some()) || places.iter().any(is_json) {
            return Medium::Json;
        }
        let named = [&self.profile.id, &self.profile.event_type].into_iter().flatten().flat_map(Naming::places);
        let first = named.into_iter().find(|place| place.reads_body());
        of(first.is_some_and(|place| is_form(&place)))
    }

    fn content_type(&self, content: &Content) -> Option<HeaderValue> {
        let written = match content {
            Content::Json(_) => JSON,
            Content::Form(_) => FORM,
            Content::Bytes(bytes) if bytes.is_empty() => return None,
            Content::Bytes(bytes) => match Content::parse(bytes) {
                Content::Json(_) => JSON,
                _ if self.reads_forms() => FORM,
                _ => "text/plain",
            },
        };
        let taken = self.profile.content_types.iter().flatten();
        let chosen = taken.clone().find(|taken| *taken == written).or(taken.clone().next());
        chosen.map_or(Some(HeaderValue::from_static(written)), |taken| taken.parse().ok())
    }

    /// Whether anything in the profile looks into forms.
    fn reads_forms(&self) -> bool {
        let named = [&self.profile.id, &self.profile.event_type].into_iter().flatten().flat_map(Naming::places);
        named.chain(self.profile.schemes().flat_map(places)).any(|place| matches!(place, Place::Form(..)))
            || self.profile.schemes().any(|scheme| scheme.signed.has_form())
    }

    /// Puts id and type where the profile looks for them.
    fn name(&self, draft: &mut Draft) {
        if let Some(id) = &self.profile.id {
            let parts = id.parts();
            // The last part is the id; those before it say whose.
            let mut texts: Vec<&str> = self.id.splitn(parts.len(), '.').collect();
            if texts.len() < parts.len() {
                texts = vec![FILLER; parts.len() - 1];
                texts.push(self.id);
            }
            put_parts(draft, parts, texts.into_iter());
        }
        if let Some(event_type) = &self.profile.event_type {
            let parts = event_type.parts();
            let texts = match &parts[..] {
                [_] => vec![self.event_type],
                several => self.event_type.splitn(several.len(), '.').collect(),
            };
            put_parts(draft, parts, texts.into_iter());
        }
        if self.body.is_none() {
            self.greet(&mut draft.content);
        }
    }

    /// Says who sent it, and when: where there is no id, equal bodies would count as one event.
    fn greet(&self, content: &mut Content) {
        if let Content::Json(json @ Value::Null) = content {
            *json = Value::Object(serde_json::Map::new());
        }
        for (name, text) in [("message", GREETING.to_owned()), ("sent_at", rfc3339(self.now))] {
            match content {
                Content::Json(Value::Object(members)) => drop(members.entry(name).or_insert_with(|| text.into())),
                Content::Form(fields) => fields.push((name.to_owned(), text)),
                Content::Json(_) | Content::Bytes(_) => {}
            }
        }
    }

    /// Everything that the scheme looks for, but the signature.
    fn prepare(&self, scheme: &Scheme, draft: &mut Draft) {
        put_wishes(scheme, draft, |place, value, draft| value.is_some_and(|value| draft.put(place, value)));
        if let Some(places) = &scheme.timestamp {
            put_if_none(draft, places.iter(), &self.timestamp(scheme.unit));
        }
        self.name(draft);
        for need in scheme.signed.needs() {
            match need {
                Need::At(place) => self.put_made_up(draft, place),
                Need::Line(pointer) => self.put_made_up(draft, &Place::Json(pointer.clone())),
                Need::Headers(list) => self.put_listed(draft, list, scheme),
            }
        }
        for item in 0..items(scheme, draft) {
            self.prepare_item(scheme, draft, item);
        }
        // What is only to be there is put last: most of it is there by now, or will be with the signature.
        let filler = Value::from(FILLER);
        put_wishes(scheme, draft, |place, value, draft| {
            let later = scheme.signature.contains(place);
            value.is_none() && (later || draft.put(place, &filler))
        });
        if let Some(hash) = &scheme.body_hash {
            let digest = hash.algorithm.digest(&[draft.content.bytes()]);
            let _ = hash.at.iter().any(|place| draft.put(place, &hash.encoding.encode(&digest).into()));
        }
    }

    /// What the scheme looks for in one item of its list.
    fn prepare_item(&self, scheme: &Scheme, draft: &mut Draft, item: usize) {
        let Some(list) = &scheme.each else { return };
        let needs = scheme.signed.needs().filter_map(|need| match need {
            Need::At(Place::Item(pointer)) => Some((pointer, self.made_up(pointer.last()))),
            _ => None,
        });
        let timestamp = scheme.timestamp.iter().flat_map(|places| places.iter()).filter_map(|place| match place {
            Place::Item(pointer) => Some((pointer, self.timestamp(scheme.unit))),
            _ => None,
        });
        for (pointer, value) in timestamp.chain(needs).collect::<Vec<_>>() {
            if !draft.holds(&Place::Json(list.item(item, pointer))) {
                draft.put_item(list, item, pointer, &value);
            }
        }
    }

    fn put_made_up(&self, draft: &mut Draft, place: &Place) {
        let name = match place {
            Place::Header(name) => name.as_str(),
            Place::Query(name) | Place::Form(name, None) => name,
            Place::Json(pointer) | Place::Form(_, Some(pointer)) => pointer.last(),
            _ => "",
        };
        put_if_none(draft, [place], &self.made_up(name));
    }

    /// A header that lists others, and those; the timestamp's is worth nothing unless it is listed.
    fn put_listed(&self, draft: &mut Draft, list: &HeaderName, scheme: &Scheme) {
        let timestamps = scheme.timestamp.iter().flat_map(|places| places.iter());
        let names = timestamps.filter_map(|place| match place {
            Place::Header(name) => Some(name.as_str()),
            _ => None,
        });
        let names = names.chain(["content-type"]).collect::<Vec<_>>().join(",");
        put_if_none(draft, [&Place::Header(list.clone())], &names.into());
        let listed = draft.at(&Place::Header(list.clone())).unwrap_or_default();
        for name in listed.split(',').filter_map(|name| name.trim().parse().ok()) {
            self.put_made_up(draft, &Place::Header(name));
        }
    }

    fn timestamp(&self, unit: Unit) -> Value {
        let text = unit.write(self.now);
        text.parse::<u64>().map_or(Value::String(text), Value::from)
    }

    /// Something that could stand under such a name.
    fn made_up(&self, name: &str) -> Value {
        let name = name.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| name.contains(word));
        match () {
            () if says(&["success"]) => "true".into(),
            () if says(&["time"]) => unix_seconds(self.now).to_string().into(),
            () if says(&["nonce", "token", "reference", "id"]) => format!("{FILLER}_{}", self.id).into(),
            () => FILLER.into(),
        }
    }

    /// Nothing is given away that would be refused; that it is old may be the point.
    fn check(&self, draft: &Draft, ways: &Ways, secret: &Secret) -> Result<(), Unsignable> {
        let credentials = [ways.credential(secret).map_err(Unsignable::Secret)?];
        draft.look(|request| {
            let id = self.profile.id.as_ref();
            let inquiry = Inquiry { request, id, now: self.now, documents: &|_| None };
            match ways.verify(&credentials, &inquiry) {
                Ok(_) | Err(Rejection::TooOld { .. } | Rejection::TooNew { .. }) => Ok(()),
                Err(rejection) => Err(Unsignable::Refused(rejection)),
            }
        })
    }

    fn finish(&self, mut draft: Draft, rewritten: bool) -> Sample {
        self.put_given(&mut draft);
        let body = draft.content.bytes();
        // A query that was given and needs no more is left as it was written.
        let same = |query: &str| form_urlencoded::parse(query.as_bytes()).into_owned().eq(draft.query.iter().cloned());
        let query = self.query.filter(|query| same(query)).map(str::to_owned).or_else(|| draft.query());
        Sample { method: draft.method, query, headers: draft.headers, body, rewritten }
    }
}

/// Writes signatures with one key.
#[derive(Clone, Copy)]
struct Pen<'a> {
    wish: &'a Wish<'a>,
    scheme: &'a Scheme,
    key: &'a Key,
    secret: &'a Secret,
    wrong: bool,
}

impl Pen<'_> {
    fn sign(&self, draft: &mut Draft) -> Result<(), Unsignable> {
        let scheme = self.scheme;
        let Some(list) = &scheme.each else {
            let text = draft.look(|request| self.text(Scope::of(request)))?.into();
            let put = scheme.signature.iter().any(|place| draft.put(place, &text));
            return if put { Ok(()) } else { Err(Unsignable::Place(scheme.places())) };
        };
        for index in 0..items(scheme, draft) {
            let text = draft.look(|request| {
                let found = list.items(request.body).and_then(Result::ok).unwrap_or_default();
                self.text(Scope { item: found.get(index).copied(), ..Scope::of(request) })
            })?;
            let put = scheme.signature.iter().any(|place| match place {
                Place::Item(pointer) => draft.put_item(list, index, pointer, &text.clone().into()),
                place => draft.put(place, &text.clone().into()),
            });
            if !put {
                return Err(Unsignable::Place(scheme.places()));
            }
        }
        Ok(())
    }

    /// What stands at the place of the signature.
    fn text(&self, scope: Scope<'_>) -> Result<String, Unsignable> {
        let mut entries = self.scheme.beside(self.wish.now, FILLER);
        let named: Vec<&str> = entries.iter().map(String::as_str).collect();
        let signature = self.signature(Scope { entries: &named, ..scope }).map_err(Unsignable::Refused)?;
        entries.push(signature);
        Ok(entries.join(self.scheme.separator.as_deref().unwrap_or_default()))
    }

    fn signature(&self, scope: Scope<'_>) -> Result<String, Rejection> {
        let (scheme, id) = (self.scheme, self.wish.profile.id.as_ref());
        let with = |key: &Key| scheme.signature(key, scope, id, self.wish.now);
        match scheme.algorithm {
            _ if !self.wrong => with(self.key),
            Algorithm::Token | Algorithm::Basic => {
                with(&Key::Text(Secret::new([self.secret.expose(), b"-wrong"].concat())))
            }
            // Another token of the same form: its claims are no longer what was signed.
            Algorithm::Jwt => with(self.key).map(|token| another(&token)),
            _ => {
                let mut code = scheme.code(self.key, scope, id)?;
                if let Some(first) = code.first_mut() {
                    *first ^= 1;
                }
                Ok(format!("{}{}", scheme.prefix, scheme.encoding.encode(&code)))
            }
        }
    }
}

/// A token whose signature is another one.
fn another(token: &str) -> String {
    let (signed, code) = token.rsplit_once('.').unwrap_or((token, ""));
    let first = if code.starts_with('A') { 'B' } else { 'A' };
    format!("{signed}.{first}{}", code.get(1..).unwrap_or_default())
}

/// How many items must prove themselves; a body that is made up has one.
fn items(scheme: &Scheme, draft: &Draft) -> usize {
    let Some(list) = &scheme.each else { return 0 };
    let found = draft.look(|request| list.items(request.body).map(|items| items.map_or(0, |items| items.len())));
    found.unwrap_or_else(|| usize::from(matches!(draft.content, Content::Json(_))))
}

/// The places that a scheme looks at, beside conditions that forbid something.
fn places(scheme: &Scheme) -> Vec<&Place> {
    let wanted = scheme.when.wishes().flat_map(|(places, _)| places.iter());
    let needed = scheme.signed.needs().filter_map(|need| match need {
        Need::At(place) => Some(place),
        Need::Line(_) | Need::Headers(_) => None,
    });
    let timestamp = scheme.timestamp.iter().flat_map(|places| places.iter());
    scheme.signature.iter().chain(timestamp).chain(needed).chain(wanted).collect()
}

/// Whether a signature there stands beside other things in the body.
fn is_inside(place: &Place) -> bool {
    place.reads_body() && !matches!(place, Place::Body)
}

/// Why nobody but the provider can sign.
fn private(ways: &Ways) -> Unsignable {
    let name = ways.iter().find(|scheme| !scheme.is_shared()).map_or("another secret", |scheme| {
        match (scheme.jwks.is_some(), scheme.certificate.is_some(), scheme.algorithm) {
            (_, true, _) => "the key of a certificate",
            (_, _, Algorithm::Jwt) => "a JSON Web Token of its own key",
            (_, _, algorithm) => algorithm.as_str(),
        }
    });
    Unsignable::ProvidersKey(name)
}

fn put_parts<'a>(draft: &mut Draft, parts: Vec<(&str, Vec<&Place>)>, texts: impl Iterator<Item = &'a str>) {
    for ((before, places), text) in parts.into_iter().zip(texts) {
        let text = text.strip_prefix(before).unwrap_or(text);
        put_if_none(draft, places, &text.into());
    }
}

/// Puts a value at the first place that takes it, unless something is at one of them.
fn put_if_none<'a>(draft: &mut Draft, places: impl IntoIterator<Item = &'a Place>, value: &Value) {
    let places: Vec<&Place> = places.into_iter().collect();
    if !places.iter().any(|place| draft.holds(place)) {
        let _ = places.iter().any(|place| draft.put(place, value));
    }
}

/// Puts something where a condition of the way does not hold yet.
fn put_wishes(scheme: &Scheme, draft: &mut Draft, put: impl Fn(&Place, Option<&Value>, &mut Draft) -> bool) {
    for condition in scheme.when.each() {
        if draft.look(|request| condition.hold(Scope::of(request))) {
            continue;
        }
        for (places, value) in condition.wishes() {
            let _ = places.iter().any(|place| put(place, value.as_ref(), draft));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::event::Request;
    use crate::signature::preset_files::FILES;
    use crate::signature::{Credential, Genuine, preset};

    const ENDPOINT: &str = "https://hooks.example.com/hooks/a";

    /// Two secrets of every form that a provider hands out.
    const SECRETS: [[&str; 2]; 5] = [
        ["a plain secret", "another plain secret"],
        ["whsec_c2VjcmV0LW9uZQ==", "whsec_c2VjcmV0LXR3bw=="],
        ["00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"],
        ["c2VjcmV0LW9uZQ==", "c2VjcmV0LXR3bw=="],
        ["user:password", "user:passw0rd"],
    ];

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_760_000_000)
    }

    fn wish<'a>(profile: &'a Profile, headers: &'a HeaderMap) -> Wish<'a> {
        Wish {
            profile,
            event_type: "invoice",
            id: "id-1",
            body: None,
            query: None,
            headers,
            endpoint: ENDPOINT,
            now: now(),
            wrong: false,
        }
    }

    fn see<T>(sample: &Sample, look: impl FnOnce(&Request<'_>) -> T) -> T {
        let Sample { method, query, headers, body, .. } = sample;
        look(&Request::new(method, ENDPOINT, query.as_deref(), headers, body))
    }

    fn verify(profile: &Profile, secret: &Secret, sample: &Sample, now: SystemTime) -> Result<Genuine, Rejection> {
        let Some(Verify::Ways(ways)) = &profile.verify else { panic!("nothing is verified") };
        let credentials: [Credential; 1] = [ways.credential(secret).unwrap()];
        see(sample, |request| {
            let inquiry = Inquiry { request, id: profile.id.as_ref(), now, documents: &|_| None };
            ways.verify(&credentials, &inquiry)
        })
    }

    /// Secrets that one of the ways takes, and all of them can live with.
    fn secrets(ways: &Ways, scheme: &Scheme) -> [Secret; 2] {
        let usable = |texts: &&[&str; 2]| {
            let secret = Secret::new(texts[0]);
            scheme.takes(&secret) && scheme.key(&secret).is_ok() && ways.credential(&secret).is_ok()
        };
        SECRETS.iter().find(usable).unwrap().map(Secret::new)
    }

    /// Every preset, and one of its ways that a shared secret is enough for.
    fn shared() -> impl Iterator<Item = (String, Profile, Scheme)> {
        FILES.iter().flat_map(|(name, _)| {
            let profile = preset::find(name).unwrap().profile;
            let schemes: Vec<Scheme> = profile.schemes().filter(|scheme| scheme.is_shared()).cloned().collect();
            let ways = schemes.into_iter().enumerate();
            ways.map(move |(way, scheme)| (format!("{name}, way {}", way + 1), profile.clone(), scheme))
        })
    }

    #[test]
    fn what_a_preset_can_sign_it_verifies_and_only_with_the_same_secret_and_in_time() {
        let mut count = 0;
        for (name, profile, scheme) in shared() {
            let Some(Verify::Ways(ways)) = &profile.verify else { continue };
            let [secret, other] = secrets(ways, &scheme);
            let alone = Profile { verify: Some(Verify::Ways(Ways::new(vec![scheme.clone()]))), ..profile.clone() };
            let headers = HeaderMap::new();
            let sample = wish(&alone, &headers).dress(Some(&secret)).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert_eq!(verify(&profile, &secret, &sample, now()), Ok(Genuine { secret: 0 }), "{name}: {sample:?}");
            assert!(verify(&profile, &other, &sample, now()).is_err(), "{name} takes any secret: {sample:?}");
            if scheme.timestamp.is_some() {
                let late = verify(&profile, &secret, &sample, now() + scheme.tolerance + Duration::from_secs(5));
                assert!(matches!(late, Err(Rejection::TooOld { .. })), "{name}: {late:?}");
            }
            let wrong = Wish { wrong: true, ..wish(&alone, &headers) }.dress(Some(&secret)).unwrap();
            let refused = verify(&alone, &secret, &wrong, now());
            assert!(matches!(refused, Err(Rejection::Mismatch { .. })), "{name}: {refused:?} {wrong:?}");
            count += 1;
        }
        assert!(count > 120, "{count}");
    }

    #[test]
    fn a_sample_is_an_event_with_the_type_and_the_id_that_were_asked_for() {
        for (name, _) in FILES {
            let profile = preset::find(name).unwrap().profile;
            let ways = profile.schemes().find(|scheme| scheme.is_shared()).cloned();
            let secret = match (&profile.verify, &ways) {
                (Some(Verify::Ways(ways)), Some(scheme)) => Some(secrets(ways, scheme)[0].clone()),
                (Some(Verify::None), _) => None,
                _ => continue,
            };
            let sample = wish(&profile, &HeaderMap::new()).dress(secret.as_ref()).unwrap();
            see(&sample, |request| {
                let handshake = profile.handshakes().iter().find(|rule| rule.fits(request));
                assert!(handshake.is_none(), "{name}: {handshake:?} {sample:?}");
                let event_type = profile.event_type.as_ref().map(|of| of.event_type(Scope::of(request)));
                assert!(event_type.is_none_or(|found| found.as_deref() == Some("invoice")), "{name}: {sample:?}");
                let id = profile.id.as_ref().map(|of| of.id(Scope::of(request)).unwrap());
                // Adyen's id is the signature itself.
                let right = |found: &str| found.ends_with("id-1") || *name == "adyen";
                assert!(id.is_none_or(|found| found.is_some_and(|found| right(&found))), "{name}: {sample:?}");
            });
        }
    }

    #[test]
    fn a_given_body_is_signed_byte_for_byte() {
        let (stripe, headers) = (preset::find("stripe").unwrap().profile, HeaderMap::new());
        let body = br#"{ "id" : "evt_1", "type":"charge.failed" }"#;
        let secret = Secret::new("s3cret");
        let sample = Wish { body: Some(body), ..wish(&stripe, &headers) }.dress(Some(&secret)).unwrap();
        assert_eq!((&sample.body[..], sample.rewritten), (&body[..], false));
        assert!(verify(&stripe, &secret, &sample, now()).is_ok());
    }

    #[test]
    fn a_signature_inside_the_body_is_put_into_a_given_one_item_by_item() {
        let (adyen, headers) = (preset::find("adyen").unwrap().profile, HeaderMap::new());
        let item = r#"{"NotificationRequestItem":{"pspReference":"1","merchantAccountCode":"m","eventCode":"X","success":"true"}}"#;
        let body = format!(r#"{{"live":"false","notificationItems":[{item},{item}]}}"#);
        let secret = Secret::new("00112233");
        let sample = Wish { body: Some(body.as_bytes()), ..wish(&adyen, &headers) }.dress(Some(&secret)).unwrap();
        assert!(sample.rewritten);
        assert_eq!(String::from_utf8_lossy(&sample.body).matches("hmacSignature").count(), 2);
        assert!(verify(&adyen, &secret, &sample, now()).is_ok());
    }

    #[test]
    fn the_body_that_is_given_decides_between_the_ways() {
        let (twilio, headers) = (preset::find("twilio").unwrap().profile, HeaderMap::new());
        let secret = Secret::new("s3cret");
        let dress = |body| Wish { body: Some(body), ..wish(&twilio, &headers) }.dress(Some(&secret)).unwrap();
        let form = dress(b"From=%2B4930&Body=hi");
        assert!(form.headers[CONTENT_TYPE] == FORM && form.query.is_none(), "{form:?}");
        let json = dress(br#"{"a":1}"#);
        let query = json.query.as_deref().unwrap_or_default();
        assert!(query.starts_with("bodySHA256=") && json.headers[CONTENT_TYPE] == JSON, "{json:?}");
        assert!(verify(&twilio, &secret, &json, now()).is_ok());
    }

    #[test]
    fn given_headers_are_signed_where_they_count_and_win_where_they_do_not() {
        let (slack, mut headers) = (preset::find("slack").unwrap().profile, HeaderMap::new());
        let secret = Secret::new("s3cret");
        headers.insert("x-slack-request-timestamp", HeaderValue::from_static("1759990000"));
        let sample = wish(&slack, &headers).dress(Some(&secret)).unwrap();
        assert!(matches!(verify(&slack, &secret, &sample, now()), Err(Rejection::TooOld { .. })));
        headers.insert("x-slack-signature", HeaderValue::from_static("v0=00"));
        let sample = wish(&slack, &headers).dress(Some(&secret)).unwrap();
        assert_eq!(sample.headers["x-slack-signature"], "v0=00");
    }

    #[test]
    fn what_cannot_be_signed_says_why() {
        let headers = HeaderMap::new();
        let why = |name: &str, secret: Option<&str>, body: Option<&[u8]>| {
            let profile = preset::find(name).unwrap().profile;
            let secret = secret.map(Secret::new);
            Wish { body, ..wish(&profile, &headers) }.dress(secret.as_ref()).unwrap_err().to_string()
        };
        for (name, secret, body, expected) in [
            ("discord", Some("00"), None, "only the provider has the key: its requests are signed with ed25519"),
            ("aws-sns", None, None, "only the provider has the key: its requests are signed with the key of a cert"),
            ("google-pubsub", Some("a"), None, "only the provider has the key: its requests are signed with a JSON"),
            ("stripe", None, None, "there is no secret to sign with"),
            ("postmark", Some("no colon"), None, "the secret is not of the form `user:password`"),
            ("linear", Some("a"), Some(&b"{}"[..]), "it would be refused: nothing at `json:/webhookTimestamp`"),
            ("aircall", Some("a"), Some(&b"[]"[..]), "nothing can be put at `json:/token` in this body"),
        ] {
            let why = why(name, secret, body);
            assert!(why.starts_with(expected), "{name}: {why}");
        }
    }
}
