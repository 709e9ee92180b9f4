//! Requests to measure with: one of about 1 KB for every preset with a shared key, signed as its provider does.

use std::time::{Duration, SystemTime};

use hookbridge::secret::Secret;
use hookbridge::signature::{KeyForm, Profile, Sample, Scheme, Verifier, Verify, preset, sample};

/// The time of all requests.
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_760_000_000)
}

/// One preset, its verifier, and a request that it accepts.
pub struct Case {
    /// The preset's name.
    pub name: &'static str,
    /// The way that the request is signed in.
    pub scheme: Scheme,
    /// Verifies it.
    pub verifier: Verifier,
    /// The request.
    pub sample: Sample,
}

/// The public URL that the requests were sent to.
pub const ENDPOINT: &str = "https://hooks.example.com/in";

/// Every preset whose first way is an HMAC, with a request whose body has about `size` bytes.
pub fn cases(size: usize) -> Vec<Case> {
    preset::names().filter_map(|name| case(name, size)).collect()
}

/// One preset.
pub fn case(name: &'static str, size: usize) -> Option<Case> {
    let profile = preset::find(name)?.profile;
    let Some(Verify::Ways(ways)) = profile.verify.clone() else { return None };
    let scheme = ways.iter().find(|scheme| scheme.algorithm.is_hmac())?.clone();
    let secret = Secret::new(match scheme.key {
        KeyForm::Hex => "27661d3128f81b2d5047c15b77fbed62".repeat(2),
        KeyForm::Base64 => "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
        KeyForm::Whsec => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned(),
        KeyForm::Text | KeyForm::Sha1 => "It's a Secret to Everybody".to_owned(),
    });
    let json = format!("{{\"type\":\"a.b\",\"id\":\"evt_1\",\"pad\":\"{}\"}}", "x".repeat(size.saturating_sub(40)));
    let fields = (0..size / 32).map(|n| format!("Field{n:03}=some+value+of+it%21&")).collect::<String>();
    let made = [json.as_bytes(), fields.trim_end_matches('&').as_bytes()]
        .into_iter()
        .find_map(|body| dressed(&profile, &secret, body))?;
    let verifier = Verifier::new(ways, &[secret], profile.id.clone()).ok()?;
    Some(Case { name, scheme, verifier, sample: made })
}

fn dressed(profile: &Profile, secret: &Secret, body: &[u8]) -> Option<Sample> {
    sample(profile, secret, body, ENDPOINT, now()).ok()
}

impl Case {
    /// Verifies the request once.
    pub fn verify(&self) -> bool {
        let Sample { method, query, headers, body, .. } = &self.sample;
        let request = hookbridge::event::Request::new(method, ENDPOINT, query.as_deref(), headers, body);
        self.verifier.verify(&request, now()).is_ok()
    }
}
