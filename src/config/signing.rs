//! What is wrong with how a destination is to be signed: each form needs a secret that holds, and each secret a
//! form that it signs in.

use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderName;

use super::SignatureForm;
use super::load::nearest;
use crate::event::Place;
use crate::secret::SecretEntry;
use crate::signature::profile::Naming;
use crate::signature::{Credential, SigningForm, preset};

/// A key below the destination's table, and what is wrong with it.
type Found = (String, String);

/// What a form makes of the secrets of a destination.
#[derive(Default)]
struct Prepared {
    /// Those that hold now.
    holding: Vec<Credential>,
    /// Which of all secrets are the form's, whether or not they hold.
    own: Vec<bool>,
    /// Those that have not the form that they should.
    malformed: Vec<Found>,
}

/// Everything that cannot work at this time. `carried` are the headers that every delivery has.
pub(super) fn mistakes(
    forms: &[SignatureForm],
    secrets: &[SecretEntry],
    carried: &[HeaderName],
    now: SystemTime,
) -> Vec<Found> {
    let unreadable = |entry: &SecretEntry| entry.reference().resolve().err().map(|error| of_secrets(error.to_string()));
    let (mut found, mut own) = (secrets.iter().filter_map(unreadable).collect::<Vec<_>>(), vec![false; secrets.len()]);
    let (comparable, mut taken) = (found.is_empty() && !secrets.is_empty() && !forms.is_empty(), Vec::new());
    if forms.is_empty() != secrets.is_empty() {
        found.push(of_secrets(
            "`signatures` and `secrets` need each other; write signatures = [] for a destination that wants none",
        ));
    }
    for form in forms {
        let signing = match signing(form, carried) {
            Ok(signing) => signing,
            Err(mistake) => {
                found.push(mistake);
                // Whose secrets they would be cannot be said.
                own.fill(true);
                continue;
            }
        };
        let prepared = prepare(&signing, secrets, now);
        own.iter_mut().zip(&prepared.own).for_each(|(own, this)| *own |= this);
        if comparable && prepared.malformed.is_empty() {
            found.extend(lacking(form, &prepared, secrets, now));
        }
        found.extend(crowded(form, &signing, &prepared.holding, &mut taken));
        found.extend(prepared.malformed);
    }
    let idle = secrets.iter().zip(own).filter(|(_, own)| comparable && !own);
    found.extend(idle.map(|(entry, _)| of_secrets(format!("secret `{entry}` signs in none of the forms"))));
    dedup(found)
}

/// What a form stands for, or why nothing can be signed in it.
fn signing(form: &SignatureForm, carried: &[HeaderName]) -> Result<Arc<SigningForm>, Found> {
    let signing = form.signing().ok_or_else(|| {
        let name = form.to_string();
        let name = name.trim_start_matches("preset:");
        let near = nearest(name, preset::names()).map(|near| format!(", did you mean `{near}`?"));
        ("signatures".to_owned(), format!("no preset `{name}`{}", near.unwrap_or_default()))
    })?;
    let webhook_id = Naming::from_iter("header:webhook-id".parse::<Place>());
    match form {
        SignatureForm::Custom(scheme) => scheme
            .validate(Some(&webhook_id))
            .and_then(|()| signing.validate(carried))
            .map_err(|error| (format!("signatures.{}", error.key), error.reason.to_owned()))?,
        _ => signing.validate(carried).map_err(|error| {
            let reason = format!("`{form}` cannot sign what goes out: `{}` {}", error.key, error.reason);
            ("signatures".to_owned(), reason)
        })?,
    }
    Ok(signing)
}

fn prepare(signing: &SigningForm, secrets: &[SecretEntry], now: SystemTime) -> Prepared {
    let mut prepared = Prepared::default();
    for entry in secrets {
        let credential = entry.reference().resolve().ok().map(|secret| signing.credential(&secret));
        prepared.own.push(!matches!(&credential, Some(Ok(credential)) if credential.iter().all(Option::is_none)));
        match credential {
            Some(Err(reason)) => prepared.malformed.push(of_secrets(format!("secret `{entry}` {reason}"))),
            Some(Ok(credential)) if credential.iter().any(Option::is_some) && entry.holds(now) => {
                prepared.holding.push(credential);
            }
            _ => {}
        }
    }
    prepared
}

/// A form that no secret signs in. That all secrets have ended is said once, and not by every form.
fn lacking(form: &SignatureForm, prepared: &Prepared, secrets: &[SecretEntry], now: SystemTime) -> Option<Found> {
    let (own, hold) = (prepared.own.contains(&true), secrets.iter().any(|entry| entry.holds(now)));
    match prepared.holding.is_empty() {
        true if !own => {
            let reason = format!("none of them can sign as `{form}`: docs/verification.md says what can");
            Some(of_secrets(reason))
        }
        true if hold => Some(of_secrets(format!("none that signs as `{form}` is left: the others have ended"))),
        _ => None,
    }
}

/// Signatures for which there is no place, or a place that another form has. `taken` are the headers so far.
fn crowded(
    form: &SignatureForm,
    signing: &SigningForm,
    holding: &[Credential],
    taken: &mut Vec<HeaderName>,
) -> Vec<Found> {
    let mut found = Vec::new();
    if !signing.has_room(holding) {
        let reason =
            format!("`{form}` has fewer places for signatures than there are secrets; without `separator` it is one");
        found.push(("signatures".to_owned(), reason));
    }
    for name in signing.headers(holding) {
        if taken.contains(name) {
            let reason = format!("two forms write the header `{name}`, and only the last would count");
            found.push(("signatures".to_owned(), reason));
        }
        taken.push(name.clone());
    }
    found
}

fn of_secrets(reason: impl Into<String>) -> Found {
    ("secrets".to_owned(), reason.into())
}

/// Every form says the same of a secret that none can use.
fn dedup(found: Vec<Found>) -> Vec<Found> {
    let mut once = Vec::with_capacity(found.len());
    for mistake in found {
        if !once.contains(&mistake) {
            once.push(mistake);
        }
    }
    once
}
