//! How the text that an operator pastes becomes a key.

use std::borrow::Cow;

use data_encoding::HEXLOWER_PERMISSIVE;
use serde::Deserialize;

use super::encoding::base64;
use super::mac::{Hash, MacKey, any_equal};
use super::public_key::{PublicKey, Signing};
use crate::secret::Secret;

/// The prefix of a Standard Webhooks secret (specification, "Signature scheme").
const WHSEC: &[u8] = b"whsec_";

/// What is signed, in pieces.
pub(super) type Pieces<'a> = [Cow<'a, [u8]>];

/// How a shared secret is written.
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
    /// The SHA-1 of the text.
    Sha1,
}

/// A secret, prepared for one way of verifying.
#[derive(Clone)]
pub(crate) enum Key {
    /// A shared key.
    Mac(Box<MacKey>),
    /// A text that the request repeats or that is part of what is signed.
    Text(Secret),
    /// The provider's public key.
    Public(PublicKey),
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
            Self::Sha1 => Hash::Sha1.digest(&[text]),
        };
        if decoded.is_empty() { Err("has no key bytes".to_owned()) } else { Ok(Secret::new(decoded)) }
    }
}

impl Key {
    /// A public key that makes such signatures.
    pub(super) fn public(secret: &Secret, signing: Signing) -> Result<Self, String> {
        let key = PublicKey::parse(secret.expose())?;
        if signing.takes(&key) {
            Ok(Self::Public(key))
        } else {
            Err("is a public key of another kind than the algorithm needs".to_owned())
        }
    }

    /// The text, for keys that are one.
    pub(super) fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Text(secret) => Some(secret.expose()),
            Self::Mac(_) | Self::Public(_) => None,
        }
    }

    /// Whether any of the claimed codes was made with this key.
    pub(super) fn made(&self, pieces: &Pieces<'_>, claims: &[Vec<u8>]) -> bool {
        match self {
            Self::Mac(key) => any_equal(&key.mac(pieces), claims),
            Self::Text(_) | Self::Public(_) => false,
        }
    }
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

    #[test]
    fn a_public_key_of_another_kind_is_refused() {
        let key = Secret::new("c3d7c48ab0ca492e1b182da0706a22fdcc702c30bba93970082380b7b508b24d");
        assert!(Key::public(&key, Signing::Ed25519).is_ok());
        assert!(Key::public(&key, Signing::P256).is_err());
    }
}
