//! Tasks: delegated over HTTP, worked on over NATS, told by callbacks.

mod asking;
mod crashes;
mod delegating;
mod replies;
mod updates;

use serde_json::{Value, json};

use crate::harness::{Answer, Hookbridge, Nats, Receiver, Reply, eventually, request};

/// Two clients, two agents, and callbacks at the receiver.
pub(super) fn shop(receiver: &Receiver) -> String {
    format!(
        r#"
        [agents.planner]
        [agents.writer]
        [callbacks]
        allow = ["{0}"]
        secrets = ["plain:callback secret"]
        [clients.shop]
        token = "plain:shop-token"
        [clients.other]
        token = "plain:other-token"
        agents = ["planner"]
        [clients.signing]
        secrets = ["plain:signing secret"]
        "#,
        receiver.url("/")
    )
}

pub(crate) const SHOP: (&str, &str) = ("authorization", "Bearer shop-token");
pub(super) const OTHER: (&str, &str) = ("authorization", "Bearer other-token");

/// A gateway and courier with the shop's configuration.
pub(crate) struct Office {
    pub(crate) nats: Nats,
    pub(super) receiver: Receiver,
    pub(crate) hookbridge: Hookbridge,
}

impl Office {
    pub(crate) async fn open() -> Self {
        Self::open_with("").await
    }

    pub(crate) async fn open_with(more: &str) -> Self {
        let (nats, receiver) = (Nats::start().await, Receiver::start().await);
        let hookbridge = Hookbridge::start(&nats, &(shop(&receiver) + more)).await;
        Self { nats, receiver, hookbridge }
    }

    /// Delegates a task to the planner, with a callback at the receiver.
    pub(crate) async fn delegate(&self, task_id: &str, more: Value) -> Answer {
        let mut task = json!({"task_id": task_id, "callback_url": self.receiver.url("/cb"), "prompt": "do it"});
        task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.hookbridge.post("/agents/planner/tasks", &[SHOP], task.to_string()).await
    }

    /// Says something of a task as an agent does.
    pub(crate) async fn say(&self, agent: &str, id: &str, update: Value) {
        self.nats.publish(&format!("outbox.{agent}"), &[("Nats-Msg-Id", id)], update.to_string()).await;
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        request("GET", &self.hookbridge.url(path), &[SHOP], "").await
    }

    /// Waits until a task has this state.
    pub(crate) async fn becomes(&self, task_id: &str, status: &str) -> Value {
        let path = format!("/tasks/{task_id}");
        eventually(&format!("{task_id} to be {status}"), async || {
            let task = self.get(&path).await.json();
            (task["status"] == status).then_some(task)
        })
        .await
    }

    pub(crate) async fn receipt(&self, outcome: &str, id: &str) -> Value {
        self.nats.message("RECEIPTS", &format!("receipts.planner.{outcome}.{id}")).await.json()
    }

    /// The next callback's body.
    pub(crate) async fn told(&mut self) -> Value {
        serde_json::from_slice(&self.receiver.next().await.body).unwrap()
    }
}

/// How the receiver of callbacks behaves from now on.
pub(super) fn hangs(receiver: &Receiver) {
    receiver.otherwise(Reply::Hang);
}
