//! Signing what goes to a destination: in every form that it wants, with every secret that still holds.

use std::sync::Arc;
use std::time::SystemTime;

use crate::config::SignatureForm;
use crate::secret::{KeyError, KeyRing, Reload, SecretEntry};
use crate::signature::{Credential, Outgoing, Profile, SigningForm, Unsigned};

/// The forms that a destination wants, and its secrets prepared for each of them.
pub(super) struct Signer(Vec<Form>);

struct Form {
    name: String,
    form: Arc<SigningForm>,
    keys: Arc<KeyRing<Credential>>,
}

/// An attempt that must not be made, because it would go out without a signature that its destination wants.
#[derive(Debug, thiserror::Error)]
#[error("not sent, because it could not be signed as `{form}`: {why}")]
pub(super) struct NotSigned {
    form: String,
    why: Unsigned,
}

impl Signer {
    pub(super) fn new(forms: &[SignatureForm], secrets: &[SecretEntry]) -> Result<Self, KeyError> {
        let prepare = |(name, form): (String, Arc<SigningForm>)| {
            let of_secret = form.clone();
            let keys = KeyRing::load(secrets.iter().cloned(), move |secret| of_secret.credential(secret))?;
            Ok(Form { name, form, keys: Arc::new(keys) })
        };
        // A preset that there is not was refused at load. Should one come here, it has no way of signing: what is
        // to be signed so is not sent, rather than sent without.
        let empty = || Arc::new(SigningForm::new(&Profile::default()));
        let known = forms.iter().map(|form| (form.to_string(), form.signing().unwrap_or_else(empty)));
        known.map(prepare).collect::<Result<_, KeyError>>().map(Self)
    }

    /// The key rings that SIGHUP reads again.
    pub(super) fn secrets(&self) -> impl Iterator<Item = Arc<dyn Reload>> {
        self.0.iter().map(|form| form.keys.clone() as Arc<dyn Reload>)
    }

    /// Signs one attempt, which is made now. On an error nothing may be sent.
    pub(super) fn sign(&self, outgoing: &mut Outgoing<'_>) -> Result<(), NotSigned> {
        let now: SystemTime = outgoing.now;
        self.0.iter().try_for_each(|Form { name, form, keys }| {
            form.sign(&keys.at(now), outgoing).map_err(|why| NotSigned { form: name.clone(), why })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use http::HeaderMap;

    use super::*;

    #[test]
    fn a_form_that_cannot_sign_lets_nothing_out() {
        let secret = SecretEntry::from("plain:secret".parse::<crate::secret::SecretRef>().unwrap());
        let (url, mut headers) = ("https://a.example.com/".parse().unwrap(), HeaderMap::new());
        for name in ["no-such-preset", "mailgun", "bitpay"] {
            let forms = [SignatureForm::XSignature, SignatureForm::Preset(name.to_owned())];
            let signer = Signer::new(&forms, std::slice::from_ref(&secret)).unwrap();
            let mut outgoing = Outgoing {
                id: "id-1",
                event_type: None,
                now: SystemTime::UNIX_EPOCH,
                body: b"{}",
                url: Cow::Borrowed(&url),
                headers: &mut headers,
            };
            let refused = signer.sign(&mut outgoing).unwrap_err().to_string();
            assert!(refused.contains(&format!("preset:{name}")), "{refused}");
        }
    }
}
