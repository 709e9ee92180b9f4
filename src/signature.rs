//! Signatures: schemes as values, one engine that verifies and signs with them.
//!
//! A [`Scheme`] says where a signature is and what it covers; [`verify`](Scheme::verify) and
//! [`sign`](Scheme::sign) read it both ways, so what Hookbridge can sign it can verify. Nothing here does I/O
//! or reads a clock.

mod key;
mod mac;
pub mod preset;
pub mod scheme;
mod template;

pub use key::KeyForm;
pub(crate) use mac::Key;
pub use preset::Preset;
pub use scheme::{Rejection, Scheme};
