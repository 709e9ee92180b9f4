//! Providers whose scheme is known: one readable file each under `presets/`, compiled in.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use bytesize::ByteSize;
use figment::Figment;
use figment::providers::{Format, Toml};
use serde::Deserialize;

use super::profile::{Answer, Batch, Naming, Profile, Verify};
use super::{Handshake, preset_files};

/// What is known of a provider, and from where.
#[derive(Clone, Debug)]
pub struct Preset {
    /// Where the facts are from.
    pub about: About,
    /// What a source of this provider says.
    pub profile: Profile,
}

/// Where the facts of a preset are from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The provider's page, or its own library.
    pub facts: String,
    /// How certain they are.
    pub certainty: Certainty,
    /// Whether strangers can do harm who know the URL, so that it should be a secret.
    #[serde(default)]
    pub path_token: bool,
    /// Other names for the same form.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// How certain the facts of a preset are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// From the provider's own documentation, library or published example.
    Provider,
    /// From other gateways' catalogues.
    Catalogue,
    /// From general knowledge; check it before money depends on it.
    General,
}

impl Certainty {
    /// Its word, as preset files have it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Catalogue => "catalogue",
            Self::General => "general",
        }
    }

    /// The same in a sentence.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Provider => "from the provider's own documentation, library or published example",
            Self::Catalogue => "from other gateways' catalogues: compare a real request before money depends on it",
            Self::General => "from general knowledge: compare a real request before anything depends on it",
        }
    }
}

/// A preset file: what a source may say, and where the facts are from.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: About,
    #[serde(rename = "type", default)]
    event_type: Option<Naming>,
    #[serde(default)]
    id: Option<Naming>,
    verify: Verify,
    #[serde(default)]
    handshake: Option<Vec<Handshake>>,
    #[serde(default)]
    answer: Option<Answer>,
    #[serde(default, with = "humantime_serde")]
    dedupe_hash_window: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    answer_within: Option<Duration>,
    #[serde(default)]
    batch: Option<Batch>,
    #[serde(default)]
    methods: Option<Vec<String>>,
    #[serde(default)]
    content_types: Option<Vec<String>>,
    #[serde(default)]
    max_body: Option<ByteSize>,
}

/// Every name, aliases included, and the file that it stands for.
static NAMES: LazyLock<BTreeMap<String, usize>> = LazyLock::new(|| {
    let mut names = BTreeMap::new();
    for (position, (name, text)) in preset_files::FILES.iter().enumerate() {
        names.insert((*name).to_owned(), position);
        // The files are part of the binary, and a test reads every one of them.
        let about = Figment::from(Toml::string(text)).extract_inner::<About>("about");
        for alias in about.map(|about| about.aliases).unwrap_or_default() {
            names.insert(alias, position);
        }
    }
    names
});

/// The names of all presets, aliases included, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    NAMES.keys().map(String::as_str)
}

/// The names of all presets without aliases, in alphabetical order.
pub(crate) fn own_names() -> impl Iterator<Item = &'static str> {
    preset_files::FILES.iter().map(|(name, _)| *name)
}

/// The preset of this name.
pub fn find(name: &str) -> Option<Preset> {
    read(text(name)?).ok()
}

/// The file of a preset, as it is written.
pub fn text(name: &str) -> Option<&'static str> {
    NAMES.get(name).and_then(|position| preset_files::FILES.get(*position)).map(|(_, text)| *text)
}

fn read(text: &str) -> Result<Preset, Box<figment::Error>> {
    let file: File = Figment::from(Toml::string(text)).extract()?;
    let profile = Profile {
        event_type: file.event_type,
        id: file.id,
        verify: Some(file.verify),
        handshake: file.handshake,
        answer: file.answer,
        dedupe_hash_window: file.dedupe_hash_window,
        answer_within: file.answer_within,
        batch: file.batch,
        methods: file.methods,
        content_types: file.content_types,
        max_body: file.max_body,
    };
    Ok(Preset { about: file.about, profile })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_preset_is_readable_and_can_verify() {
        for (name, text) in preset_files::FILES {
            let preset = read(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            for scheme in preset.profile.schemes() {
                scheme.validate(preset.profile.id.as_ref()).unwrap_or_else(|error| panic!("{name}: {error}"));
            }
            for handshake in preset.profile.handshakes() {
                handshake.validate().unwrap_or_else(|error| panic!("{name}: {}: {error}", handshake.name));
            }
        }
    }

    #[test]
    fn every_preset_file_is_compiled_in_and_no_name_stands_for_two() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("presets");
        let stem = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().file_stem().unwrap().to_owned();
        let files: BTreeSet<_> = std::fs::read_dir(folder).unwrap().map(stem).collect();
        let compiled: BTreeSet<_> = preset_files::FILES.iter().map(|(name, _)| (*name).into()).collect();
        assert_eq!(files, compiled);
        let aliases: usize = preset_files::FILES.iter().map(|(_, text)| read(text).unwrap().about.aliases.len()).sum();
        assert_eq!(NAMES.len(), preset_files::FILES.len() + aliases);
    }
}
