//! Providers whose scheme is known: one readable file each under `presets/`, compiled in.

use figment::Figment;
use figment::providers::{Format, Toml};
use serde::Deserialize;

use super::Scheme;
use crate::event::Place;

/// Every preset, by the name that configurations use.
const FILES: [(&str, &str); 2] = [
    ("github", include_str!("../../presets/github.toml")),
    ("standard-webhooks", include_str!("../../presets/standard-webhooks.toml")),
];

/// What is known of a provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// Where the facts are from.
    pub source: String,
    /// Where the event type is; several places are joined by dots.
    #[serde(rename = "type", default)]
    pub event_type: Vec<Place>,
    /// Where the delivery id is.
    #[serde(default)]
    pub id: Option<Place>,
    /// How requests are signed.
    pub verify: Scheme,
}

/// The names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The preset of this name.
pub fn find(name: &str) -> Option<Preset> {
    let (_, text) = FILES.iter().find(|(known, _)| *known == name)?;
    // The files are part of the binary, and a test reads every one of them.
    Figment::from(Toml::string(text)).extract().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_readable_and_can_verify() {
        for (name, text) in FILES {
            let preset: Preset = Figment::from(Toml::string(text)).extract().unwrap();
            preset.verify.validate(preset.id.as_ref()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(find(name).is_some());
        }
    }
}
