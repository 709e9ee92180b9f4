//! Reading the layers, and saying everything that is wrong with them at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use serde::de::DeserializeOwned;

use super::{Config, default_shutdown_grace, validate};
use crate::event::Name;

/// What is read when nothing is said.
pub(crate) const DEFAULT_FILE: &str = "config/hookbridge.toml";

/// The most mistakes that are looked for in one section.
const MAX_MISTAKES: usize = 20;

/// The top-level keys.
const SECTIONS: [&str; 15] = [
    "shutdown_delay",
    "shutdown_grace",
    "nats",
    "streams",
    "gateway",
    "admin",
    "sources",
    "agents",
    "endpoints",
    "callbacks",
    "clients",
    "tasks",
    "replies",
    "egress",
    "telemetry",
];

/// Where the configuration comes from; later layers win.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// A configuration that is compiled in, beneath everything else.
    pub builtin: Option<(&'static str, &'static str)>,
    /// Files, later ones win. Empty means `config/hookbridge.toml`, unless there is a built-in one.
    pub files: Vec<PathBuf>,
    /// Values from flags: dotted key and value, above everything else.
    pub flags: Vec<(&'static str, String)>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file or environment variables it comes from, if it comes from any.
    pub origin: Option<String>,
    /// The key, dotted.
    pub key: String,
    /// What is wrong and what to do.
    pub reason: String,
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(formatter, "{origin}: ")?;
        }
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.reason)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(|mistake| format!("error: {mistake}")).collect();
        formatter.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Mistakes {}

/// Reads and checks a configuration.
pub fn load(layers: &Layers) -> Result<Config, Mistakes> {
    let mut reader = Reader { figment: layers.figment()?, mistakes: Vec::new() };
    reader.refuse_unknown_sections();
    let config = Config {
        shutdown_delay: reader.duration("shutdown_delay").unwrap_or_default(),
        shutdown_grace: reader.duration("shutdown_grace").unwrap_or_else(default_shutdown_grace),
        nats: reader.section("nats"),
        streams: reader.section("streams"),
        gateway: reader.section("gateway"),
        admin: reader.section("admin"),
        sources: reader.tables("sources"),
        agents: reader.tables("agents"),
        endpoints: reader.tables("endpoints"),
        callbacks: reader.section("callbacks"),
        clients: reader.tables("clients"),
        tasks: reader.section("tasks"),
        replies: reader.section("replies"),
        egress: reader.section("egress"),
        telemetry: reader.section("telemetry"),
    };
    let unread: Vec<String> = reader.mistakes.iter().map(|mistake| meant_section(&mistake.key)).collect();
    for mut mistake in validate::mistakes(&config) {
        // What could not be read stands at its default here, and would only give mistakes that nobody made.
        if rests_on(section_of(&mistake.key)).iter().any(|section| unread.iter().any(|unread| unread == section)) {
            continue;
        }
        mistake.origin = reader.origin_of(&mistake.key);
        reader.mistakes.push(mistake);
    }
    if reader.mistakes.is_empty() { Ok(config) } else { Err(Mistakes(reader.mistakes)) }
}

impl Layers {
    fn figment(&self) -> Result<Figment, Mistakes> {
        let mut figment = Figment::new();
        if let Some((_, text)) = self.builtin {
            figment = figment.merge(Toml::string(text));
        }
        let default = [PathBuf::from(DEFAULT_FILE)];
        let files = if self.files.is_empty() && self.builtin.is_none() { &default[..] } else { &self.files };
        for file in files {
            if !file.is_file() {
                let reason = "no such file; name one with --config".to_owned();
                let mistake = Mistake { origin: Some(file.display().to_string()), key: String::new(), reason };
                return Err(Mistakes(vec![mistake]));
            }
            figment = figment.merge(Toml::file_exact(file));
        }
        figment = figment.merge(Env::prefixed("HOOKBRIDGE__").split("__"));
        for (key, value) in &self.flags {
            figment = figment.merge(Serialized::default(key, value));
        }
        Ok(figment)
    }
}

/// Reads section by section, so that one mistake does not hide the next.
struct Reader {
    figment: Figment,
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn refuse_unknown_sections(&mut self) {
        match self.figment.extract::<Dict>() {
            Ok(all) => {
                for key in all.keys().filter(|key| !SECTIONS.contains(&key.as_str())) {
                    let (origin, reason) = (self.origin_of(key), unknown(key, &SECTIONS));
                    self.mistakes.push(Mistake { origin, key: key.clone(), reason });
                }
            }
            Err(error) => self.record(error, ""),
        }
    }

    fn section<T: DeserializeOwned + Default>(&mut self, key: &str) -> T {
        self.value(key).unwrap_or_default()
    }

    fn duration(&mut self, key: &str) -> Option<std::time::Duration> {
        let text: String = self.value(key)?;
        let parsed = humantime::parse_duration(&text);
        parsed
            .map_err(|error| {
                self.mistakes.push(Mistake {
                    origin: self.origin_of(key),
                    key: key.to_owned(),
                    reason: error.to_string(),
                })
            })
            .ok()
    }

    /// A table of tables, each under a name.
    fn tables<T: DeserializeOwned>(&mut self, key: &str) -> BTreeMap<Name, T> {
        let Some(entries) = self.value::<Dict>(key) else { return BTreeMap::new() };
        let mut tables = BTreeMap::new();
        for (name, value) in &entries {
            let path = format!("{key}.{name}");
            match name.parse::<Name>() {
                Ok(parsed) => {
                    if let Some(table) = self.extract(value, &path) {
                        tables.insert(parsed, table);
                    }
                }
                Err(error) => {
                    self.mistakes.push(Mistake { origin: self.origin_of(key), key: path, reason: error.to_string() })
                }
            }
        }
        tables
    }

    fn value<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let value = self.figment.find_value(key).ok()?;
        self.extract(&value, key)
    }

    /// Reads a value; every key that stands in the way is a mistake, and is left out to find the next one.
    fn extract<T: DeserializeOwned>(&mut self, value: &Value, path: &str) -> Option<T> {
        let (mut value, before) = (value.clone(), self.mistakes.len());
        loop {
            let error = match value.deserialize::<T>() {
                Ok(_) if self.mistakes.len() > before => return None,
                Ok(read) => return Some(read),
                Err(error) => error,
            };
            let mut wrong = error.path.clone();
            if let Kind::UnknownField(field, _) = &error.kind {
                wrong.push(field.clone());
            }
            // A key that is missing because it was left out here is no second mistake.
            if self.mistakes.len() == before || !matches!(error.kind, Kind::MissingField(_)) {
                self.record(error, path);
            }
            if !remove(&mut value, &wrong) || self.mistakes.len() - before >= MAX_MISTAKES {
                return None;
            }
        }
    }

    fn record(&mut self, errors: figment::Error, path: &str) {
        for error in errors {
            let mut key: Vec<String> = if path.is_empty() { Vec::new() } else { vec![path.to_owned()] };
            key.extend(error.path.iter().cloned());
            let key = key.join(".");
            let metadata = error.metadata.clone();
            let origin = metadata.and_then(|metadata| origin(&metadata)).or_else(|| self.origin_of(&key));
            self.mistakes.push(Mistake { origin, key, reason: reason(&error.kind) });
        }
    }

    /// The file that a key, or the table around it, was written in.
    fn origin_of(&self, key: &str) -> Option<String> {
        let mut key = key;
        loop {
            if let Some(metadata) = self.figment.find_metadata(key) {
                return origin(metadata);
            }
            key = key.rsplit_once('.')?.0;
        }
    }
}

fn section_of(key: &str) -> &str {
    key.split('.').next().unwrap_or_default()
}

/// The section that a key is in, or was probably meant to be in.
fn meant_section(key: &str) -> String {
    let section = section_of(key);
    nearest(section, SECTIONS.into_iter()).unwrap_or(section).to_owned()
}

/// The sections that decide whether something in a section is a mistake. A table under a name that could not be
/// read is left out altogether, so that of `sources` and the like those that are there can be judged.
fn rests_on(section: &str) -> &[&str] {
    match section {
        "sources" | "agents" | "clients" => &[],
        "endpoints" => &["egress"],
        "egress" => &["egress", "streams"],
        "nats" => &["nats"],
        "streams" => &["streams"],
        "gateway" => &["gateway"],
        "callbacks" => &["callbacks"],
        "admin" => &["admin"],
        "tasks" => &["tasks", "gateway", "egress"],
        "replies" => &["replies", "gateway"],
        _ => &["telemetry"],
    }
}

/// Takes a key out of a table. `false` when there is no such key.
fn remove(value: &mut Value, path: &[String]) -> bool {
    let Some((key, rest)) = path.split_first() else { return false };
    match value {
        Value::Dict(_, table) if rest.is_empty() => table.remove(key).is_some(),
        Value::Dict(_, table) => {
            // A mistake inside a list takes the whole list with it.
            table.get_mut(key).is_some_and(|inner| remove(inner, rest)) || table.remove(key).is_some()
        }
        _ => false,
    }
}

/// What is wrong, without the value: somebody may have put a secret there.
fn reason(kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(field, known) => unknown(field, known),
        Kind::MissingField(field) => format!("`{field}` is missing"),
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            format!("expected {expected}, found {}", kind_of(actual))
        }
        // The TOML parser shows the line, which may hold a secret: its first and last words are enough.
        Kind::Message(text) if text.contains('\n') => {
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            format!("{}: {}", lines.first().unwrap_or(&""), lines.last().unwrap_or(&""))
        }
        other => other.to_string(),
    }
}

fn kind_of(actual: &Actual) -> &'static str {
    match actual {
        Actual::Bool(_) => "a boolean",
        Actual::Unsigned(_) | Actual::Signed(_) => "a whole number",
        Actual::Float(_) => "a number",
        Actual::Char(_) | Actual::Str(_) => "a text",
        Actual::Seq => "a list",
        Actual::Map => "a table",
        _ => "something else",
    }
}

fn origin(metadata: &figment::Metadata) -> Option<String> {
    match metadata.source.as_ref() {
        Some(figment::Source::File(path)) => {
            // As the operator wrote it, relative to where the program was started.
            let here = std::env::current_dir().unwrap_or_default();
            Some(path.strip_prefix(&here).unwrap_or(path).display().to_string())
        }
        _ if metadata.name.contains("environment") => Some("environment".to_owned()),
        _ => None,
    }
}

/// Says that a key is unknown, and which known one is nearest.
pub(super) fn unknown(key: &str, known: &[&str]) -> String {
    match nearest(key, known.iter().copied()) {
        Some(near) => format!("unknown key `{key}`, did you mean `{near}`?"),
        None => format!("unknown key `{key}`; known are {}", known.join(", ")),
    }
}

/// The known word nearest to one that is not known, if any is near.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Config, Vec<String>> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let layers = Layers { files: vec![file.path().to_owned()], ..Layers::default() };
        let name = file.path().display().to_string();
        load(&layers)
            .map_err(|mistakes| mistakes.0.iter().map(|mistake| mistake.to_string().replace(&name, "FILE")).collect())
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load_text("").unwrap();
        assert_eq!(config.gateway.listen.to_string(), "0.0.0.0:8080");
        assert_eq!(config.egress.retry.waits().len(), 9);
        assert_eq!(config.gateway.max_body.as_u64(), 960 * 1024);
    }

    #[test]
    fn every_mistake_is_named_with_file_key_and_reason() {
        let mistakes = load_text(
            r#"
            gatway = {}
            [egress]
            timeuot = "15s"
            retry = 5
            [sources.github]
            preset = "githib"
            secrets = ["hunter2"]
            [endpoints."a b"]
            url = "https://example.com"
            [endpoints.x]
            "#,
        )
        .unwrap_err();
        let text = mistakes.join("\n");
        for expected in [
            "FILE: gatway: unknown key `gatway`, did you mean `gateway`?",
            "unknown key `timeuot`, did you mean `timeout`?",
            "a secret is written `env:NAME`",
            "endpoints.a b: `a b` is not a name",
            "endpoints.x: `url` is missing",
            "egress.retry: ",
        ] {
            assert!(text.contains(expected), "{expected} is not in:\n{text}");
        }
        assert!(!text.contains("hunter2"), "a secret was printed:\n{text}");
    }

    #[test]
    fn a_key_that_cannot_be_read_does_not_hide_what_is_wrong_elsewhere() {
        let text = r#"
            [gateway]
            max_bdy = "1MiB"
            max_connections = 0
            [egress]
            allow_htp = true
            [endpoints.crm]
            url = "http://example.com"
            signatures = []
            [sources.both]
            preset = "github"
            verify = "none"
            "#;
        let mistakes = load_text(text).unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
        assert!(mistakes[2].contains("sources.both: has both"), "{mistakes:?}");
    }

    #[test]
    fn a_mistake_never_prints_the_value_that_may_be_a_secret() {
        for text in [
            "[sources.a]\npreset = \"github\"\nsecrets = \"plain:hunter2\"",
            "[sources.a]\npreset = \"github\"\nsecrets = [\"plain:hunter2]",
            "[sources.a]\npreset = \"github\"\nsecrets = [\"hunter2\"]",
            "[nats]\nurl = \"http://user:hunter2@localhost\"",
            "[sources.a]\nverify = \"hunter2\"",
        ] {
            let mistakes = load_text(text).unwrap_err().join("\n");
            assert!(!mistakes.contains("hunter2"), "{mistakes}");
        }
    }

    #[test]
    fn a_source_must_say_how_it_proves_itself() {
        let mistakes = load_text("[sources.open]\n[sources.both]\npreset = \"github\"\nverify = \"none\"").unwrap_err();
        assert!(
            mistakes[0].contains("sources.both") && mistakes[1].contains("sources.open: has neither"),
            "{mistakes:?}"
        );
        let mistakes = load_text("[sources.a]\npreset = \"githib\"\nsecrets = [\"plain:x\"]").unwrap_err();
        assert!(mistakes[0].contains("did you mean `github`?"), "{mistakes:?}");
    }

    #[test]
    fn a_secret_that_is_not_there_is_a_mistake() {
        let mistakes =
            load_text("[sources.a]\npreset = \"github\"\nsecrets = [\"env:HOOKBRIDGE_TEST_UNSET\"]").unwrap_err();
        assert_eq!(mistakes, ["FILE: sources.a.secrets: environment variable `HOOKBRIDGE_TEST_UNSET` is not set"]);
    }

    #[test]
    fn a_retry_policy_that_outlives_the_outbox_is_a_mistake() {
        let mistakes = load_text("[streams.outbox]\nmax_age = \"1day\"").unwrap_err();
        assert!(mistakes[0].contains("egress.retry: may take 3days") && mistakes.len() == 1, "{mistakes:?}");
        load_text("[streams.outbox]\nmax_age = \"1day\"\n[egress]\nretry = [\"1h\"]").unwrap();
    }

    #[test]
    fn the_example_and_the_development_configuration_are_valid() {
        let example = include_str!("../../config/hookbridge.example.toml");
        let config = load_text(&example.replace("env:", "plain:").replace("file:", "plain:")).unwrap();
        assert_eq!((config.sources.len(), config.endpoints.len(), config.egress.retry.waits().len()), (2, 1, 9));
        load_text(include_str!("../../config/dev.toml")).unwrap();
    }

    #[test]
    fn flags_win_over_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[nats]\nurl = \"nats://a:1\"").unwrap();
        let flags = vec![("nats.url", "nats://b:2".to_owned())];
        let config = load(&Layers { files: vec![file.path().to_owned()], flags, builtin: None }).unwrap();
        assert_eq!(config.nats.url.as_slice(), ["nats://b:2"]);
    }
}
