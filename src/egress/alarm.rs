//! How full the streams are: told in metrics, and said aloud before a limit is reached.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, Fill};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::StreamLabels;

/// How often to look.
const EVERY: Duration = Duration::from_secs(30);
/// The share of a limit from which on it is an alarm.
const ALARM_AT: f64 = 0.8;

/// Looks at every stream until stopped; each alarm is said once, and once more when it is over.
pub(super) async fn watch(broker: &Broker, metrics: &Metrics, stop: &CancellationToken) {
    let mut alarmed = HashSet::new();
    let mut pace = tokio::time::interval(EVERY);
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        let Some(Some(_)) = stop.run_until_cancelled(broker.ready()).await else { return };
        match broker.fill().await {
            Ok(streams) => streams.iter().for_each(|fill| tell(fill, metrics, &mut alarmed)),
            Err(error) => tracing::debug!("Could not see how full the streams are: {error}"),
        }
    }
}

fn tell(fill: &Fill, metrics: &Metrics, alarmed: &mut HashSet<&'static str>) {
    let stream = fill.stream.name();
    let labels = StreamLabels { stream };
    metrics.stream_messages.get_or_create(&labels).set(i64::try_from(fill.messages).unwrap_or(i64::MAX));
    metrics.stream_bytes.get_or_create(&labels).set(i64::try_from(fill.bytes).unwrap_or(i64::MAX));
    let share = share(fill);
    metrics.stream_alarm.get_or_create(&labels).set((share >= ALARM_AT).into());
    if share < ALARM_AT {
        if alarmed.remove(stream) {
            tracing::info!("Stream {stream} is below {:.0} % of its limit again", ALARM_AT * 100.0);
        }
    } else if alarmed.insert(stream) {
        tracing::error!(
            "Stream {stream} is at {:.0} % of its limit ({} messages, {} bytes): what comes on top may be refused or \
             push out the oldest; look at what fills it, or raise streams.{}",
            share * 100.0,
            fill.messages,
            fill.bytes,
            stream.to_lowercase()
        );
    }
}

/// The larger share of the two limits; 0 where there is none.
fn share(fill: &Fill) -> f64 {
    let of = |used: u64, limit: Option<u64>| limit.map_or(0.0, |limit| used as f64 / limit.max(1) as f64);
    of(fill.messages, fill.max_messages).max(of(fill.bytes, fill.max_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StreamKind;

    #[test]
    fn the_nearer_of_two_limits_counts() {
        let fill = |messages, bytes| Fill {
            stream: StreamKind::Dead,
            messages,
            bytes,
            max_messages: Some(100),
            max_bytes: Some(1000),
        };
        assert!(share(&fill(79, 0)) < ALARM_AT && share(&fill(80, 0)) >= ALARM_AT);
        assert!(share(&fill(0, 900)) >= ALARM_AT);
        assert_eq!(share(&Fill { max_messages: None, max_bytes: None, ..fill(5000, 5000) }), 0.0);
    }
}
