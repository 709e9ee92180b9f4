//! A file descriptor in reserve, for the moment in which the process has none left.

use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};

/// The reserve: a socket that nobody uses. Giving it up makes room for one connection.
pub(super) struct Spare(Mutex<Option<UnixDatagram>>);

impl Default for Spare {
    fn default() -> Self {
        Self(Mutex::new(UnixDatagram::unbound().ok()))
    }
}

impl Spare {
    /// Gives the descriptor up. `false` if it is given up already.
    pub(super) fn take(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Takes it back, if there is one to have.
    pub(super) fn restore(&self) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_none() {
            *spare = UnixDatagram::unbound().ok();
        }
    }
}
