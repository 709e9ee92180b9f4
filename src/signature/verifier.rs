//! Ways of proving and the secrets for them, in one value: for programs that verify without a gateway.

use std::time::SystemTime;

use super::profile::Naming;
use super::{Credential, Inquiry, Rejection, Ways};
use crate::event::Request;
use crate::secret::Secret;

/// Verifies requests of one sender. Keys at addresses are not fetched: such ways reject.
pub struct Verifier {
    ways: Ways,
    credentials: Vec<Credential>,
    id: Option<Naming>,
}

impl Verifier {
    /// Prepares the secrets; `id` is where the delivery id is, for schemes that sign it. The error says what is
    /// wrong with a secret and never repeats it.
    pub fn new(ways: Ways, secrets: &[Secret], id: Option<Naming>) -> Result<Self, String> {
        let credentials = secrets.iter().map(|secret| ways.credential(secret)).collect::<Result<_, _>>()?;
        Ok(Self { ways, credentials, id })
    }

    /// Whether the request comes from somebody who knows one of the secrets.
    pub fn verify(&self, request: &Request<'_>, now: SystemTime) -> Result<(), Rejection> {
        let inquiry = Inquiry { request, id: self.id.as_ref(), now, documents: &|_| None };
        self.ways.verify(&self.credentials, &inquiry).map(|_| ())
    }
}
