//! Destinations with certificate authorities and a client certificate of their own, against real TLS.

use std::path::Path;

use tempfile::TempDir;

use crate::harness::tls::{Authority, Identity, TlsReceiver, certificate};
use crate::harness::{Hookbridge, Nats, mistakes};

const HOST: &str = "127.0.0.1";

/// An endpoint at a receiver, with what its `tls` table says.
fn endpoint(name: &str, receiver: &TlsReceiver, tls: &str) -> String {
    format!("[endpoints.{name}]\nurl = \"{}\"\nsignatures = []\n{}\n", receiver.url(), table(name, tls))
}

fn table(name: &str, tls: &str) -> String {
    if tls.is_empty() { String::new() } else { format!("[endpoints.{name}.tls]\n{tls}") }
}

fn ca(authority: &Authority) -> String {
    format!("ca = '{}'\n", authority.ca.display())
}

fn identity(identity: &Identity) -> String {
    format!("certificate = '{}'\nkey = '{}'\n", identity.certificate.display(), identity.key.display())
}

async fn send(nats: &Nats, endpoint: &str, id: &str) {
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id)], "x").await;
}

/// The class of the failure that a message's last attempt met.
async fn failure(nats: &Nats, id: &str) -> (String, String) {
    let receipt = nats.message("RECEIPTS", &format!("receipts.a.dead.{id}")).await.json();
    let text = |key: &str| receipt[key].as_str().unwrap_or_default().to_owned();
    (text("error_class"), text("detail"))
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test]
async fn an_endpoint_behind_a_private_authority_gets_its_deliveries_with_the_clients_certificate() {
    let (nats, folder) = (Nats::start().await, folder());
    let (servers, clients) = (Authority::new(folder.path(), "servers"), Authority::new(folder.path(), "clients"));
    let client = clients.sign("courier");
    let mut receiver = TlsReceiver::start(&servers.sign(HOST), Some(&clients)).await;
    let text = endpoint("crm", &receiver, &format!("{}{}", ca(&servers), identity(&client)));
    let _hookbridge = Hookbridge::start(&nats, &text).await;

    for id in ["first", "second"] {
        send(&nats, "crm", id).await;
        assert_eq!(receiver.next().await, Some(certificate(&client.certificate)));
        nats.message("RECEIPTS", &format!("receipts.a.delivered.{id}")).await;
    }

    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn a_server_that_cannot_prove_itself_gets_nothing() {
    let (nats, folder) = (Nats::start().await, folder());
    let (right, wrong) = (Authority::new(folder.path(), "right"), Authority::new(folder.path(), "wrong"));
    let mut good = TlsReceiver::start(&right.sign(HOST), None).await;
    let mut other_host = TlsReceiver::start(&right.sign("crm.example.com"), None).await;
    let mut expired = TlsReceiver::start(&right.sign_until(HOST, 2020), None).await;
    let text = [
        "[egress]\nretry = []\n".to_owned(),
        endpoint("wrong-authority", &good, &ca(&wrong)),
        endpoint("systems-authorities", &good, ""),
        endpoint("other-host", &other_host, &ca(&right)),
        endpoint("expired", &expired, &ca(&right)),
        endpoint("good", &good, &ca(&right)),
    ];
    let _hookbridge = Hookbridge::start(&nats, &text.concat()).await;

    for (name, detail) in [
        ("wrong-authority", "UnknownIssuer"),
        ("systems-authorities", "UnknownIssuer"),
        ("other-host", "not valid for name"),
        ("expired", "expired"),
    ] {
        send(&nats, name, name).await;
        let (error, said) = failure(&nats, name).await;
        assert_eq!(error, "tls", "{name}: {said}");
        assert!(said.contains(detail), "{name}: {said}");
    }
    assert_eq!((good.unread(), other_host.unread(), expired.unread()), (0, 0, 0));

    send(&nats, "good", "good").await;
    assert_eq!(good.next().await, None);
}

#[tokio::test]
async fn a_client_without_the_right_certificate_gets_a_tls_failure() {
    let (nats, folder) = (Nats::start().await, folder());
    let (servers, clients) = (Authority::new(folder.path(), "servers"), Authority::new(folder.path(), "clients"));
    let mut receiver = TlsReceiver::start(&servers.sign(HOST), Some(&clients)).await;
    let stranger = Authority::new(folder.path(), "strangers").sign("courier");
    let text = [
        "[egress]\nretry = []\n".to_owned(),
        endpoint("none", &receiver, &ca(&servers)),
        endpoint("stranger", &receiver, &format!("{}{}", ca(&servers), identity(&stranger))),
    ];
    let _hookbridge = Hookbridge::start(&nats, &text.concat()).await;

    for name in ["none", "stranger"] {
        send(&nats, name, name).await;
        let (error, said) = failure(&nats, name).await;
        assert_eq!(error, "tls", "{name}: {said}");
    }

    assert_eq!(receiver.unread(), 0);
}

#[tokio::test]
async fn callbacks_can_have_an_authority_and_a_certificate_too_and_share_no_connection_with_endpoints() {
    let (nats, folder) = (Nats::start().await, folder());
    let (servers, clients) = (Authority::new(folder.path(), "servers"), Authority::new(folder.path(), "clients"));
    let (for_callbacks, for_crm) = (clients.sign("callbacks"), clients.sign("crm"));
    let mut receiver = TlsReceiver::start(&servers.sign(HOST), Some(&clients)).await;
    let text = format!(
        "{}[callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]\n[callbacks.tls]\n{}{}",
        endpoint("crm", &receiver, &format!("{}{}", ca(&servers), identity(&for_crm))),
        ca(&servers),
        identity(&for_callbacks)
    );
    let _hookbridge = Hookbridge::start(&nats, &text).await;

    send(&nats, "crm", "named").await;
    assert_eq!(receiver.next().await, Some(certificate(&for_crm.certificate)));
    nats.publish("outbox.a", &[("Hookbridge-Callback-Url", &receiver.url())], "x").await;
    assert_eq!(receiver.next().await, Some(certificate(&for_callbacks.certificate)));

    assert_eq!(receiver.connections(), 2);
}

#[tokio::test]
async fn certificates_are_read_again_on_a_reload_and_broken_ones_leave_the_old() {
    let (nats, folder) = (Nats::start().await, folder());
    let (servers, clients) = (Authority::new(folder.path(), "servers"), Authority::new(folder.path(), "clients"));
    let (old, new) = (clients.sign("old"), clients.sign("new"));
    let mut receiver = TlsReceiver::start(&servers.sign(HOST), Some(&clients)).await;
    let text = endpoint("crm", &receiver, &format!("{}{}", ca(&servers), identity(&old)));
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let first = certificate(&old.certificate);
    send(&nats, "crm", "first").await;
    assert_eq!(receiver.next().await, Some(first.clone()));

    std::fs::copy(&new.certificate, &old.certificate).unwrap();
    hookbridge.reload();
    send(&nats, "crm", "unfit").await;
    assert_eq!(receiver.next().await, Some(first), "the key does not go with the certificate");

    std::fs::copy(&new.key, &old.key).unwrap();
    hookbridge.reload();
    send(&nats, "crm", "second").await;
    assert_eq!(receiver.next().await, Some(certificate(&new.certificate)));
}

#[tokio::test]
async fn what_cannot_work_is_found_when_the_configuration_is_loaded() {
    let folder = folder();
    let (authority, path) = (Authority::new(folder.path(), "a"), |name: &str| folder.path().join(name));
    let (one, two) = (authority.sign("one"), authority.sign("two"));
    std::fs::write(path("empty.pem"), "").unwrap();
    std::fs::write(path("broken.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let file = |key: &str, path: &Path| format!("{key} = '{}'\n", path.display());
    let unfit = format!("{}{}", file("certificate", &one.certificate), file("key", &two.key));

    for (tls, key, reason) in [
        (file("ca", &path("missing.pem")), "tls.ca", "cannot be read"),
        (file("ca", &path("empty.pem")), "tls.ca", "holds no certificate"),
        (file("ca", &path("broken.pem")), "tls.ca", "cannot be an authority"),
        (file("ca", &one.key), "tls.ca", "holds no certificate"),
        (file("certificate", &one.certificate), "tls.certificate", "needs `key`"),
        (file("key", &one.key), "tls.key", "needs `certificate`"),
        (unfit, "tls.key", "does not go with"),
        (
            format!("{}{}", file("certificate", &one.certificate), file("key", &path("empty.pem"))),
            "tls.key",
            "no private key",
        ),
        (file("authority", &authority.ca), "tls", "unknown"),
        ("\n".to_owned(), "tls", "names no file"),
    ] {
        let endpoint =
            format!("[endpoints.crm]\nurl = \"https://crm.example.com/\"\nsignatures = []\n{}", table("crm", &tls));
        let said = mistakes(&endpoint);
        assert!(said.contains(&format!("endpoints.crm.{key}")) && said.contains(reason), "{tls}: {said}");
        assert!(!said.contains("PRIVATE KEY"), "{said}");
    }
    let plain = format!(
        "[endpoints.crm]\nurl = \"http://127.0.0.1/\"\nsignatures = []\n{}",
        table("crm", &file("ca", &authority.ca))
    );
    assert!(mistakes(&plain).contains("endpoints.crm.tls"), "TLS for http was taken");
}
