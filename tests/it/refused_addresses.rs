//! The address guard, with a listener that must never be reached.

use crate::harness::{Hookbridge, Nats, Receiver};

/// No private network may be reached, and callbacks may go anywhere else.
fn guarded(receiver: &Receiver) -> String {
    format!(
        "[egress]\nallow_networks = []\nretry = []\n[callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]\n\
         [endpoints.named]\nurl = \"http://localhost:{}/\"\nsignatures = []",
        receiver.port()
    )
}

async fn reason(nats: &Nats, id: &str, header: (&str, &str)) -> (String, String) {
    nats.publish("outbox.a", &[header, ("Nats-Msg-Id", id)], "x").await;
    let receipt = nats.message("RECEIPTS", &format!("receipts.a.dead.{id}")).await.json();
    let text = |key: &str| receipt[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("detail"))
}

#[tokio::test]
async fn no_way_of_writing_a_private_address_reaches_it() {
    let (nats, mut canary) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &guarded(&canary)).await;
    let port = canary.port();
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.1.1",
        "172.16.0.1",
        "[fe80::1]",
        "[fd00::1]",
    ];
    for (index, host) in hosts.into_iter().enumerate() {
        let url = format!("http://{host}:{port}/");
        let (reason, detail) = reason(&nats, &format!("g-{index}"), ("Hookbridge-Callback-Url", &url)).await;
        assert_eq!(reason, "forbidden", "{url}: {detail}");
    }
    assert_eq!(canary.connections(), 0);
    assert_eq!(canary.unread(), 0);
}

#[tokio::test]
async fn an_endpoint_whose_name_resolves_to_loopback_is_forbidden_at_once() {
    let (nats, canary) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, &guarded(&canary)).await;
    let (reason, detail) = reason(&nats, "named", ("Hookbridge-Endpoint", "named")).await;
    assert_eq!(reason, "forbidden");
    assert!(detail.contains("egress.allow_networks"), "{detail}");
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn a_url_that_nobody_allowed_is_forbidden() {
    let (nats, canary) = (Nats::start().await, Receiver::start().await);
    let text = format!("[callbacks]\nallow = [\"{}\"]\nsecrets = [\"plain:s\"]", canary.url("/only/"));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let (with_user, elsewhere) = (canary.url("/only/").replace("://", "://user:pass@"), canary.url("/only/../else"));
    for (id, url) in [("a", "ftp://127.0.0.1/"), ("b", &with_user), ("c", &elsewhere), ("d", &canary.url("/onlyx"))] {
        assert_eq!(reason(&nats, id, ("Hookbridge-Callback-Url", url)).await.0, "forbidden", "{url}");
    }
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn without_a_callbacks_section_no_callback_is_made() {
    let (nats, canary) = (Nats::start().await, Receiver::start().await);
    let _hookbridge = Hookbridge::start(&nats, "").await;
    let (reason, detail) = reason(&nats, "x", ("Hookbridge-Callback-Url", &canary.url("/"))).await;
    assert_eq!(reason, "forbidden");
    assert!(detail.contains("callbacks.allow"), "{detail}");
}
