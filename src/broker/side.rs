//! The subscription connection: a second connection of a role, for subscriptions to subjects that others may publish on.
//!
//! A message that the client library cannot read ends the connection over which it arrives. Whatever arrives here can
//! be read again elsewhere, so a lost connection costs a moment and none of the role's publishes and deliveries.

use std::sync::{Arc, Weak};

use async_nats::{Client, Event};
use tokio::sync::{Mutex, watch};

use super::connect::{REQUEST_TIMEOUT, SaidOnce, options, reconnect_delay};
use crate::config::Nats;

/// The subscription connection: established when it is first needed, and again when its client has died.
pub(super) struct Side {
    nats: Nats,
    /// Whose it is, in the log and in what the server shows of its connections.
    owner: &'static str,
    current: Mutex<Option<SideClient>>,
}

/// A client of the subscription connection. Cheap to clone.
#[derive(Clone)]
pub(super) struct SideClient {
    pub(super) client: Client,
    changes: watch::Receiver<Changes>,
    /// Lives as long as the client's own task.
    alive: Weak<()>,
}

/// How often the connection was made and lost.
#[derive(Clone, Copy, Default)]
struct Changes {
    made: u64,
    lost: u64,
}

impl Side {
    pub(super) fn new(nats: &Nats, owner: &'static str) -> Arc<Self> {
        Arc::new(Self { nats: nats.clone(), owner, current: Mutex::default() })
    }

    /// The client, connected or about to be. The error says why none can be made.
    pub(super) async fn client(&self) -> Result<SideClient, String> {
        let mut current = self.current.lock().await;
        if let Some(side) = current.as_ref().filter(|side| side.alive.strong_count() > 0) {
            return Ok(side.clone());
        }
        let side = self.connect().await?;
        *current = Some(side.clone());
        Ok(side)
    }

    async fn connect(&self) -> Result<SideClient, String> {
        let (changed, changes) = watch::channel(Changes::default());
        // The client's events keep it, and they end with the client.
        let living = Arc::new((changed, SaidOnce::default()));
        let lives = Arc::new(());
        let (alive, owner) = (Arc::downgrade(&lives), self.owner);
        let options = options(&self.nats).map_err(|error| error.to_string())?;
        let options = options
            .retry_on_initial_connect()
            .name(format!("hookbridge-{owner}-listener"))
            .request_timeout(Some(REQUEST_TIMEOUT))
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |happened| {
                let (living, _lives) = (living.clone(), lives.clone());
                async move {
                    let (changed, said) = &*living;
                    match &happened {
                        Event::ServerError(_) | Event::ClientError(_) => said.say(owner, &happened.to_string()),
                        Event::Connected => {
                            said.forget();
                            changed.send_modify(|changes| changes.made += 1);
                        }
                        Event::Disconnected => {
                            tracing::debug!("The {owner}'s subscription connection to NATS was lost");
                            changed.send_modify(|changes| changes.lost += 1);
                        }
                        _ => {}
                    }
                }
            });
        let client = options.connect(self.nats.url.as_slice().to_vec()).await.map_err(|error| error.to_string())?;
        Ok(SideClient { client, changes, alive })
    }
}

impl SideClient {
    /// Waits until the connection is lost, from when this is called.
    pub(super) fn lost(&self) -> impl Future<Output = ()> + use<> {
        let mut changes = self.changes.clone();
        let before = changes.borrow().lost;
        // An error means that the client has died, which is a loss too.
        async move { drop(changes.wait_for(|changes| changes.lost != before).await) }
    }

    /// Whether it is the same client.
    pub(super) fn is(&self, other: &Self) -> bool {
        Weak::ptr_eq(&self.alive, &other.alive)
    }

    /// How often the connection was made.
    pub(super) fn made(&self) -> u64 {
        self.changes.borrow().made
    }

    /// Waits until the connection was made more often than so; at once where the client has died.
    pub(super) fn made_after(&self, times: u64) -> impl Future<Output = ()> + use<> {
        let mut changes = self.changes.clone();
        async move { drop(changes.wait_for(|changes| changes.made > times).await) }
    }
}
