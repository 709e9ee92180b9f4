//! Whatever a signature covers cannot be changed, not by one bit.
//!
//! The genuine requests of the project's tests are forged, one bit at a time: the signature, the timestamp, the
//! delivery id and whatever else is signed bit for bit, the body at some places. The first request of each way of
//! proving is tried in full, the others at every eleventh bit, to be quick. A flip may pass only if what was
//! written still says the same: `%2f` for `%2F`, `\u00E9` for `\u00e9`, hexadecimal in the other case where the
//! provider writes either, `basic` for `Basic`.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;

use super::requests::{Genuine, Judge, Sent, genuine, made};
use super::spots::Spot;
use crate::event::json::Pointer;
use crate::event::place::Scope;
use crate::event::{Place, Places};
use crate::signature::{Algorithm, Encoding, Scheme};

/// How many places of a body are tried.
const BODY_FLIPS: usize = 64;
/// From which bit to the next, for requests like one that was tried in full; each bit of a byte gets its turn.
const STRIDE: usize = 11;

/// What was tried.
#[derive(Default)]
struct Tried {
    flips: usize,
    /// From which bit to the next.
    stride: usize,
    /// Flips after which the request still said the same.
    same: usize,
    /// The flips of each part.
    parts: BTreeMap<&'static str, usize>,
}

impl Tried {
    /// Tries all bits of a spot. `means` is what the spot says.
    fn all<T: PartialEq>(
        &mut self,
        part: &'static str,
        (judge, sent): (&Judge, &Sent),
        spot: &Spot,
        means: impl Fn(&Sent) -> T,
    ) -> Result<(), String> {
        self.some(part, (judge, sent), spot, spot.bits().step_by(self.stride), means)
    }

    fn some<T: PartialEq>(
        &mut self,
        part: &'static str,
        (judge, sent): (&Judge, &Sent),
        spot: &Spot,
        bits: impl IntoIterator<Item = usize>,
        means: impl Fn(&Sent) -> T,
    ) -> Result<(), String> {
        let meaning = means(sent);
        for bit in bits {
            let Some(changed) = spot.flip(sent, bit) else { continue };
            self.flips += 1;
            *self.parts.entry(part).or_default() += 1;
            if judge.accepts(&changed) {
                if means(&changed) != meaning {
                    return Err(format!("bit {bit} of its {part} can be flipped ({spot:?})"));
                }
                self.same += 1;
            }
        }
        Ok(())
    }
}

#[test]
fn no_bit_of_what_a_signature_covers_can_be_flipped() {
    let mut tried = Tried::default();
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    let requests: Vec<Genuine> = genuine().into_iter().chain(made()).collect();
    for request in &requests {
        assert!(request.judge.accepts(&request.sent), "{} is not accepted as it is", request.title);
        let mut proved = false;
        for (way, scheme) in request.judge.ways.iter().enumerate() {
            let judge = request.judge.of(scheme, &request.secrets);
            if judge.accepts(&request.sent) {
                proved = true;
                tried.stride = if seen.insert((request.preset.clone(), way)) { 1 } else { STRIDE };
                let forged = forge(scheme, &judge, &request.sent, &mut tried);
                wrong.extend(forged.err().map(|error| format!("{}: {error}", request.title)));
            }
        }
        assert!(proved, "{} is not accepted by any one way", request.title);
        wrong.extend(forge_body(request, &mut tried).err().map(|error| format!("{}: {error}", request.title)));
    }
    println!(
        "{} requests, {} flips, {} of the same meaning: {:?}",
        requests.len(),
        tried.flips,
        tried.same,
        tried.parts
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for part in ["signature", "timestamp", "id", "signed value", "query", "method", "body"] {
        assert!(tried.parts.contains_key(part), "no {part} was tried");
    }
}

/// Everything that this way of proving covers, but for the body as a whole.
fn forge(scheme: &Scheme, judge: &Judge, sent: &Sent, tried: &mut Tried) -> Result<(), String> {
    let list = scheme.each.as_ref().map(ToString::to_string);
    let list = list.as_deref();
    let alone = signatures(scheme, judge, sent, list);
    if alone.is_empty() {
        return Err("none of its signatures is accepted without the others".to_owned());
    }
    for (place, sent, spot) in &alone {
        tried.all("signature", (judge, sent), spot, |sent| read(scheme, &said(place, sent, list)))?;
    }
    let mut all = |part, places: &mut dyn Iterator<Item = &Place>| {
        for place in places {
            for spot in spots(scheme, place, sent, list) {
                tried.all(part, (judge, sent), &spot, |sent| said_in(scheme, place, sent, list))?;
            }
        }
        Ok::<_, String>(())
    };
    all("timestamp", &mut scheme.timestamp.iter().flat_map(Places::iter))?;
    all("secret", &mut scheme.secret_at.iter().flat_map(Places::iter))?;
    all("signed value", &mut scheme.signed.places())?;
    all("signed value", &mut lines(scheme).iter())?;
    all("signed value", &mut listed(scheme, sent).iter())?;
    if let Some(id) = judge.id.as_ref().filter(|id| scheme.covers(id)) {
        all("id", &mut id.places().into_iter())?;
    }
    forge_target(scheme, judge, sent, tried)
}

/// The query and the method, where they are signed.
fn forge_target(scheme: &Scheme, judge: &Judge, sent: &Sent, tried: &mut Tried) -> Result<(), String> {
    let signed = scheme.signed.to_string();
    let decoded = signed.contains("{url:decoded}");
    if ["{url}", "{url:any-port}", "{url:decoded}", "{path}"].iter().any(|name| signed.contains(name)) {
        let means = |sent: &Sent| {
            let query = sent.query.clone().unwrap_or_default();
            if decoded { percent_encoding::percent_decode_str(&query).collect() } else { query.into_bytes() }
        };
        if let Some(spot) = Spot::query(sent) {
            tried.all("query", (judge, sent), &spot, means)?;
        }
    }
    if signed.contains("{method}") {
        for bit in 0..sent.method.as_str().len() * 8 {
            let mut method = sent.method.as_str().as_bytes().to_vec();
            method[bit / 8] ^= 1 << (bit % 8);
            let Ok(method) = Method::from_bytes(&method) else { continue };
            *tried.parts.entry("method").or_default() += 1;
            if judge.accepts(&Sent { method: method.clone(), ..sent.clone() }) {
                return Err(format!("its method can be {method}"));
            }
        }
    }
    Ok(())
}

/// The body, if every way that accepts the request covers all of it; by no way can it be changed then.
fn forge_body(request: &Genuine, tried: &mut Tried) -> Result<(), String> {
    let sent = &request.sent;
    let accepting = |scheme: &&Scheme| request.judge.of(scheme, &request.secrets).accepts(sent);
    if !request.judge.ways.iter().filter(accepting).all(covers_body) {
        return Ok(());
    }
    let as_form =
        request.judge.ways.iter().filter(accepting).any(|scheme| scheme.signed.to_string().contains("{form}"));
    let means = |sent: &Sent| {
        let mut fields = sent.request().form().map(<[_]>::to_vec).unwrap_or_default();
        fields.sort();
        fields.dedup();
        if as_form { (fields, Vec::new()) } else { (Vec::new(), sent.body.clone()) }
    };
    for spot in Spot::of(&Place::Body, sent, None) {
        // Positions that are spread over the body, the same in every run.
        let bits = spot.bits().len();
        let spread = (0..BODY_FLIPS.min(bits)).map(|index| (index * 2_654_435_761 + index * bits / BODY_FLIPS) % bits);
        tried.some("body", (&request.judge, sent), &spot, spread, means)?;
    }
    Ok(())
}

fn covers_body(scheme: &Scheme) -> bool {
    let hashed = scheme.body_hash.is_some() || scheme.jwt.as_ref().is_some_and(|jwt| jwt.body_claim.is_some());
    hashed || (scheme.algorithm.is_code() && scheme.signed.covers_body())
}

/// Each signature that is enough, in a request that has no other one.
fn signatures(scheme: &Scheme, judge: &Judge, sent: &Sent, list: Option<&str>) -> Vec<(Place, Sent, Spot)> {
    let mut all = Vec::new();
    for place in &scheme.signature {
        let mut alone = sent.clone();
        for other in scheme.signature.iter().filter(|other| *other != place) {
            if let Place::Header(name) = other {
                alone.headers.remove(name);
            }
        }
        match (place, &scheme.separator) {
            (Place::Header(name), Some(separator)) => {
                let value = sent.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
                let is_claim = |entry: &str| entry.trim().starts_with(&scheme.prefix);
                for (index, claim) in value.split(separator.as_str()).enumerate().filter(|(_, entry)| is_claim(entry)) {
                    let entries = value.split(separator.as_str()).enumerate();
                    let kept = entries.filter(|(other, entry)| *other == index || !is_claim(entry));
                    let kept = kept.map(|(_, entry)| entry).collect::<Vec<_>>().join(separator);
                    alone.headers.insert(name, kept.parse().unwrap());
                    all.extend(
                        Spot::in_header(name, &alone, claim.trim()).map(|spot| (place.clone(), alone.clone(), spot)),
                    );
                }
            }
            (Place::Numbered(start), _) => {
                for name in sent.headers.keys().filter(|name| name.as_str().starts_with(start)) {
                    let mut alone = sent.clone();
                    for other in sent.headers.keys().filter(|other| *other != name && other.as_str().starts_with(start))
                    {
                        alone.headers.remove(other);
                    }
                    let spot = Spot::header(name, &alone);
                    all.extend(spot.map(|spot| (Place::Header(name.clone()), alone, spot)));
                }
            }
            _ => all.extend(Spot::of(place, &alone, list).into_iter().map(|spot| (place.clone(), alone.clone(), spot))),
        }
    }
    all.retain(|(_, alone, _)| judge.accepts(alone));
    all
}

/// Where a place stands; `entry:` places are in the header of the signature.
fn spots(scheme: &Scheme, place: &Place, sent: &Sent, list: Option<&str>) -> Vec<Spot> {
    let (Place::Entry(_), Some(header)) = (place, scheme.header()) else { return Spot::of(place, sent, list) };
    let text = said_in(scheme, place, sent, list).concat();
    Spot::in_header(header, sent, &text).into_iter().collect()
}

/// What a place says, of each item where it is about items.
fn said(place: &Place, sent: &Sent, list: Option<&str>) -> Vec<String> {
    let request = sent.request();
    let whole = Scope::of(&request);
    let find = |scope| place.find(scope).ok().flatten().unwrap_or_default().into_owned();
    match (place, list.and_then(Pointer::parse)) {
        (Place::Item(_), Some(list)) => match list.items(&sent.body) {
            Some(Ok(items)) => items.into_iter().map(|item| find(Scope { item: Some(item), ..whole })).collect(),
            _ => Vec::new(),
        },
        _ => vec![find(whole)],
    }
}

/// The same, for places among the entries of the signature's header too.
fn said_in(scheme: &Scheme, place: &Place, sent: &Sent, list: Option<&str>) -> Vec<String> {
    let (Place::Entry(name), Some(header)) = (place, scheme.header()) else { return said(place, sent, list) };
    let value = sent.headers.get(header).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let value = value.unwrap_or_default();
    let entries = value.split(scheme.separator.as_deref().unwrap_or(",")).map(str::trim);
    let named = |entry: &&str| entry.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('='));
    match name.parse::<usize>() {
        Ok(position) => entries.skip(position).take(1).map(str::to_owned).collect(),
        Err(_) => entries.filter(named).map(|entry| entry[name.len() + 1..].to_owned()).collect(),
    }
}

/// A signature as it is read: where either case is taken, in lower case.
fn read(scheme: &Scheme, texts: &[String]) -> Vec<String> {
    let read = |text: &String| match text.split_once(' ') {
        _ if scheme.encoding == Encoding::HexAny => text.to_ascii_lowercase(),
        Some((word, code)) if scheme.algorithm == Algorithm::Basic => format!("{} {code}", word.to_ascii_lowercase()),
        _ => text.clone(),
    };
    texts.iter().map(read).collect()
}

/// The values that are signed as lines of their own.
fn lines(scheme: &Scheme) -> Vec<Place> {
    let text = scheme.signed.to_string();
    let pointer = |rest: &str| rest.split(['?', '}']).next().and_then(Pointer::parse).map(Place::Json);
    text.split("{line:").skip(1).filter_map(pointer).collect()
}

/// The headers that a header says are signed.
fn listed(scheme: &Scheme, sent: &Sent) -> Vec<Place> {
    let list = scheme.signed.list().and_then(|list| sent.headers.get(list)?.to_str().ok());
    list.into_iter().flat_map(|list| list.split(',')).map(|name| format!("header:{name}").parse().unwrap()).collect()
}
