//! `hookbridge check --presets` and `hookbridge check --explain PRESET`: what is known of providers, printed.
//!
//! A preset is written in the language of the configuration, so its own file is its best explanation: it only has
//! to be moved under a source.

use crate::signature::preset::{self, Preset};
use crate::signature::{Algorithm, Handshake, KeyForm, Profile, Scheme, Verify};

/// All presets, one line each.
pub(super) fn list() -> impl Iterator<Item = String> {
    preset::own_names().filter_map(|name| Some(summary(name, &preset::find(name)?)))
}

fn summary(name: &str, Preset { about, profile }: &Preset) -> String {
    let handshakes: Vec<&str> = profile.handshakes().iter().map(|rule| rule.name.as_str()).collect();
    let aliases: Vec<&str> = about.aliases.iter().map(String::as_str).collect();
    let part = |label: &str, names: &[&str]| {
        if names.is_empty() { String::new() } else { format!("; {label}: {}", names.join(", ")) }
    };
    let (handshakes, aliases) = (part("handshakes", &handshakes), part("also", &aliases));
    format!("{name:<22} {:<9} {}{handshakes}{aliases}", about.certainty.as_str(), about.facts)
}

/// A preset as a source of that name that says everything itself; `None` for no such preset.
pub(super) fn table(name: &str) -> Option<String> {
    let (preset, text) = (preset::find(name)?, preset::text(name)?);
    let parts = Parts::of(text, name);
    let mut lines = parts.comments;
    lines.push(format!("# facts: {}", preset.about.facts));
    lines.push(format!("# certainty: {}, {}", preset.about.certainty.as_str(), preset.about.certainty.meaning()));
    if !preset.about.aliases.is_empty() {
        lines.push(format!("# other names: {}", preset.about.aliases.join(", ")));
    }
    lines.extend(parts.about);
    lines.push(format!("[sources.{name}]"));
    lines.extend(hints(name, &preset.profile));
    lines.extend(parts.keys);
    lines.extend(parts.tables);
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    Some(lines.join("\n"))
}

/// A preset file, taken apart.
#[derive(Default)]
struct Parts {
    /// What stands above everything else.
    comments: Vec<String>,
    /// Comments of the table `about`; its keys are told in words.
    about: Vec<String>,
    /// The keys that stand in no table.
    keys: Vec<String>,
    /// The other tables, under the source.
    tables: Vec<String>,
}

impl Parts {
    fn of(text: &str, name: &str) -> Self {
        let mut parts = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(header) = header(line) {
                table = Some(header);
                if header != "about" {
                    let under = format!("sources.{name}.{header}");
                    parts.tables.push(line.replacen(header, &under, 1));
                }
                continue;
            }
            let is_comment = line.starts_with('#');
            match table {
                None if is_comment && parts.keys.is_empty() => parts.comments.push(line.to_owned()),
                None if line.is_empty() && parts.keys.is_empty() => {}
                None => parts.keys.push(line.to_owned()),
                Some("about") if is_comment => parts.about.push(line.to_owned()),
                Some("about") => {}
                Some(_) => parts.tables.push(line.to_owned()),
            }
        }
        parts
    }
}

/// The name of the table that begins with this line.
fn header(line: &str) -> Option<&str> {
    let name = line.strip_prefix("[[").or_else(|| line.strip_prefix('['))?.split(']').next()?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    (!name.is_empty() && name.chars().all(is_name)).then_some(name)
}

/// What a source must say beside its preset.
fn hints(name: &str, profile: &Profile) -> Vec<String> {
    let variable = name.to_ascii_uppercase().replace('-', "_");
    let mut lines = Vec::new();
    let answers = profile.handshakes().iter().any(Handshake::needs_secret);
    if answers || profile.schemes().any(Scheme::needs_secret) {
        lines.extend(form(profile).map(|form| format!("# the secret is {form}")));
        lines.push(format!("secrets = [\"env:{variable}_SECRET\"]"));
    }
    if profile.handshakes().iter().any(Handshake::captures) {
        lines
            .push(format!("# or where the provider brings it: secrets = [\"file:/var/lib/hookbridge/{name}.secret\"]"));
    }
    if profile.handshakes().iter().any(Handshake::needs_token) {
        lines
            .push(format!("# verify_token = \"env:{variable}_VERIFY_TOKEN\"   # what you tell the provider to repeat"));
    }
    if profile.needs_url() {
        lines.push(format!(
            "# public_url = \"https://hooks.example.com/hooks/{name}\"   # as the provider has it; or gateway.public_url"
        ));
    }
    if matches!(profile.verify, Some(Verify::None)) {
        lines.push(format!("# path_token = \"env:{variable}_PATH_TOKEN\"   # nothing else keeps strangers out"));
    }
    lines
}

/// What a secret must look like, where that is not plain.
fn form(profile: &Profile) -> Option<&'static str> {
    let schemes = || profile.schemes().filter(|scheme| scheme.needs_secret());
    let scheme = schemes().next()?;
    match (scheme.algorithm, scheme.key) {
        (Algorithm::Basic, _) => Some("`user:password`"),
        _ if scheme.certificate.is_some() || scheme.jwks.is_some() => Some("whom it must be for, see above"),
        _ if !scheme.is_shared() => Some("the provider's public key"),
        _ if schemes().any(|scheme| scheme.key == KeyForm::Hex) => Some("in hexadecimal"),
        (_, KeyForm::Base64) => Some("in base64"),
        (_, KeyForm::Whsec) => Some("as the provider shows it, `whsec_` included"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config, Layers};
    use crate::secret::Secret;

    /// A secret of every form that a preset asks for.
    const SECRETS: [&str; 6] = [
        "c3d7c48ab0ca492e1b182da0706a22fdcc702c30bba93970082380b7b508b24d",
        "whsec_c2VjcmV0",
        "user:password",
        "c2VjcmV0LW9uZQ==",
        // Public keys of nobody: P-256, and RSA with 2048 bits.
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==",
        RSA,
    ];
    const RSA: &str = include_str!("../../tests/it/data/rsa-public.txt");

    fn load(text: &str) -> Config {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let layers = Layers { files: vec![file.path().to_owned()], ..Layers::default() };
        config::load(&layers).unwrap_or_else(|mistakes| panic!("{mistakes}\n{text}"))
    }

    #[test]
    fn every_preset_is_printed_as_a_source_that_means_the_same() {
        for name in preset::names() {
            let (table, profile) = (table(name).unwrap(), preset::find(name).unwrap().profile);
            let usable = |text: &&&str| match &profile.verify {
                Some(Verify::Ways(ways)) => ways.credential(&Secret::new(**text)).is_ok(),
                Some(Verify::None) | None => true,
            };
            let secret = SECRETS.iter().find(usable).unwrap_or_else(|| panic!("{name}")).trim();
            let variable = name.to_ascii_uppercase().replace('-', "_");
            let table = table.replace(&format!("\"env:{variable}_SECRET\""), &format!("\"plain:{secret}\""));
            let config = load(&format!("{table}\n[gateway]\npublic_url = \"https://hooks.example.com\""));
            let source = config.sources.get(name).unwrap();
            assert_eq!(source.preset, None);
            assert_eq!(format!("{:?}", source.profile()), format!("{profile:?}"), "{name}\n{table}");
        }
    }

    #[test]
    fn a_printed_preset_says_where_it_is_from_and_what_else_it_needs() {
        let stripe = table("stripe").unwrap();
        for expected in [
            "# Stripe events and Connect events.",
            "# facts: https://docs.stripe.com/webhooks/signature",
            "# certainty: provider, ",
            "[sources.stripe]\nsecrets = [\"env:STRIPE_SECRET\"]\ntype = \"json:/type\"",
            "[sources.stripe.verify]\nheader = \"Stripe-Signature\"",
        ] {
            assert!(stripe.contains(expected), "{expected:?} is not in:\n{stripe}");
        }
        assert!(!stripe.contains("[about]"), "{stripe}");
        for (name, expected) in [
            ("meta", "# verify_token = \"env:META_VERIFY_TOKEN\""),
            ("square", "# public_url = \"https://hooks.example.com/hooks/square\""),
            ("gumroad", "# path_token = \"env:GUMROAD_PATH_TOKEN\""),
            ("notion", "secrets = [\"file:/var/lib/hookbridge/notion.secret\"]"),
            ("clerk", "[[sources.clerk.verify]]"),
            ("postmark", "# the secret is `user:password`"),
            ("hubspot", "[sources.hubspot.batch]"),
            ("x-twitter", "env:X_TWITTER_SECRET"),
        ] {
            let printed = table(name).unwrap();
            assert!(printed.contains(expected), "{expected:?} is not in:\n{printed}");
        }
        assert_eq!(table("no-such-provider"), None);
    }

    #[test]
    fn every_preset_has_one_line() {
        let lines: Vec<String> = list().collect();
        assert!(lines.len() > 140 && lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
        let line = |name: &str| lines.iter().find(|line| line.split(' ').next() == Some(name)).unwrap();
        assert!(line("meta").contains("catalogue") && line("meta").contains("; handshakes: subscribe; also: facebook"));
        assert!(!lines.iter().any(|line| line.starts_with("facebook")));
    }
}
