//! A budget of bytes in flight: bodies of all requests together.

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Semaphore, SemaphorePermit};

/// What one permit stands for.
const UNIT: usize = 1024;

/// The bytes that all requests together may hold.
pub(super) struct Budget {
    units: Semaphore,
    /// Where the bytes that are held now are told.
    told: Gauge,
}

/// What one request holds. Grows with the bytes that arrive, not with those that a header announces.
pub(super) struct Held<'a> {
    budget: &'a Budget,
    permit: Option<SemaphorePermit<'a>>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(bytes: u64, told: Gauge) -> Self {
        let units = usize::try_from(bytes).unwrap_or(usize::MAX) / UNIT;
        Self { units: Semaphore::new(units.clamp(1, Semaphore::MAX_PERMITS)), told }
    }

    pub(super) fn hold(&self) -> Held<'_> {
        Held { budget: self, permit: None, bytes: 0 }
    }
}

impl Held<'_> {
    /// Takes room for more bytes. `false` when there is none.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let (before, after) = (self.bytes.div_ceil(UNIT), (self.bytes + bytes).div_ceil(UNIT));
        if after > before {
            let Ok(units) = u32::try_from(after - before) else { return false };
            let Ok(more) = self.budget.units.try_acquire_many(units) else { return false };
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                None => self.permit = Some(more),
            }
        }
        self.bytes += bytes;
        self.budget.told.inc_by(i64::try_from(bytes).unwrap_or(0));
        true
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.budget.told.dec_by(i64::try_from(self.bytes).unwrap_or(0));
    }
}
