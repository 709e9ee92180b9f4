//! `[admin]`

use std::net::SocketAddr;

use serde::Deserialize;

use crate::secret::SecretRef;

/// Health and metrics of this process. One listener per process.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// The address of `/livez`, `/readyz` and `/metrics`. Not for the outside.
    pub listen: SocketAddr,
    /// When set, `/metrics` asks for it as a bearer token. The health paths never do.
    pub token: Option<SecretRef>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 9090)), token: None }
    }
}
