//! How many files and sockets the process may have open, and how they are shared out.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are nobody's connection or delivery: NATS, the admin pages, logs, signals, look-ups of hosts.
const OWN: u64 = 128;

/// Raises the limit of open files as far as the process may.
///
/// The lower limit that a shell or a service manager sets is for programs that cannot deal with many descriptors.
pub(crate) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(error = %error, "Could not raise the limit of open files: {error}");
    }
}

/// How many files the process may have open. None means that there is no limit.
pub(crate) fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// What a number of descriptors is enough for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Connections that the gateway may have open at once.
    pub(crate) connections: usize,
    /// Descriptors that are kept for everything else.
    pub(crate) reserved: u64,
}

/// How many of `wanted` connections a gateway may have under a limit of open files, beside so many deliveries in the
/// same process. Where there is too little for both, they share it.
pub(crate) fn share(limit: u64, wanted: usize, deliveries: usize) -> Share {
    let own = OWN.min(limit / 2);
    let left = limit - own;
    let deliveries = (deliveries as u64).min(left / 2);
    let most = usize::try_from(left - deliveries).unwrap_or(usize::MAX).max(1);
    Share { connections: wanted.min(most), reserved: own + deliveries }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_everything_else() {
        let share = |limit, wanted, deliveries| {
            let Share { connections, reserved } = share(limit, wanted, deliveries);
            (connections, reserved)
        };
        assert_eq!(share(1_048_576, 20_000, 2048), (20_000, 2176), "enough for all");
        assert_eq!(share(20_000, 20_000, 2048), (17_824, 2176), "a little too few");
        assert_eq!(share(1024, 20_000, 2048), (448, 576), "deliveries take half of what is left at most");
        assert_eq!(share(1024, 20_000, 0), (896, 128), "a gateway by itself");
        assert_eq!(share(64, 20_000, 2048), (16, 48));
        assert_eq!(share(1, 20_000, 0), (1, 0));
    }
}
