//! Signatures: schemes as values, one engine that verifies and signs with them.
//!
//! A [`Scheme`] says where a signature is and what it covers; the engine reads it both ways, so what
//! Hookbridge can sign it can verify. A [`Profile`] adds how a provider names its events, shakes hands and
//! wants to be answered. Nothing here does I/O or reads a clock. docs/verification.md is the manual of the
//! language.

mod condition;
mod document;
mod draft;
mod encoding;
mod explain;
mod handshake;
mod jwt;
mod key;
mod mac;
mod outgoing;
pub mod preset;
mod preset_files;
pub mod profile;
#[cfg(test)]
mod proofs;
mod public_key;
mod rejection;
mod sample;
pub mod scheme;
mod sendable;
mod sign;
mod signing_form;
mod template;
mod timestamp;
mod verifier;
mod verify;

pub use condition::Conditions;
pub(crate) use condition::matches;
pub(crate) use document::Document;
pub use encoding::Encoding;
pub(crate) use explain::{Shown, Step};
pub use handshake::Handshake;
pub(crate) use handshake::{Known, Refusal, Reply, is_challenge};
#[cfg(any(fuzzing, test))]
pub(crate) use key::Key;
pub use key::KeyForm;
pub(crate) use outgoing::{Outgoing, Unsigned};
pub use preset::Preset;
pub use profile::{Profile, Verify};
pub use rejection::Rejection;
pub(crate) use sample::Wish;
pub use sample::{Sample, Unsignable, sample};
pub use scheme::{Algorithm, Scheme};
pub use signing_form::SigningForm;
pub use template::Template;
#[cfg(any(fuzzing, test))]
pub(crate) use template::Values;
pub use verifier::Verifier;
pub use verify::Ways;
pub(crate) use verify::{Credential, Genuine, Inquiry};
