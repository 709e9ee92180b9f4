//! What a source makes of a request, in lines for a person: the printed side of `send --explain`.
//!
//! Everything is decided by the code that the gateway runs; here it only becomes text. No line holds a secret:
//! values from the request are masked, because some providers send the secret itself.

use std::time::{Duration, SystemTime};

use http::header::CONTENT_TYPE;

use super::{say, visible};
use crate::clock::rfc3339;
use crate::event::Request;
use crate::event::place::Scope;
use crate::secret::Secret;
use crate::signature::{Credential, Inquiry, Profile, Shown, Step, Verify};

/// The shortest beginning of a secret that is masked where a value was cut.
const MIN_MASKED: usize = 4;

/// What a request is explained with.
pub(super) struct Known<'a> {
    pub(super) profile: &'a Profile,
    /// Where each secret is, and what it is.
    pub(super) secrets: &'a [(String, Secret)],
    /// The same, prepared for each way.
    pub(super) credentials: &'a [Credential],
    /// What must not be printed either.
    pub(super) hidden: &'a [Secret],
    pub(super) now: SystemTime,
}

/// Prints what the source makes of a request.
pub(super) fn print(known: &Known<'_>, request: &Request<'_>) {
    known.lines(request).iter().for_each(|line| say(line));
}

impl Known<'_> {
    fn lines(&self, request: &Request<'_>) -> Vec<String> {
        let names: Vec<&str> = request.headers.keys().map(|name| name.as_str()).collect();
        let mut lines = vec![
            line("request", &format!("{} with a body of {} bytes", request.method, request.body.len())),
            line("headers", &names.join(", ")),
            line("judged", &format!("at {}", rfc3339(self.now))),
        ];
        lines.extend(self.before(request).map(|text| line("before", &text)));
        match &self.profile.verify {
            Some(Verify::Ways(ways)) => {
                let id = self.profile.id.as_ref();
                let inquiry = Inquiry { request, id, now: self.now, documents: &|_| None };
                lines.extend(ways.explain(self.credentials, &inquiry).iter().flat_map(|step| self.step(step)));
            }
            Some(Verify::None) | None => lines.push(line("verdict", "taken: verify = \"none\" asks for no proof")),
        }
        lines.extend(self.after(request));
        lines
    }

    /// What decides about the request before anything is verified.
    fn before(&self, request: &Request<'_>) -> Option<String> {
        let profile = self.profile;
        let unverified = profile.handshakes().iter().find(|rule| !rule.verified && rule.fits(request));
        if let Some(rule) = unverified {
            return Some(format!("handshake `{}` answers this; nothing is verified or published", rule.name));
        }
        let taken = profile.handshakes().iter().any(|rule| rule.takes(request.method));
        if !taken && !profile.event_methods().contains(request.method) {
            return Some(format!("method {} is answered 405", request.method));
        }
        let types = profile.content_types.as_ref()?;
        let said = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let bare = said.split(';').next().unwrap_or_default().trim();
        let refused = !types.iter().any(|taken| taken.eq_ignore_ascii_case(bare));
        refused.then(|| format!("content type `{}` is answered 415: taken are {}", self.shown(bare), types.join(", ")))
    }

    /// What a genuine request is.
    fn after(&self, request: &Request<'_>) -> Vec<String> {
        let (profile, scope) = (self.profile, Scope::of(request));
        if let Some(rule) = profile.handshakes().iter().find(|rule| rule.verified && rule.fits(request)) {
            return vec![line("then", &format!("handshake `{}` answers it; nothing is published", rule.name))];
        }
        let event_type = profile.event_type.as_ref().and_then(|of| of.event_type(scope));
        let id = profile.id.as_ref().and_then(|of| of.id(scope).ok().flatten());
        let text = |found: Option<&str>, none: &str| found.map_or(none.to_owned(), |found| self.shown(found));
        vec![
            line("type", &text(event_type.as_deref(), "none found: unknown")),
            line("id", &text(id.as_deref(), "none found: by body")),
        ]
    }

    fn step(&self, step: &Step) -> Vec<String> {
        match step {
            Step::Skipped { way, algorithm, why } => {
                vec![line(&format!("way {}", way + 1), &format!("{algorithm}: does not apply, {why}"))]
            }
            Step::Way { way, algorithm, places } => {
                vec![line(&format!("way {}", way + 1), &format!("{algorithm} at {places}"))]
            }
            Step::Item { index, of } => vec![inner("item", &format!("{} of {of}", index + 1))],
            Step::Signature { places, prefix, known, others } => vec![signature(places, prefix, *known, *others)],
            Step::Timestamp { places, text, age, tolerance } => {
                vec![inner("timestamp", &self.timestamp(places, text.as_deref(), *age, *tolerance))]
            }
            Step::Signed { template, values } => {
                let value = |shown: &Shown| inner("", &format!("{{{}}} = {}", shown.name, self.value(shown)));
                let template = inner("signed", &format!("{template:?}"));
                std::iter::once(template).chain(values.iter().map(value)).collect()
            }
            Step::Secret { secret, made } => {
                let place = self.secrets.get(*secret).map_or("", |(place, _)| place.as_str());
                let made = match made {
                    Some(true) => "match",
                    Some(false) => "no match",
                    None => "not compared",
                };
                vec![inner(&format!("secret {}", secret + 1), &format!("{place}: {made}"))]
            }
            Step::Hint(text) => vec![inner("hint", text)],
            Step::Outcome { outcome: Ok(_), .. } => vec![inner("accepts", "")],
            Step::Outcome { outcome: Err(reason), .. } => vec![inner("refuses", reason)],
            Step::Verdict(Ok(secret)) => {
                let place = self.secrets.get(*secret).map_or(String::new(), |(place, _)| format!(", by {place}"));
                vec![line("verdict", &format!("genuine{place}"))]
            }
            Step::Verdict(Err(reason)) => vec![line("verdict", &format!("refused: {reason}"))],
        }
    }

    fn timestamp(&self, places: &str, text: Option<&str>, age: Option<i128>, tolerance: Duration) -> String {
        let Some(text) = text else { return format!("nothing at {places}") };
        let allowed = humantime::format_duration(tolerance);
        let distance = match age {
            None => "which is no time in the form that is expected".to_owned(),
            Some(age) if age < 0 => format!("{} s ahead of now; {allowed} is allowed", seconds(-age)),
            Some(age) => format!("{} s ago; {allowed} is allowed", seconds(age)),
        };
        format!("`{}` at {places}, {distance}", self.shown(text))
    }

    fn value(&self, shown: &Shown) -> String {
        let Some(bytes) = shown.bytes else { return "nothing".to_owned() };
        if shown.hidden {
            return "***".to_owned();
        }
        let begins = self.shown(&shown.begins);
        if shown.cut { format!("{bytes} bytes that begin with `{begins}`") } else { format!("`{begins}`") }
    }

    /// A value from the request, without secrets and without what would steer the terminal.
    fn shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.secrets.iter().map(|(_, secret)| secret).chain(self.hidden) {
            mask(&mut text, &String::from_utf8_lossy(secret.expose()));
        }
        visible(&text).replace(['\n', '\t'], " ")
    }
}

fn line(label: &str, text: &str) -> String {
    format!("{label:<10} {text}")
}

fn inner(label: &str, text: &str) -> String {
    format!("  {label:<10} {text}").trim_end().to_owned()
}

fn signature(places: &str, prefix: &str, known: usize, others: usize) -> String {
    let form = if prefix.is_empty() { String::new() } else { format!(" that begin with `{prefix}`") };
    let others = if others == 0 { String::new() } else { format!(", and {others} other") };
    inner("signature", &format!("{known}{form} at {places}{others}"))
}

fn seconds(millis: i128) -> String {
    let (whole, rest) = (millis / 1000, millis % 1000);
    if rest == 0 { whole.to_string() } else { format!("{whole}.{rest:03}") }
}

/// Takes a secret out of a text, also where only its beginning was left of it.
fn mask(text: &mut String, secret: &str) {
    if secret.is_empty() {
        return;
    }
    *text = text.replace(secret, "***");
    let ends = |length: &usize| secret.is_char_boundary(*length) && text.ends_with(&secret[..*length]);
    if let Some(length) = (MIN_MASKED..secret.len()).rev().find(ends) {
        text.truncate(text.len() - length);
        text.push_str("***");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_masked_also_where_it_was_cut() {
        for (text, expected) in [
            ("{\"token\":\"s3cret-value\"}", "{\"token\":\"***\"}"),
            ("{\"token\":\"s3cret-v", "{\"token\":\"***"),
            ("{\"token\":\"s3c", "{\"token\":\"s3c"),
            ("nothing", "nothing"),
        ] {
            let mut masked = text.to_owned();
            mask(&mut masked, "s3cret-value");
            assert_eq!(masked, expected);
        }
    }
}
