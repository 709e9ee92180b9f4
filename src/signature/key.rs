//! How the text that an operator pastes becomes a key.

use std::borrow::Cow;
use std::sync::Arc;

use data_encoding::HEXLOWER_PERMISSIVE;
use ring::signature::Ed25519KeyPair;
use serde::Deserialize;

use super::encoding::base64;
use super::mac::{Hash, MacKey, any_equal};
use super::public_key::{PublicKey, RSA_BITS, Signing};
use crate::secret::Secret;

/// The prefix of a Standard Webhooks secret (specification, "Signature scheme").
const WHSEC: &[u8] = b"whsec_";
/// The prefixes of its ed25519 keys: the private one, and the public one.
pub(super) const WHSK: &[u8] = b"whsk_";
pub(super) const WHPK: &[u8] = b"whpk_";
/// The bytes of an ed25519 private key (RFC 8032), and of one that its public key follows.
const SEED_BYTES: usize = 32;
const PAIR_BYTES: usize = 64;

/// Why a public key is not taken where something is to be signed.
pub(super) const PUBLIC: &str = "is a public key (`whpk_`), which verifies and cannot sign: use its `whsk_` key";

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
    /// Our own private key. It signs and verifies nothing.
    Private(Arc<Ed25519KeyPair>),
}

impl KeyForm {
    /// The key bytes of a secret. The error says what is wrong and never repeats the value.
    pub(crate) fn decode(self, secret: &Secret) -> Result<Secret, String> {
        let text = secret.expose();
        let decoded = match self {
            Self::Text => return Ok(secret.clone()),
            // A public key is no secret: whoever has read it could sign with it.
            Self::Whsec if text.starts_with(WHPK) || text.starts_with(WHSK) => {
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
        if !signing.takes(&key) {
            return Err("is a public key of another kind than the algorithm needs".to_owned());
        }
        match key.rsa_bits() {
            Some(bits) if !RSA_BITS.contains(&bits) => {
                Err(format!("is an RSA key of {bits} bits; signatures are checked with 2048 to 8192"))
            }
            _ => Ok(Self::Public(key)),
        }
    }

    /// An ed25519 private key, as Standard Webhooks writes one: `whsk_` and the base64 of its 32 bytes, or of
    /// those and the public key. The error never repeats the value.
    pub(super) fn private(secret: &Secret) -> Result<Self, String> {
        let text = secret.expose();
        if text.starts_with(WHPK) {
            return Err(PUBLIC.to_owned());
        }
        let bytes = text.strip_prefix(WHSK).and_then(base64).map(zeroize::Zeroizing::new);
        let pair = bytes.ok_or("is not `whsk_` and base64")?;
        let pair = match pair.len() {
            SEED_BYTES => Ed25519KeyPair::from_seed_unchecked(&pair),
            PAIR_BYTES => {
                let (seed, public) = pair.split_at(SEED_BYTES);
                Ed25519KeyPair::from_seed_and_public_key(seed, public)
            }
            _ => return Err("has neither 32 nor 64 bytes after `whsk_`".to_owned()),
        };
        let unfit = |_| "is an ed25519 key whose two halves do not belong together".to_owned();
        Ok(Self::Private(Arc::new(pair.map_err(unfit)?)))
    }

    /// The text, for keys that are one.
    pub(super) fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Text(secret) => Some(secret.expose()),
            Self::Mac(_) | Self::Public(_) | Self::Private(_) => None,
        }
    }

    /// Whether any of the claimed codes was made with this key.
    pub(super) fn made(&self, pieces: &Pieces<'_>, claims: &[Vec<u8>]) -> bool {
        match self {
            Self::Mac(key) => any_equal(&key.mac(pieces), claims),
            Self::Text(_) | Self::Public(_) | Self::Private(_) => false,
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
    fn a_private_key_is_a_seed_alone_or_with_its_own_public_key() {
        // RFC 8032, section 7.1, test 2.
        let seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        let public = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c";
        let other = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let read = |hex: &str| {
            let base64 = data_encoding::BASE64.encode(&HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).unwrap());
            Key::private(&Secret::new(format!("whsk_{base64}"))).map(|_| ())
        };

        assert_eq!(read(seed), Ok(()));
        assert_eq!(read(&format!("{seed}{public}")), Ok(()));
        for bad in [format!("{seed}{other}"), seed[2..].to_owned(), format!("{seed}00"), String::new()] {
            assert!(read(&bad).is_err(), "{bad}");
        }
        for (text, word) in [("whsk_!!", "base64"), ("whpk_AAAA", "public key"), ("secret", "whsk_")] {
            let reason = Key::private(&Secret::new(text)).err().unwrap();
            assert!(reason.contains(word) && !reason.contains("!!"), "{reason}");
        }
    }

    #[test]
    fn a_public_key_of_another_kind_is_refused() {
        let key = Secret::new("c3d7c48ab0ca492e1b182da0706a22fdcc702c30bba93970082380b7b508b24d");
        assert!(Key::public(&key, Signing::Ed25519).is_ok());
        assert!(Key::public(&key, Signing::P256).is_err());
    }
}
