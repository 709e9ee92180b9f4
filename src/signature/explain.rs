//! What verification sees in a request, step by step, for a person who wants to know why it is refused.
//!
//! The verdicts are those of [`Ways::verify`]; the steps beside them only show what it looked at. No step holds a
//! secret, and of a body no more than its first bytes. Whether a step is worth printing is for the caller.

use std::time::Duration;

use super::key::Key;
use super::template::{Named, Part, Values};
use super::verify::{Credential, Inquiry, Ways, items, required};
use super::{Algorithm, Rejection, Scheme};
use crate::clock::unix_millis;
use crate::event::Request;
use crate::event::place::Scope;

/// The most bytes of a value that are shown.
const MAX_SHOWN: usize = 160;
/// The most bytes that are shown of what may be the whole body.
const MAX_BODY_SHOWN: usize = 24;
/// The most items of a list that are shown.
const MAX_ITEMS: usize = 5;

/// One thing that verification looks at. Ways and secrets are counted from 0, as the source lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A way that does not apply, and why.
    Skipped { way: usize, algorithm: &'static str, why: String },
    /// A way that applies: the next steps are about it.
    Way { way: usize, algorithm: &'static str, places: String },
    /// One of the items that must each prove themselves.
    Item { index: usize, of: usize },
    /// What is at the places of the signature: how many are of a known form, and how many entries are not.
    Signature { places: String, prefix: String, known: usize, others: usize },
    /// The timestamp: what it says, and how long ago that is in milliseconds, if it says a time.
    Timestamp { places: String, text: Option<String>, age: Option<i128>, tolerance: Duration },
    /// The bytes that are signed: the template, and what its names stand for.
    Signed { template: String, values: Vec<Shown> },
    /// A secret, and whether it made the signature; `None` where it did not come to that.
    Secret { secret: usize, made: Option<bool> },
    /// What could be the matter, from trying it.
    Hint(&'static str),
    /// What came of the way: the secret that it was proved with, or why it refuses.
    Outcome { way: usize, outcome: Result<usize, String> },
    /// What comes of the request.
    Verdict(Result<usize, String>),
}

/// A value in what is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Its name in the template.
    pub(crate) name: String,
    /// How long it is; `None` where nothing is there.
    pub(crate) bytes: Option<usize>,
    /// Its first bytes as text; nothing of a secret.
    pub(crate) begins: String,
    /// Whether it goes on after that.
    pub(crate) cut: bool,
    /// Whether it is the secret, which is not shown.
    pub(crate) hidden: bool,
}

impl Ways {
    /// Everything that [`Ways::verify`] looks at in this request. The last step is the verdict.
    pub(crate) fn explain(&self, credentials: &[Credential], inquiry: &Inquiry<'_>) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut reasons = Vec::new();
        for (way, scheme) in self.iter().enumerate() {
            let algorithm = scheme.algorithm.as_str();
            let skipped = |why| Step::Skipped { way, algorithm, why };
            if let Some(why) = scheme.when.unmet(Scope::of(inquiry.request)) {
                steps.push(skipped(why));
                continue;
            }
            let key = |(secret, credential): (usize, &'_ Credential)| {
                credential.get(way).is_some_and(Option::is_some).then_some(secret)
            };
            let belonging: Vec<usize> = credentials.iter().enumerate().filter_map(key).collect();
            let keys: Vec<(usize, &Key)> = belonging
                .into_iter()
                .filter_map(|secret| Some((secret, credentials.get(secret)?.get(way)?.as_ref()?)))
                .collect();
            if keys.is_empty() && scheme.needs_secret() {
                let form = scheme.secrets.as_deref().map_or(String::new(), |form| format!(" of the form `{form}`"));
                steps.push(skipped(format!("there is no secret{form}")));
                continue;
            }
            steps.push(Step::Way { way, algorithm, places: scheme.places() });
            let outcome = scheme.explain(&keys, inquiry, &mut steps);
            if let Err(rejection) = &outcome {
                reasons.push((rejection.clone(), scheme.reason(rejection)));
            }
            let outcome = outcome.map_err(|rejection| scheme.reason(&rejection));
            steps.push(Step::Outcome { way, outcome });
        }
        let verdict = self.verify(credentials, inquiry).map(|genuine| genuine.secret).map_err(|rejection| {
            let precise = reasons.into_iter().rev().find(|(known, _)| *known == rejection);
            precise.map_or_else(|| rejection.to_string(), |(_, reason)| reason)
        });
        steps.push(Step::Verdict(verdict));
        steps
    }
}

impl Scheme {
    fn explain(
        &self,
        keys: &[(usize, &Key)],
        inquiry: &Inquiry<'_>,
        steps: &mut Vec<Step>,
    ) -> Result<usize, Rejection> {
        match &self.each {
            None => self.look(inquiry, None, steps),
            Some(list) => {
                let found = items(list, inquiry.request.body).unwrap_or_default();
                for (index, item) in found.iter().take(MAX_ITEMS).enumerate() {
                    steps.push(Step::Item { index, of: found.len() });
                    self.look(inquiry, Some(item), steps);
                }
            }
        }
        let secret = |key: &(usize, &Key)| Step::Secret { secret: key.0, made: self.was_made_with(key, inquiry) };
        steps.extend(keys.iter().map(secret));
        let outcome = self.verify(keys, inquiry);
        if matches!(outcome, Err(Rejection::Mismatch { .. })) {
            steps.extend(self.hint(keys, inquiry).map(Step::Hint));
        }
        outcome
    }

    /// What is at the places that the scheme looks at.
    fn look(&self, inquiry: &Inquiry<'_>, item: Option<&[u8]>, steps: &mut Vec<Step>) {
        let scope = Scope { request: inquiry.request, item, entries: &[] };
        let texts = self.texts(scope).unwrap_or_default();
        let entries = self.entries(&texts).unwrap_or_default();
        let scope = Scope { entries: &entries, ..scope };
        let is_known = |entry: &&&str| self.algorithm == Algorithm::Basic || entry.starts_with(&self.prefix);
        let known = entries.iter().filter(is_known).count();
        let (places, prefix) = (self.places(), self.prefix.clone());
        steps.push(Step::Signature { places, prefix, known, others: entries.len() - known });
        let timestamp = self.timestamp.as_ref().map(|places| (places, required(places, scope).ok()));
        if let Some((places, text)) = &timestamp {
            let sent = text.as_ref().and_then(|text| self.unit.read(text).ok());
            steps.push(Step::Timestamp {
                places: places.to_string(),
                text: text.as_ref().map(|text| begin(text.as_bytes(), MAX_SHOWN).0),
                age: sent.map(|sent| i128::from(unix_millis(inquiry.now)) - sent),
                tolerance: self.tolerance,
            });
        }
        if self.algorithm.is_code() {
            let text = timestamp.and_then(|(_, text)| text);
            let id = inquiry.id.and_then(|naming| naming.id(scope).ok().flatten());
            let values = Values { timestamp: text.as_deref(), id: id.as_deref(), ..Values::of(scope) };
            let values = self.signed.named(values).into_iter().filter_map(shown).collect();
            steps.push(Step::Signed { template: self.signed.to_string(), values });
        }
    }

    /// Whether the signature was made with this secret, whatever else is wrong.
    fn was_made_with(&self, key: &(usize, &Key), inquiry: &Inquiry<'_>) -> Option<bool> {
        // What stands at an address made the signature then, and the secret is only named by it.
        if !self.is_shared() && (self.jwks.is_some() || self.certificate.is_some()) {
            return None;
        }
        match self.verify(&[*key], inquiry) {
            Ok(_) | Err(Rejection::TooOld { .. } | Rejection::TooNew { .. } | Rejection::BodyHash) => Some(true),
            Err(Rejection::NotForUs(_)) => Some(true),
            Err(Rejection::Mismatch { .. }) => Some(false),
            Err(_) => None,
        }
    }

    /// Whether the signature would be right for what happens most often to a body on its way into a file.
    fn hint(&self, keys: &[(usize, &Key)], inquiry: &Inquiry<'_>) -> Option<&'static str> {
        let Request { method, endpoint, query, headers, body, .. } = inquiry.request;
        let right = |body: &[u8]| {
            let request = Request::new(method, endpoint, *query, headers, body);
            let inquiry = Inquiry { request: &request, ..*inquiry };
            keys.iter().any(|key| self.was_made_with(key, &inquiry) == Some(true))
        };
        let bare = body.trim_ascii_end();
        if bare.len() < body.len() && right(bare) {
            return Some("without the line end behind the body it matches: what was signed did not have it");
        }
        let longer = [*body, b"\n"].concat();
        right(&longer).then_some("with a line end behind the body it matches: what was signed had it")
    }

    /// A rejection in the words of this scheme.
    fn reason(&self, rejection: &Rejection) -> String {
        let is = |places: Option<String>, place: &str| places.is_some_and(|places| places == place);
        match rejection {
            Rejection::Missing(place) if *place == self.places() => format!("no signature: {rejection}"),
            Rejection::Missing(place) if is(self.timestamp.as_ref().map(ToString::to_string), place) => {
                format!("no timestamp: {rejection}")
            }
            Rejection::Unfetched { .. } => format!("{rejection}: only the gateway fetches it"),
            other => other.to_string(),
        }
    }
}

fn shown(named: Named<'_>) -> Option<Shown> {
    let Named { name, optional, part, value } = named;
    if part == Part::Secret {
        return Some(Shown { name, bytes: Some(0), begins: String::new(), cut: false, hidden: true });
    }
    if optional && value.is_none() {
        return None;
    }
    let length = value.as_ref().map_or(0, |value| value.len());
    let most = match part {
        // Never all of it, however short it is.
        Part::Body => MAX_BODY_SHOWN.min(length / 2),
        Part::OfBody => MAX_BODY_SHOWN,
        Part::Secret | Part::Other => MAX_SHOWN,
    };
    let (begins, cut) = value.as_deref().map_or((String::new(), false), |value| begin(value, most));
    Some(Shown { name, bytes: value.map(|_| length), begins, cut, hidden: false })
}

/// The first bytes as text, and whether there are more.
fn begin(bytes: &[u8], most: usize) -> (String, bool) {
    let first = &bytes[..bytes.len().min(most)];
    (String::from_utf8_lossy(first).into_owned(), bytes.len() > most)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use http::{HeaderMap, HeaderName, Method};

    use super::*;
    use crate::secret::Secret;
    use crate::signature::{Profile, Verify, Wish, preset};

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_760_000_000)
    }

    /// The steps for a request to a source with a preset.
    fn explain(preset: &str, secrets: &[&str], headers: &[(&str, &str)], body: &str) -> Vec<Step> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect();
        judge(&preset::find(preset).unwrap().profile, secrets, &headers, body.as_bytes())
    }

    fn judge(profile: &Profile, secrets: &[&str], headers: &HeaderMap, body: &[u8]) -> Vec<Step> {
        let Some(Verify::Ways(ways)) = &profile.verify else { panic!("nothing is verified") };
        let credentials: Vec<Credential> =
            secrets.iter().map(|secret| ways.credential(&Secret::new(*secret)).unwrap()).collect();
        let request = Request::new(&Method::POST, "https://hooks.example.com/hooks/a", None, headers, body);
        let inquiry = Inquiry { request: &request, id: profile.id.as_ref(), now: now(), documents: &|_| None };
        ways.explain(&credentials, &inquiry)
    }

    /// The headers of a genuine request with this body.
    fn genuine(preset: &str, secret: &str, body: &str, at: SystemTime) -> (Profile, HeaderMap) {
        let (profile, none) = (preset::find(preset).unwrap().profile, HeaderMap::new());
        let wish = Wish {
            profile: &profile,
            event_type: "x",
            id: "id-1",
            body: Some(body.as_bytes()),
            query: None,
            headers: &none,
            endpoint: "https://hooks.example.com/hooks/a",
            now: at,
            wrong: false,
        };
        let headers = wish.dress(Some(&Secret::new(secret))).unwrap().headers;
        (profile, headers)
    }

    fn verdict(steps: &[Step]) -> &Result<usize, String> {
        let Some(Step::Verdict(verdict)) = steps.last() else { panic!("no verdict: {steps:?}") };
        verdict
    }

    fn refused(steps: &[Step]) -> &str {
        verdict(steps).as_ref().unwrap_err()
    }

    #[test]
    fn a_genuine_request_is_followed_to_its_secret() {
        let (profile, headers) = genuine("slack", "right", "{\"a\":1}", now() - Duration::from_secs(14));
        let steps = judge(&profile, &["old", "right"], &headers, b"{\"a\":1}");
        let value = |name: &str, bytes: usize, begins: &str, cut| Shown {
            name: name.to_owned(),
            bytes: Some(bytes),
            begins: begins.to_owned(),
            cut,
            hidden: false,
        };
        let places = "header:x-slack-signature".to_owned();
        assert_eq!(
            steps,
            [
                Step::Way { way: 0, algorithm: "hmac-sha256", places: places.clone() },
                Step::Signature { places, prefix: "v0=".to_owned(), known: 1, others: 0 },
                Step::Timestamp {
                    places: "header:x-slack-request-timestamp".to_owned(),
                    text: Some("1759999986".to_owned()),
                    age: Some(14_000),
                    tolerance: Duration::from_secs(300),
                },
                Step::Signed {
                    template: "v0:{timestamp}:{body}".to_owned(),
                    values: vec![value("timestamp", 10, "1759999986", false), value("body", 7, "{\"a", true)],
                },
                Step::Secret { secret: 0, made: Some(false) },
                Step::Secret { secret: 1, made: Some(true) },
                Step::Outcome { way: 0, outcome: Ok(1) },
                Step::Verdict(Ok(1)),
            ]
        );
    }

    #[test]
    fn a_refusal_is_precise() {
        let v0 = ("x-slack-signature", "v0=00");
        let time = ("x-slack-request-timestamp", "1760000000");
        for (headers, expected) in [
            (&[][..], "no signature: nothing at `header:x-slack-signature`"),
            (&[v0], "no timestamp: nothing at `header:x-slack-request-timestamp`"),
            (&[v0, time], "mismatch with all 2 secrets"),
            (&[("x-slack-signature", "v9=00"), time], "no signature with a known version"),
            (&[("x-slack-signature", "v0=xyz"), time], "is malformed: it is not lower-case hexadecimal"),
        ] {
            let steps = explain("slack", &["one", "two"], headers, "{}");
            assert!(refused(&steps).contains(expected), "{expected}: {steps:?}");
        }
        let (profile, headers) = genuine("slack", "one", "{}", now() - Duration::from_secs(712));
        let steps = judge(&profile, &["one"], &headers, b"{}");
        assert_eq!(refused(&steps), "too old by 412 s");
        assert!(steps.contains(&Step::Secret { secret: 0, made: Some(true) }), "{steps:?}");
    }

    #[test]
    fn a_way_that_does_not_apply_says_why() {
        let steps = explain("gitlab", &["a token"], &[("x-gitlab-token", "another")], "{}");
        let why = "there is no secret of the form `whsec_*`".to_owned();
        assert_eq!(steps[0], Step::Skipped { way: 0, algorithm: "hmac-sha256", why });
        assert_eq!(refused(&steps), "mismatch with the only secret");

        let steps = explain("box", &["a"], &[], "{}");
        let why = "`header:box-signature-algorithm` is not `HmacSHA256`".to_owned();
        assert_eq!(steps[0], Step::Skipped { way: 0, algorithm: "hmac-sha256", why });
        assert!(refused(&steps).starts_with("no way of proving itself applies"), "{steps:?}");
    }

    #[test]
    fn a_line_end_that_a_file_gained_or_lost_is_found() {
        for (signed, sent) in [("{}", "{}\n"), ("{}\n", "{}"), ("{}", "{}\r\n")] {
            let (profile, headers) = genuine("github", "s", signed, now());
            let steps = judge(&profile, &["s"], &headers, sent.as_bytes());
            assert!(steps.iter().any(|step| matches!(step, Step::Hint(_))), "{signed:?} {sent:?}: {steps:?}");
        }
        let (profile, headers) = genuine("github", "s", "{}", now());
        let steps = judge(&profile, &["s"], &headers, b"{ }");
        assert!(!steps.iter().any(|step| matches!(step, Step::Hint(_))), "{steps:?}");
    }

    #[test]
    fn no_step_holds_a_secret_or_a_whole_body() {
        let body = format!("{{\"text\":\"{}\"}}", "x".repeat(100));
        for (preset, secret) in [("hubspot-v1", "s3cret"), ("gitlab", "s3cret"), ("postmark", "user:s3cret")] {
            let (profile, headers) = genuine(preset, secret, &body, now());
            let steps = judge(&profile, &[secret], &headers, body.as_bytes());
            assert_eq!(*verdict(&steps), Ok(0));
            let printed = format!("{steps:?}");
            assert!(!printed.contains("s3cret") && !printed.contains(&"x".repeat(30)), "{printed}");
        }
    }
}
