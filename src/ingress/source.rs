//! A configured source, prepared for use.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, Method};
use prometheus_client::metrics::counter::Counter;
use subtle::ConstantTimeEq;
use url::Url;

use super::capture::Captured;
use super::dedupe::RecentBodies;
use super::quarantine::Ward;
use super::source_limits::SourceLimits;
use crate::config::{self, Config};
use crate::event::place::{Ambiguous, Scope};
use crate::event::{Name, Request, id};
use crate::secret::{KeyError, KeyRing, Reload, Secret, SecretRef};
use crate::signature::{
    Credential, Document, Genuine, Handshake, Inquiry, Known, Profile, Refusal, Rejection, Reply, Verify, Ways,
    is_challenge, matches,
};
use crate::telemetry::Metrics;
use crate::telemetry::logs::Seldom;
use crate::telemetry::metrics::RequestLabels;

/// For how long equal bodies without a delivery id are one event, unless somebody says otherwise.
const DEDUPE_HASH_WINDOW: Duration = Duration::from_secs(300);

/// All sources, by name.
#[derive(Clone)]
pub(crate) struct Sources(Arc<BTreeMap<Name, Source>>);

/// One source.
pub(super) struct Source {
    pub(super) name: Name,
    pub(super) profile: Profile,
    proof: Proof,
    /// The secrets as they are, for handshakes that answer with a code.
    secrets: Option<Arc<KeyRing<Secret>>>,
    /// The public URL without path token and query; empty where nobody said it.
    endpoint: String,
    path_token: Option<Arc<KeyRing<Secret>>>,
    verify_token: Option<Arc<KeyRing<Secret>>>,
    /// Where the provider's own secret is kept, for those that choose it.
    pub(super) captured: Option<Captured>,
    /// The methods that are taken at all, for events and handshakes.
    pub(super) methods: Vec<Method>,
    event_methods: Vec<Method>,
    signs_for_strangers: bool,
    pub(super) max_body: Option<usize>,
    pub(super) types: Vec<String>,
    pub(super) split: bool,
    pub(super) recent: RecentBodies,
    pub(super) headers: Vec<HeaderName>,
    pub(super) limits: SourceLimits,
    /// Strangers decide how often handshakes are asked for.
    pub(super) said_handshake: Seldom,
    /// How what is rejected is kept, if it is.
    pub(super) quarantine: Option<Arc<Ward>>,
    /// Counters that every stored webhook touches, looked up once.
    pub(super) stored: Counter,
    pub(super) duplicate: Counter,
}

/// How a request proves itself.
enum Proof {
    None,
    Ways { ways: Ways, credentials: Arc<KeyRing<Credential>> },
}

impl Sources {
    pub(super) fn new(config: &Config, metrics: &Metrics) -> Result<Self, (String, KeyError)> {
        let prepare = |(name, source): (&Name, &config::Source)| {
            let prepared =
                Source::new(config, name, source, metrics).map_err(|error| (format!("sources.{name}"), error))?;
            Ok((name.clone(), prepared))
        };
        config.sources.iter().map(prepare).collect::<Result<_, _>>().map(|sources| Self(Arc::new(sources)))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Source> {
        self.0.get(name)
    }

    pub(super) fn secrets(&self) -> Vec<Arc<dyn Reload>> {
        let mut secrets: Vec<Arc<dyn Reload>> = Vec::new();
        for source in self.0.values() {
            if let Proof::Ways { credentials, .. } = &source.proof {
                secrets.push(credentials.clone());
            }
            if let Some(ring) = &source.secrets {
                secrets.push(ring.clone());
            }
            for token in [&source.path_token, &source.verify_token].into_iter().flatten() {
                secrets.push(token.clone());
            }
            secrets.extend(source.quarantine.as_ref().map(|ward| ward.secrets.clone() as Arc<dyn Reload>));
        }
        secrets
    }
}

impl Source {
    fn new(config: &Config, name: &Name, source: &config::Source, metrics: &Metrics) -> Result<Self, KeyError> {
        let counted = |outcome| {
            let labels = RequestLabels { source: name.to_string(), outcome };
            metrics.requests.get_or_create_owned(&labels)
        };
        let profile = source.profile();
        let captures = profile.handshakes().iter().any(Handshake::captures);
        let answers = profile.handshakes().iter().any(Handshake::needs_secret);
        let secrets = answers.then(|| KeyRing::load(source.secrets.clone(), as_it_is).map(Arc::new)).transpose()?;
        let proof = match &profile.verify {
            Some(Verify::Ways(ways)) => {
                let of_secret = ways.clone();
                let prepare = move |secret: &Secret| of_secret.credential(secret);
                let credentials = match captures {
                    true => KeyRing::load_present(source.secrets.clone(), prepare),
                    false => KeyRing::load(source.secrets.clone(), prepare),
                };
                Proof::Ways { ways: ways.clone(), credentials: Arc::new(credentials?) }
            }
            Some(Verify::None) | None => Proof::None,
        };
        let token = |secret: &Option<SecretRef>| {
            secret.clone().map(|secret| KeyRing::load(vec![secret], as_it_is).map(Arc::new)).transpose()
        };
        let event_methods = profile.event_methods();
        let mut methods = event_methods.clone();
        for handshake in profile.handshakes() {
            methods.extend(handshake.methods().filter_map(|method| method.parse().ok()));
        }
        methods.sort_by(|left: &Method, right| left.as_str().cmp(right.as_str()));
        methods.dedup();
        Ok(Self {
            name: name.clone(),
            endpoint: source.endpoint(name, config.gateway.public_url.as_ref()).unwrap_or_default(),
            proof,
            secrets,
            path_token: token(&source.path_token)?,
            verify_token: token(&source.verify_token)?,
            captured: source
                .secrets
                .iter()
                .find_map(|secret| secret.reference().file())
                .filter(|_| captures)
                .map(Captured::new),
            methods,
            event_methods,
            signs_for_strangers: profile.handshakes().iter().any(Handshake::signs_for_strangers),
            max_body: profile.max_body.map(|max| usize::try_from(max.as_u64()).unwrap_or(usize::MAX)),
            types: source.types.clone(),
            split: source.split,
            recent: RecentBodies::new(profile.dedupe_hash_window.unwrap_or(DEDUPE_HASH_WINDOW)),
            headers: source.headers.clone(),
            limits: SourceLimits::new(source),
            said_handshake: Seldom::default(),
            quarantine: source
                .quarantine
                .then(|| Ward::new(name, source, &profile, metrics).map(Arc::new))
                .transpose()?,
            stored: counted("stored"),
            duplicate: counted("duplicate"),
            profile,
        })
    }

    /// Whether the path is this source's: with its token where it has one, without where it has none.
    pub(super) fn is_at(&self, token: Option<&str>) -> bool {
        match (&self.path_token, token) {
            (None, None) => true,
            (Some(ring), Some(token)) => {
                ring.keys().iter().any(|expected| bool::from(expected.expose().ct_eq(token.as_bytes())))
            }
            _ => false,
        }
    }

    /// The public URL that a request was sent to, without its query.
    pub(super) fn endpoint(&self, token: Option<&str>) -> Cow<'_, str> {
        match token {
            Some(token) if !self.endpoint.is_empty() => format!("{}/{token}", self.endpoint).into(),
            _ => Cow::Borrowed(&self.endpoint),
        }
    }

    /// Whether the request is genuine. What no signature is asked for proves nothing, and is taken.
    pub(super) fn verify(
        &self,
        request: &Request<'_>,
        now: SystemTime,
        documents: &dyn Fn(&str) -> Option<Arc<Document>>,
    ) -> Result<Option<Genuine>, Rejection> {
        match &self.proof {
            Proof::None => Ok(None),
            // Whoever asked for a handshake's code holds the signature of such a body.
            Proof::Ways { credentials, .. } if self.signs_for_strangers && is_challenge(request.body) => {
                Err(Rejection::Mismatch { secrets: credentials.keys().len() })
            }
            Proof::Ways { ways, credentials } => {
                let inquiry = Inquiry { request, id: self.profile.id.as_ref(), now, documents };
                ways.verify(&credentials.at(now), &inquiry).map(Some)
            }
        }
    }

    /// The addresses of the key sets that tokens are checked with.
    pub(super) fn key_sets(&self) -> impl Iterator<Item = &Url> {
        self.profile.schemes().filter_map(|scheme| scheme.jwks.as_ref())
    }

    /// The handshake that a request is, if it is one: of those that must prove themselves, or of the others.
    pub(super) fn handshake(&self, request: &Request<'_>, verified: bool) -> Option<&Handshake> {
        self.profile.handshakes().iter().find(|rule| rule.verified == verified && rule.fits(request))
    }

    /// The answer to a handshake; `genuine` is with which secret it was proved.
    pub(super) fn shake(
        &self,
        rule: &Handshake,
        request: &Request<'_>,
        genuine: Option<&Genuine>,
        now: SystemTime,
    ) -> Result<Reply, Refusal> {
        // A position that was found among the secrets of this time.
        let (secrets, tokens) =
            (self.secrets.as_ref().map(|ring| ring.at(now)), self.verify_token.as_ref().map(|ring| ring.keys()));
        let known = Known {
            verify_token: tokens.as_ref().and_then(|tokens| tokens.first()),
            secret: secrets.as_ref().and_then(|secrets| secrets.get(genuine.map_or(0, |genuine| genuine.secret))),
        };
        rule.answer(request, known)
    }

    /// Whether the source has a secret to verify with.
    pub(super) fn has_secret(&self) -> bool {
        matches!(&self.proof, Proof::Ways { credentials, .. } if !credentials.keys().is_empty())
    }

    /// Whether a secret has a form that the source can verify with.
    pub(super) fn can_use(&self, secret: &Secret) -> bool {
        matches!(&self.proof, Proof::Ways { ways, .. } if ways.credential(secret).is_ok())
    }

    /// Reads the secrets again after one was captured.
    pub(super) fn reload(&self) -> Result<(), KeyError> {
        if let Some(ward) = &self.quarantine {
            ward.secrets.reload()?;
        }
        match &self.proof {
            Proof::Ways { credentials, .. } => credentials.reload().map(|_| ()),
            Proof::None => Ok(()),
        }
    }

    /// Whether a request by this method can be anything but a handshake that needs no proof.
    pub(super) fn takes_proof_by(&self, method: &Method) -> bool {
        let proved = |rule: &Handshake| rule.verified && rule.takes(method);
        self.takes_events_by(method) || self.profile.handshakes().iter().any(proved)
    }

    /// Whether the method carries events.
    pub(super) fn takes_events_by(&self, method: &Method) -> bool {
        self.event_methods.contains(method)
    }

    /// Whether a content type is taken.
    pub(super) fn takes_content_type(&self, value: Option<&str>) -> bool {
        let Some(taken) = &self.profile.content_types else { return true };
        let bare = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        taken.iter().any(|taken| taken.eq_ignore_ascii_case(bare))
    }

    /// Whether events of this type are published.
    pub(super) fn wants(&self, event_type: Option<&str>) -> bool {
        let event_type = event_type.unwrap_or("unknown");
        self.types.is_empty() || self.types.iter().any(|pattern| matches(pattern, event_type))
    }

    /// The type of a request.
    pub(super) fn event_type(&self, request: &Request<'_>) -> Option<String> {
        self.profile.event_type.as_ref()?.event_type(Scope::of(request))
    }

    /// The provider's own delivery id. Two of them are none, and refused: a choice between them would be the
    /// sender's.
    pub(super) fn provider_id(&self, request: &Request<'_>) -> Result<Option<String>, Rejection> {
        let Some(naming) = &self.profile.id else { return Ok(None) };
        let found = naming.id(Scope::of(request)).map_err(|Ambiguous| Rejection::Ambiguous(naming.to_string()))?;
        Ok(found.and_then(|found| id::provider(&found)))
    }
}

fn as_it_is(secret: &Secret) -> Result<Secret, String> {
    Ok(secret.clone())
}
