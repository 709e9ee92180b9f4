//! How the text that an operator pastes becomes key bytes.

use data_encoding::{BASE64, BASE64_NOPAD, HEXLOWER_PERMISSIVE};
use serde::Deserialize;

use crate::secret::Secret;

/// The prefix of a Standard Webhooks secret (specification, "Signature scheme").
const WHSEC: &[u8] = b"whsec_";

/// The form of a secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyForm {
    /// The bytes of the text are the key.
    #[default]
    Text,
    /// Base64 after `whsec_`; a text without that prefix is taken as its bytes.
    Whsec,
    /// Hexadecimal digits.
    Hex,
    /// Base64, with or without padding.
    Base64,
}

impl KeyForm {
    /// The key bytes of a secret. The error says what is wrong and never repeats the value.
    pub(crate) fn decode(self, secret: &Secret) -> Result<Secret, String> {
        let text = secret.expose();
        let decoded = match self {
            Self::Text => return Ok(secret.clone()),
            // A public key is no secret: whoever has read it could sign with it.
            Self::Whsec if text.starts_with(b"whpk_") || text.starts_with(b"whsk_") => {
                return Err("is an ed25519 key, and this signature needs a shared secret".to_owned());
            }
            Self::Whsec => match text.strip_prefix(WHSEC) {
                Some(rest) => base64(rest).ok_or("has `whsec_` in front of what is not base64")?,
                None => return Ok(secret.clone()),
            },
            Self::Hex => HEXLOWER_PERMISSIVE.decode(text).map_err(|_| "is not hexadecimal")?,
            Self::Base64 => base64(text).ok_or("is not base64")?,
        };
        if decoded.is_empty() { Err("has no key bytes".to_owned()) } else { Ok(Secret::new(decoded)) }
    }
}

/// Decodes base64 whether or not it is padded.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).or_else(|_| BASE64_NOPAD.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(form: KeyForm, text: &str) -> Result<Vec<u8>, String> {
        form.decode(&Secret::new(text)).map(|key| key.expose().to_vec())
    }

    #[test]
    fn a_whsec_secret_is_its_base64_value_and_any_other_text_its_bytes() {
        assert_eq!(decode(KeyForm::Whsec, "whsec_aGk=").unwrap(), b"hi");
        assert_eq!(decode(KeyForm::Whsec, "whsec_aGk").unwrap(), b"hi");
        assert_eq!(decode(KeyForm::Whsec, "plain text").unwrap(), b"plain text");
        assert_eq!(decode(KeyForm::Text, "whsec_aGk=").unwrap(), b"whsec_aGk=");
    }

    #[test]
    fn a_secret_of_the_wrong_form_is_refused_without_repeating_it() {
        for (form, text) in
            [(KeyForm::Whsec, "whsec_!!"), (KeyForm::Hex, "xyz"), (KeyForm::Base64, "!"), (KeyForm::Whsec, "whsec_")]
        {
            let reason = decode(form, text).unwrap_err();
            assert!(!reason.contains("!!") && !reason.contains("xyz"), "{reason}");
        }
    }
}
