//! A budget of bytes in flight: bodies of all requests together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::telemetry::Metrics;

/// What one permit stands for.
const UNIT: usize = 1024;

/// The bytes that all requests together may hold.
#[derive(Clone)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    metrics: Metrics,
}

/// What one request holds. Grows with the bytes that arrive, not with those that a header announces.
pub(super) struct Held {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(bytes: u64, metrics: Metrics) -> Self {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX) / UNIT;
        Self { units: Arc::new(Semaphore::new(units.clamp(1, Semaphore::MAX_PERMITS))), metrics }
    }

    pub(super) fn hold(&self) -> Held {
        Held { budget: self.clone(), permit: None, bytes: 0 }
    }
}

impl Held {
    /// Takes room for more bytes. `false` when there is none.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let (before, after) = (self.bytes.div_ceil(UNIT), (self.bytes + bytes).div_ceil(UNIT));
        if after > before {
            let Ok(units) = u32::try_from(after - before) else { return false };
            let Ok(more) = self.budget.units.clone().try_acquire_many_owned(units) else { return false };
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                None => self.permit = Some(more),
            }
        }
        self.bytes += bytes;
        self.budget.metrics.body_bytes.inc_by(i64::try_from(bytes).unwrap_or(0));
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.metrics.body_bytes.dec_by(i64::try_from(self.bytes).unwrap_or(0));
    }
}
