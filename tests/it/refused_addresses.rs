//! The address guard, with a listener that must never be reached.

use crate::harness::{Dns, Hookbridge, Nats, Receiver, mistakes};

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

#[tokio::test]
async fn a_host_that_the_operator_named_may_be_private_and_no_other() {
    let (nats, dns, mut receiver) = (Nats::start().await, Dns::start().await, Receiver::start().await);
    for name in ["vault.corp.example", "other.example", "denied.corp.example"] {
        dns.say(name, &["127.0.0.1"]);
    }
    let text = format!(
        "[egress]\nallow_networks = []\nretry = []\nnameservers = [\"{}\"]\nallow_ports = [{}]\n\
         allow_hosts = [\"*.corp.example\", \"localhost\"]\ndeny_hosts = [\"denied.corp.example\"]\n\
         [callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]",
        dns.address(),
        receiver.port()
    );
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let url = |host: &str, port| format!("http://{host}:{port}/");

    for host in ["vault.corp.example", "localhost"] {
        nats.publish("outbox.a", &[("Hookbridge-Callback-Url", &url(host, receiver.port()))], "x").await;
        receiver.next().await;
    }

    for (id, host, port, detail) in [
        ("other", "other.example", receiver.port(), "loopback"),
        ("address", "127.0.0.1", receiver.port(), "loopback"),
        ("denied", "denied.corp.example", receiver.port(), "egress.deny_hosts"),
        ("port", "vault.corp.example", 8080, "egress.allow_ports"),
    ] {
        let (reason, said) = reason(&nats, id, ("Hookbridge-Callback-Url", &url(host, port))).await;
        assert!(reason == "forbidden" && said.contains(detail), "{host}: {reason}: {said}");
    }
    assert_eq!(receiver.unread(), 0);
}

#[test]
fn what_cannot_be_a_host_a_port_or_a_name_server_is_found_when_the_configuration_is_loaded() {
    for (text, key, reason) in [
        ("allow_hosts = [\"10.0.0.1\"]", "allow_hosts", "is an address"),
        ("deny_hosts = [\"a.*.example\"]", "deny_hosts", "first label"),
        ("allow_ports = [0]", "allow_ports", "is no port"),
        ("allow_ports = [\"9000-8000\"]", "allow_ports", "is no port"),
        ("nameservers = [\"ns.example.com\"]", "nameservers", "is no address"),
        ("max_connection_age = \"soon\"", "max_connection_age", "a duration"),
    ] {
        let said = mistakes(&format!("[egress]\n{text}"));
        assert!(said.contains(&format!("egress.{key}")) && said.contains(reason), "{text}: {said}");
    }
}
