//! How signature bytes are written as text. Strict: what an honest sender never writes is refused.

use data_encoding::{
    BASE64, BASE64_NOPAD, BASE64URL, BASE64URL_NOPAD, DecodeKind, HEXLOWER, HEXLOWER_PERMISSIVE, HEXUPPER,
};
use serde::Deserialize;

/// How signature bytes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Encoding {
    /// Lower-case hexadecimal.
    #[default]
    #[serde(rename = "hex")]
    Hex,
    /// Upper-case hexadecimal.
    #[serde(rename = "HEX")]
    HexUpper,
    /// Hexadecimal in either case.
    #[serde(rename = "hex-any")]
    HexAny,
    /// Base64 with padding.
    #[serde(rename = "base64")]
    Base64,
    /// Base64 with or without padding.
    #[serde(rename = "base64-any")]
    Base64Any,
    /// Base64 with the URL alphabet, with or without padding.
    #[serde(rename = "base64url")]
    Base64Url,
    /// The bytes are the text.
    #[serde(rename = "text")]
    Text,
}

impl Encoding {
    /// Writes bytes as an honest sender does.
    pub(crate) fn encode(self, bytes: &[u8]) -> String {
        match self {
            Self::Hex | Self::HexAny => HEXLOWER.encode(bytes),
            Self::HexUpper => HEXUPPER.encode(bytes),
            Self::Base64 | Self::Base64Any => BASE64.encode(bytes),
            Self::Base64Url => BASE64URL_NOPAD.encode(bytes),
            Self::Text => String::from_utf8_lossy(bytes).into_owned(),
        }
    }

    /// Reads bytes; the error says why it cannot.
    pub(crate) fn decode(self, text: &str) -> Result<Vec<u8>, &'static str> {
        let text = text.as_bytes();
        match self {
            Self::Hex => HEXLOWER.decode(text).map_err(|_| "it is not lower-case hexadecimal"),
            Self::HexUpper => HEXUPPER.decode(text).map_err(|_| "it is not upper-case hexadecimal"),
            Self::HexAny => HEXLOWER_PERMISSIVE.decode(text).map_err(|_| "it is not hexadecimal"),
            Self::Base64 => BASE64.decode(text).map_err(|error| match error.kind {
                DecodeKind::Length | DecodeKind::Padding => "its base64 is not padded as it should be",
                _ => "it is not base64",
            }),
            Self::Base64Any => base64(text).ok_or("it is not base64"),
            Self::Base64Url => {
                BASE64URL_NOPAD.decode(text).or_else(|_| BASE64URL.decode(text)).map_err(|_| "it is not base64url")
            }
            Self::Text => Ok(text.to_vec()),
        }
    }
}

/// Decodes base64 whether or not it is padded.
pub(super) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    BASE64.decode(text).or_else(|_| BASE64_NOPAD.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_honest_sender_writes_is_refused() {
        for (encoding, bad) in [
            (Encoding::Hex, "AB"),
            (Encoding::Hex, "abc"),
            (Encoding::HexUpper, "ab"),
            (Encoding::Base64, "aGk"),
            (Encoding::Base64, "aGk=="),
            (Encoding::Base64, "aG k="),
            (Encoding::Base64, "aGl="),
            (Encoding::Base64Url, "a+/="),
        ] {
            assert!(encoding.decode(bad).is_err(), "{encoding:?} took {bad}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for encoding in [
            Encoding::Hex,
            Encoding::HexUpper,
            Encoding::HexAny,
            Encoding::Base64,
            Encoding::Base64Any,
            Encoding::Base64Url,
            Encoding::Text,
        ] {
            assert_eq!(encoding.decode(&encoding.encode(b"\x00\x7fhello")).unwrap(), b"\x00\x7fhello");
        }
    }
}
