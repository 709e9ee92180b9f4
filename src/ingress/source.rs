//! A configured source, prepared for use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderName;
use prometheus_client::metrics::counter::Counter;
use subtle::ConstantTimeEq;

use super::dedupe::RecentBodies;
use super::source_limits::SourceLimits;
use crate::config::{self, Config, Verify};
use crate::event::place::Parts;
use crate::event::subject::MAX_TYPE_BYTES;
use crate::event::{Name, Place};
use crate::secret::{KeyError, KeyRing, Reload, Secret};
use crate::signature::{Key, Rejection, Scheme};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::RequestLabels;

/// All sources, by name.
#[derive(Clone)]
pub(crate) struct Sources(Arc<BTreeMap<Name, Source>>);

/// One source.
pub(super) struct Source {
    pub(super) name: Name,
    proof: Proof,
    path_token: Option<Arc<KeyRing<Secret>>>,
    event_type: Vec<Place>,
    id: Option<Place>,
    pub(super) recent: RecentBodies,
    pub(super) headers: Vec<HeaderName>,
    pub(super) limits: SourceLimits,
    /// Counters that every stored webhook touches, looked up once.
    pub(super) stored: Counter,
    pub(super) duplicate: Counter,
}

/// How a request proves itself.
enum Proof {
    None,
    Signature { scheme: Box<Scheme>, keys: Arc<KeyRing<Key>> },
}

impl Sources {
    pub(super) fn new(config: &Config, metrics: &Metrics) -> Result<Self, (String, KeyError)> {
        let prepare = |(name, source): (&Name, &config::Source)| {
            let prepared = Source::new(name, source, metrics).map_err(|error| (format!("sources.{name}"), error))?;
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
            if let Proof::Signature { keys, .. } = &source.proof {
                secrets.push(keys.clone());
            }
            if let Some(token) = &source.path_token {
                secrets.push(token.clone());
            }
        }
        secrets
    }
}

impl Source {
    fn new(name: &Name, source: &config::Source, metrics: &Metrics) -> Result<Self, KeyError> {
        let counted = |outcome| {
            let labels = RequestLabels { source: name.to_string(), outcome };
            metrics.requests.get_or_create_owned(&labels)
        };
        let scheme = match &source.verify {
            Some(Verify::None) => None,
            Some(Verify::Scheme(scheme)) => Some((**scheme).clone()),
            None => source.find_preset().map(|preset| preset.verify),
        };
        let proof = match scheme {
            None => Proof::None,
            Some(scheme) => {
                let of_secret = scheme.clone();
                let keys = KeyRing::load(source.secrets.clone(), move |secret| of_secret.key(secret))?;
                Proof::Signature { scheme: Box::new(scheme), keys: Arc::new(keys) }
            }
        };
        let token = source.path_token.clone();
        let token = token.map(|token| KeyRing::load(vec![token], |secret| Ok(secret.clone()))).transpose()?;
        Ok(Self {
            name: name.clone(),
            proof,
            path_token: token.map(Arc::new),
            event_type: source.type_places(),
            id: source.id_place(),
            recent: RecentBodies::new(source.dedupe_hash_window),
            headers: source.headers.clone(),
            limits: SourceLimits::new(source),
            stored: counted("stored"),
            duplicate: counted("duplicate"),
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

    /// Whether the request is genuine.
    pub(super) fn verify(&self, parts: Parts<'_>, now: SystemTime) -> Result<(), Rejection> {
        match &self.proof {
            Proof::None => Ok(()),
            Proof::Signature { scheme, keys } => scheme.verify(&keys.keys(), self.id.as_ref(), parts, now),
        }
    }

    /// The event type: what is found at the places, joined by dots.
    pub(super) fn event_type(&self, parts: Parts<'_>) -> Option<String> {
        let found: Vec<_> = self.event_type.iter().filter_map(|place| place.find(parts)).collect();
        let mut joined = found.join(".");
        joined.truncate(joined.floor_char_boundary(MAX_TYPE_BYTES));
        (!joined.is_empty()).then_some(joined)
    }

    /// The provider's own delivery id.
    pub(super) fn provider_id(&self, parts: Parts<'_>) -> Option<String> {
        crate::event::id::provider(&self.id.as_ref()?.find(parts)?)
    }
}
