//! Connecting, and watching over the connection.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{Client, ConnectOptions, Event, connection::State};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use super::health::{Health, Need, Trouble};
use super::identity::{Identities, Looks};
use super::probe::{Denied, Prober};
use super::provision::{self, Created, Plan, Problem};
use super::side::Side;
use super::state::{Link, Ready};
use super::tasks::Written;
use super::unreadable::Burial;
use super::{Names, read, unreadable};
use crate::config::{Nats, StreamKind};
use crate::secret::SecretError;

/// The oldest server that has message schedules.
const OLDEST_SERVER: (u64, u64) = (2, 12);
/// How long one JetStream request may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before looking again at a server that was not ready or not fit.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often to look whether everything is still there.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// The shortest time between two looks that somebody asked for.
const LOOK_APART: Duration = Duration::from_millis(500);
/// How often the client asks a server that says nothing whether it is there. It leaves one that has not answered three
/// times, so a silent server is left after nine to twelve seconds.
const PING_EVERY: Duration = Duration::from_secs(3);
/// How long a server may take to introduce itself: one that was stopped accepts connections and says nothing.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long the last words may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked whether a new connection is confirmed, whatever the link tells.
const CONFIRM_PAUSE: Duration = Duration::from_millis(250);
/// The longest wait between two attempts to connect.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// The handle to NATS that both roles share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(super) client: Client,
    pub(super) jetstream: jetstream::Context,
    pub(super) names: Arc<Names>,
    pub(super) replicas: usize,
    pub(super) health: Arc<Health>,
    pub(super) counts: Arc<Counts>,
    pub(super) written: Arc<Written>,
    pub(super) denied: Arc<Denied>,
    pub(super) identities: Arc<Identities>,
    pub(super) looks: Arc<Looks>,
    /// For what others may publish and is only listened to.
    pub(super) side: Arc<Side>,
    /// How a role deals with messages that it cannot read, if it takes any.
    pub(super) burial: Option<Burial>,
    /// What took this broker's place when its client died.
    successor: Arc<watch::Sender<Option<Broker>>>,
    link: watch::Receiver<Link>,
    look_again: Arc<Notify>,
}

/// Watches over the connection: prepares every new one, and tells the [`Link`].
pub(crate) struct Supervisor {
    broker: Broker,
    plan: Plan,
    role: &'static str,
    link: watch::Sender<Link>,
    /// Changes whenever the client says that it connected or lost its connection.
    changed: watch::Receiver<u64>,
    /// What was logged last of how things differ from the plan.
    said: Mutex<String>,
}

/// What the client complains of, each new complaint once: it repeats them with every attempt to connect.
#[derive(Default)]
pub(super) struct SaidOnce(Mutex<String>);

impl SaidOnce {
    /// A connection was made: what is wrong next is news again, whatever it is.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn say(&self, role: &str, complaint: &str) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != complaint {
            complaint.clone_into(&mut last);
            tracing::warn!("The {role}'s NATS connection: {complaint}");
        }
    }
}

/// Why the supervisor goes on.
enum Wake {
    Look,
    Stop,
    ClientGone,
}

/// Why no connection can even be tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("credentials `{path}` cannot be used: {source}")]
    Credentials { path: String, source: std::io::Error },
    #[error("a NATS secret is not text")]
    NotText,
    #[error(transparent)]
    Client(#[from] async_nats::ConnectError),
}

impl Broker {
    /// Makes the handle and begins to connect. Does not wait for a server.
    ///
    /// `role` names the connection, in the log and in what the server shows of its connections.
    pub(crate) async fn connect(
        nats: &Nats,
        plan: Plan,
        role: &'static str,
    ) -> Result<(Self, Supervisor), ConnectError> {
        let (event, changed) = watch::channel(0_u64);
        let (event, said, denied) = (Arc::new(event), Arc::<SaidOnce>::default(), Arc::<Denied>::default());
        let denials = denied.clone();
        let options = options(nats)?
            .retry_on_initial_connect()
            .name(format!("hookbridge-{role}"))
            .request_timeout(Some(REQUEST_TIMEOUT))
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |happened| {
                let (event, said, denials) = (event.clone(), said.clone(), denials.clone());
                async move {
                    if let Event::ServerError(error) = &happened {
                        denials.note(&error.to_string());
                    }
                    match &happened {
                        Event::ServerError(_) | Event::ClientError(_) => said.say(role, &happened.to_string()),
                        Event::Connected => said.forget(),
                        _ => {}
                    }
                    event.send_modify(|count| *count += 1);
                }
            });
        let client = options.connect(nats.url.as_slice().to_vec()).await?;
        let jetstream =
            ContextBuilder::new().timeout(REQUEST_TIMEOUT).ack_timeout(REQUEST_TIMEOUT).build(client.clone());
        let (link, watched) = watch::channel(Link::Connecting);
        let (names, replicas) = (Arc::new(plan.names.clone()), plan.replicas);
        let (health, written, look_again) = (Arc::default(), Arc::default(), Arc::default());
        let (counts, identities, looks) = (plan.counts.clone(), plan.identities.clone(), Arc::default());
        let (side, burial, successor) = (Side::new(nats, role), plan.bury.clone(), Arc::new(watch::channel(None).0));
        let broker = Self {
            client,
            jetstream,
            names,
            replicas,
            health,
            counts,
            written,
            denied,
            identities,
            looks,
            side,
            burial,
            successor,
            link: watched,
            look_again,
        };
        Ok((broker.clone(), Supervisor { broker, plan, role, link, changed, said: Mutex::default() }))
    }

    /// What can be done now. A lost connection shows at once, before anybody has told the watchers.
    pub(crate) fn link(&self) -> Link {
        let link = self.link.borrow().clone();
        match link {
            Link::Ready(_) if self.client.connection_state() != State::Connected => Link::Down,
            link => link,
        }
    }

    /// The facts of the connection, when there is anything to work with; what [`Broker::link`] says, cheaply.
    pub(crate) fn is_ready(&self) -> Option<Ready> {
        let ready = self.link.borrow().ready()?;
        (self.client.connection_state() == State::Connected).then_some(ready)
    }

    /// The facts of the connection that the client has at this moment, if its streams have been looked at since.
    pub(crate) fn confirmed(&self) -> Option<Ready> {
        self.is_ready().filter(|ready| ready.connection == self.connection())
    }

    /// Waits until the connection that the client has is confirmed. None when the client is gone for good.
    pub(crate) async fn reconfirmed(&self) -> Option<Ready> {
        let mut link = self.link.clone();
        loop {
            if let Some(ready) = self.confirmed() {
                return Some(ready);
            }
            // A change may have come and gone between two looks, so that it is not waited for alone.
            if let Ok(Err(_)) = tokio::time::timeout(CONFIRM_PAUSE, link.changed()).await {
                return None;
            }
        }
    }

    /// Waits until the link is ready, or that of the broker that took this one's place. Ends only with the process, so
    /// race it against a stop.
    pub(crate) async fn ready(&self) -> Option<Ready> {
        let mut broker = self.clone();
        loop {
            let mut link = broker.link.clone();
            if let Ok(link) = link.wait_for(|link| link.ready().is_some()).await {
                return link.ready();
            }
            // Its client has died. Only a role that takes what others publish gets another one.
            broker.burial.as_ref()?;
            let mut successor = broker.successor.subscribe();
            let next = successor.wait_for(Option::is_some).await.ok()?.clone();
            broker = next?;
        }
    }

    /// Tells who took the place of a broker whose client died: what is still in hand is written down there.
    pub(crate) fn succeed(&self, successor: Self) {
        self.successor.send_replace(Some(successor));
    }

    /// The broker that took this one's place, if its client died.
    pub(super) fn successor(&self) -> Option<Self> {
        let mut last = self.successor.borrow().clone()?;
        loop {
            let next = last.successor.borrow().clone();
            match next {
                Some(next) => last = next,
                None => return Some(last),
            }
        }
    }

    /// Waits until this connection is no longer the one that is ready.
    pub(super) async fn lost(&self, connection: u64) {
        let mut link = self.link.clone();
        // An error means that the process is about to end, which is a loss too.
        drop(link.wait_for(|link| link.ready().is_none_or(|ready| ready.connection != connection)).await);
    }

    /// Asks the supervisor to look whether everything is still there.
    pub(crate) fn look_again(&self) {
        self.look_again.notify_one();
    }

    /// Why nothing can be stored now, if so: the link is not ready, or what is written is not confirmed.
    pub(crate) fn trouble(&self) -> Option<String> {
        let link = self.link();
        if link.ready().is_some() {
            return self.health.trouble().as_ref().map(Trouble::to_string);
        }
        Some(match link {
            Link::Down => format!("{link} (nats-server {})", self.server_name()),
            link => link.to_string(),
        })
    }

    /// For how long something that the role needs has not been confirmed; zero while everything is.
    pub(crate) fn unconfirmed_for(&self) -> Duration {
        self.health.unconfirmed_for()
    }

    /// What happened on the links of this process.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The largest message that the server takes, or took when it was last there.
    pub(crate) fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Subjects, streams and buckets under this broker's prefix.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Which connection of this process is in use. Changes before the first message of a new one arrives.
    pub(crate) fn connection(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Acquire)
    }

    /// Sends what is buffered: the last acks are part of it.
    pub(crate) async fn close(&self) {
        if self.link().ready().is_some()
            && let Err(error) = tokio::time::timeout(CLOSE_WITHIN, self.client.flush()).await
        {
            tracing::debug!("The last words did not reach NATS: {error}");
        }
    }
}

impl Supervisor {
    /// Prepares every connection until stopped.
    ///
    /// Ends with an error only when the first server that answers cannot be worked with: an operator who
    /// starts a process wants to hear that at once. Later the same thing is a state, said once.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), Problem> {
        let prober = Prober::new(self.broker.clone(), self.role, self.plan.needs.clone());
        tokio::select! {
            ended = self.supervise(stop) => ended,
            () = prober.run() => Ok(()),
        }
    }

    async fn supervise(mut self, stop: CancellationToken) -> Result<(), Problem> {
        let mut worked_before = false;
        loop {
            let connection = self.broker.connection();
            if self.is_connected_as(connection) {
                let prepared = tokio::select! {
                    prepared = self.prepare(connection) => prepared,
                    // What was asked over a connection that is gone would be waited for in vain.
                    () = self.gone(connection) => continue,
                };
                match prepared {
                    Ok(()) => {
                        worked_before = true;
                        // Applied once: two processes that were told different things would fight for ever.
                        self.plan.update = false;
                    }
                    Err(problem) if problem.is_final() && !worked_before => return Err(problem),
                    // What is stored over this connection shows whether it can be used, not one look at everything.
                    Err(problem) if self.is_ready_on(connection) => {
                        let what = if problem.is_final() { "check of NATS found" } else { "check of NATS failed" };
                        self.say(&format!("The {}'s {what}: {problem}; checking again in {LOOK_EVERY:?}", self.role));
                    }
                    Err(problem) => self.tell(Link::Unfit(self.explained(&problem).await)),
                }
            } else if worked_before || !matches!(*self.link.borrow(), Link::Connecting) {
                self.tell(Link::Down);
            }
            match self.wait(connection, &stop).await {
                Wake::Look => {}
                Wake::Stop => return Ok(()),
                Wake::ClientGone => {
                    self.tell(Link::Down);
                    return Err(Problem::ClientGone);
                }
            }
        }
    }

    async fn prepare(&self, connection: u64) -> Result<(), Problem> {
        // Whoever has just been told that a server is unfit need not hear of every further look at it.
        if !self.is_ready_on(connection) && !matches!(*self.link.borrow(), Link::Unfit(_)) {
            self.tell(Link::Preparing);
        }
        // Between connecting and the server's first word there is a moment without it.
        let Some(info) = self.broker.client.try_server_info() else {
            return Err(Problem::NoAnswer("the server has not introduced itself yet".to_owned()));
        };
        if !is_new_enough(&info.version) {
            return Err(Problem::OldServer { version: info.version });
        }
        let seen_before = self.broker.health.was_ready();
        let made = |made: Created<'_>| self.made(&made, seen_before);
        match provision::apply(&self.broker.jetstream, &self.plan, &made).await {
            // A server without JetStream of its own may still have neighbours with it, so it gets the question.
            Err(Problem::NoAnswer(_)) if !info.jetstream => return Err(Problem::NoJetStream),
            // One that has it, and whose neighbours do not answer, will have it again.
            Err(Problem::NoJetStream) if info.jetstream => {
                return Err(Problem::NoAnswer("JetStream is not available at this moment".to_owned()));
            }
            applied => {
                let differences = applied?.join("; ");
                let found = format!(
                    "The {}'s check of NATS found: {differences}. It keeps running; change the configuration, or start \
                     once with --update-streams",
                    self.role
                );
                self.say(if differences.is_empty() { "" } else { &found });
            }
        }
        self.broker.identify_all().await?;
        if self.is_ready_on(connection) {
            return Ok(());
        }
        if let Some(burial) = &self.plan.bury {
            unreadable::remove(&self.broker.client, &self.broker.jetstream, &self.plan, burial).await?;
        }
        if self.plan.largest > info.max_payload as u64 {
            tracing::warn!(
                nats.max_payload = info.max_payload,
                "The server takes messages up to {} bytes, and a max_body with its headers needs {}: larger \
                 webhooks are answered 413 until max_payload is raised",
                info.max_payload,
                self.plan.largest
            );
        }
        let outbox_last = read::last_sequence(&self.broker, StreamKind::Outbox).await?;
        let replicated = self.plan.replicas > 1 || info.cluster.is_some();
        let ready = Ready { max_payload: info.max_payload, connection, outbox_last, replicated };
        // A connection that was lost meanwhile is for the next round.
        if self.broker.connection() == connection {
            self.broker.health.begin(&self.plan.needs);
            self.tell(Link::Ready(ready));
        }
        Ok(())
    }

    /// Why a server that is connected is not fit, as far as it can be found out.
    async fn explained(&self, problem: &Problem) -> String {
        let stream = self.plan.needs.iter().find_map(|need| match need {
            Need::Stream(stream) => Some(self.plan.names.stream(*stream)),
            _ => None,
        });
        match (problem, stream) {
            (Problem::NoAnswer(_), Some(stream)) => {
                let why = self.broker.explain(&format!("stream {stream}"), &stream).await;
                format!("{problem}: {why}")
            }
            _ => problem.to_string(),
        }
    }

    /// Logs what a check found, once until that changes; nothing is found if it is empty.
    fn say(&self, found: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != found {
            if !found.is_empty() {
                tracing::warn!("{found}");
            }
            found.clone_into(&mut said);
        }
    }

    /// Logs and counts that something was recreated that had existed before.
    fn made(&self, made: &Created<'_>, seen_before: bool) {
        if seen_before {
            self.broker.counts.made_again(made.0);
            tracing::warn!(
                nats.asset = made.0,
                "The {} recreated {}: it had been deleted or lost, and its previous contents are gone. Find out who \
                 deleted it",
                self.role,
                made.0
            );
        }
    }

    /// Waits until this connection is no longer the one that the client has.
    async fn gone(&self, connection: u64) {
        let mut changed = self.changed.clone();
        while self.is_connected_as(connection) {
            if changed.changed().await.is_err() {
                // The client is gone too, and says so elsewhere.
                std::future::pending::<()>().await;
            }
        }
    }

    fn is_connected_as(&self, connection: u64) -> bool {
        self.broker.client.connection_state() == State::Connected && self.broker.connection() == connection
    }

    fn is_ready_on(&self, connection: u64) -> bool {
        self.link.borrow().ready().is_some_and(|ready| ready.connection == connection)
    }

    /// Waits for a reason to look again.
    async fn wait(&mut self, connection: u64, stop: &CancellationToken) -> Wake {
        let later = if self.is_ready_on(connection) { LOOK_EVERY } else { LOOK_AGAIN };
        // Many may ask for a look at once, and again before they can have heard of it.
        let asked = async {
            tokio::time::sleep(LOOK_APART).await;
            self.broker.look_again.notified().await;
        };
        tokio::select! {
            () = stop.cancelled() => Wake::Stop,
            changed = self.changed.changed() => if changed.is_ok() { Wake::Look } else { Wake::ClientGone },
            () = asked => Wake::Look,
            () = tokio::time::sleep(later) => Wake::Look,
        }
    }

    /// Tells a new state, and logs it once.
    fn tell(&self, new: Link) {
        let mut was_ready = false;
        let changed = self.link.send_if_modified(|link| {
            let changed = *link != new;
            was_ready = link.ready().is_some();
            *link = new.clone();
            changed
        });
        if !changed || (was_ready && new.ready().is_some()) {
            return;
        }
        let role = self.role;
        match &new {
            Link::Ready(ready) => {
                tracing::info!(
                    nats.max_payload = ready.max_payload,
                    "The {role} is connected to NATS, streams are ready"
                );
            }
            Link::Connecting | Link::Preparing => tracing::debug!("{new}"),
            Link::Down => tracing::warn!("The {role} lost its connection to NATS; trying again until it is back"),
            Link::Unfit(reason) => tracing::error!("The {role} cannot use NATS: {reason}; looking again until it can"),
        }
    }
}

pub(super) fn options(nats: &Nats) -> Result<ConnectOptions, ConnectError> {
    let text = |secret: &crate::secret::SecretRef| -> Result<String, ConnectError> {
        String::from_utf8(secret.resolve()?.expose().to_vec()).map_err(|_| ConnectError::NotText)
    };
    let mut options = ConnectOptions::new().ping_interval(PING_EVERY).connection_timeout(CONNECT_WITHIN);
    if let Some(path) = &nats.credentials {
        let unusable = |source| ConnectError::Credentials { path: path.display().to_string(), source };
        options = options.credentials(&std::fs::read_to_string(path).map_err(unusable)?).map_err(unusable)?;
    } else if let Some(seed) = &nats.nkey {
        options = options.nkey(text(seed)?);
    } else if let Some(token) = &nats.token {
        options = options.token(text(token)?);
    } else if let (Some(user), Some(password)) = (&nats.user, &nats.password) {
        options = options.user_and_password(user.clone(), text(password)?);
    }
    if nats.tls.required {
        options = options.require_tls(true);
    }
    if let Some(ca) = &nats.tls.ca {
        options = options.add_root_certificates(ca.clone());
    }
    if let (Some(certificate), Some(key)) = (&nats.tls.certificate, &nats.tls.key) {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

/// Quick at first, since most outages are a restart, then every two seconds.
pub(super) fn reconnect_delay(attempt: usize) -> Duration {
    Duration::from_millis(50).saturating_mul(1 << attempt.min(6)).min(MAX_RECONNECT_DELAY)
}

pub(super) fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    (major, minor) >= OLDEST_SERVER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_before_2_12_are_too_old() {
        for (version, expected) in [
            ("2.11.9", false),
            ("2.12.0", true),
            ("2.12.0-RC.1", true),
            ("2.15.1", true),
            ("3.0.0", true),
            ("x", false),
        ] {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }

    #[test]
    fn reconnecting_starts_quickly_and_stays_patient() {
        assert_eq!(reconnect_delay(0), Duration::from_millis(50));
        assert_eq!(reconnect_delay(1000), MAX_RECONNECT_DELAY);
    }
}
