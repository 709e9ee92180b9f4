//! A kept connection that was closed meanwhile costs no attempt: the request goes out once more over a fresh one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hookbridge::app::Roles;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::tls::{Authority, acceptor};
use crate::harness::{Act, Hookbridge, Hostile, Nats, eventually};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn endpoint(name: &str, url: &str) -> String {
    format!("[endpoints.{name}]\nurl = \"{url}\"\nsignatures = []\nretry = [\"1h\"]\n")
}

async fn publish(nats: &Nats, endpoint: &str, id: &str) {
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id)], "x").await;
}

async fn receipt(nats: &Nats, id: &str) -> serde_json::Value {
    nats.message("RECEIPTS", &format!("receipts.a.*.{id}")).await.json()
}

/// Answers one request, then does this to the next one.
fn once_then(end: &[Act]) -> Vec<Act> {
    [&[Act::Request, Act::Say(OK.to_vec())], end].concat()
}

#[tokio::test]
async fn a_408_that_closes_a_kept_connection_is_no_answer_to_the_next_request() {
    let late = Act::Say(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_vec());
    let nats = Nats::start().await;
    let receiver = Hostile::playing(once_then(&[Act::Request, late])).await;
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &endpoint("crm", &receiver.url("http"))).await;
    for number in 0..4 {
        let id = format!("m-{number}");
        publish(&nats, "crm", &id).await;
        let receipt = receipt(&nats, &id).await;
        let made = (receipt["outcome"].as_str(), receipt["attempt"].as_u64());
        assert_eq!(made, (Some("delivered"), Some(1)), "{receipt}");
    }
}

#[tokio::test]
async fn a_request_that_meets_a_dead_kept_connection_goes_out_once_more_within_its_attempt() {
    for end in [vec![Act::Request], vec![Act::Request, Act::Reset], vec![Act::Anything, Act::Reset]] {
        let nats = Nats::start().await;
        let receiver = Hostile::playing(once_then(&end)).await;
        let hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &endpoint("crm", &receiver.url("http"))).await;

        for number in 0..4 {
            let id = format!("m-{number}");
            publish(&nats, "crm", &id).await;
            let receipt = receipt(&nats, &id).await;
            let made = (receipt["outcome"].as_str(), receipt["attempt"].as_u64());
            assert_eq!(made, (Some("delivered"), Some(1)), "{end:?}: {receipt}");
        }

        assert!(receiver.connections() >= 2, "no connection was kept at all");
        let failed = "hookbridge_egress_attempts_total{destination=\"crm\",outcome=\"retrying\",error=\"protocol\"}";
        assert_eq!(hookbridge.metric(failed).await, 0.0);
    }
}

#[tokio::test]
async fn a_fresh_connection_that_ends_without_an_answer_is_a_failed_attempt() {
    let nats = Nats::start().await;
    let kept = once_then(&[Act::Request]);
    let receiver = Hostile::playing_each(vec![kept, vec![Act::Request]]).await;
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &endpoint("crm", &receiver.url("http"))).await;
    publish(&nats, "crm", "first").await;
    assert_eq!(receipt(&nats, "first").await["outcome"], "delivered");

    publish(&nats, "crm", "second").await;

    let failed = receipt(&nats, "second").await;
    assert_eq!((failed["outcome"].as_str(), failed["error_class"].as_str()), (Some("retrying"), Some("protocol")));
    assert_eq!(receiver.connections(), 2, "once more, and not again");
}

#[tokio::test]
async fn an_answer_that_had_begun_is_never_asked_for_twice() {
    let nats = Nats::start().await;
    let receiver = Hostile::playing(once_then(&[Act::Request, Act::Say(b"HTTP/1.1 20".to_vec())])).await;
    let _hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &endpoint("crm", &receiver.url("http"))).await;
    publish(&nats, "crm", "first").await;
    assert_eq!(receipt(&nats, "first").await["outcome"], "delivered");

    publish(&nats, "crm", "second").await;

    assert_eq!(receipt(&nats, "second").await["error_class"], "protocol");
    assert_eq!(receiver.connections(), 1);
}

/// Reads a request and answers it, 5 ms later closes, whatever comes meanwhile.
async fn answer_and_close<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, answered: Arc<AtomicUsize>) {
    let mut bytes = Vec::new();
    let deadline = loop {
        let is_whole = |bytes: &[u8]| bytes.windows(4).any(|window| window == b"\r\n\r\n") && bytes.ends_with(b"x");
        match tokio::time::timeout(Duration::from_secs(30), stream.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) if is_whole(&bytes) => {
                answered.fetch_add(1, Ordering::Relaxed);
                if stream.write_all(OK).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                break tokio::time::Instant::now() + Duration::from_millis(5);
            }
            Ok(Ok(1..)) => {}
            _ => return,
        }
    };
    // What comes now is read and never answered.
    while let Ok(Ok(1..)) = tokio::time::timeout_at(deadline, stream.read_buf(&mut bytes)).await {}
}

async fn closing(tls: Option<TlsAcceptor>) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, answered) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let count = answered.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, count) = (tls.clone(), count.clone());
            tokio::spawn(async move {
                match tls {
                    None => answer_and_close(stream, count).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            answer_and_close(stream, count).await;
                        }
                    }
                }
            });
        }
    });
    (address, answered)
}

#[tokio::test]
async fn a_server_that_closes_shortly_after_each_answer_gets_every_delivery_at_the_first_attempt() {
    let (nats, folder) = (Nats::start().await, tempfile::tempdir().unwrap());
    let authority = Authority::new(folder.path(), "servers");
    let (plain, plain_answered) = closing(None).await;
    let (tls, tls_answered) = closing(Some(acceptor(&authority.sign("127.0.0.1"), None))).await;
    let text = format!(
        "{}max_concurrent = 8\n{}max_concurrent = 8\n[endpoints.tls.tls]\nca = '{}'\n",
        endpoint("plain", &format!("http://{plain}/")),
        endpoint("tls", &format!("https://{tls}/")),
        authority.ca.display()
    );
    let hookbridge = Hookbridge::start_as(&nats, Roles::Courier, &format!("[egress]\ntimeout = \"30s\"\n{text}")).await;

    for number in 0..200 {
        publish(&nats, "plain", &format!("plain-{number}")).await;
        publish(&nats, "tls", &format!("tls-{number}")).await;
    }

    nats.messages("RECEIPTS", "receipts.a.delivered.*", 400).await;
    let subjects = nats.subjects("RECEIPTS").await;
    assert!(!subjects.iter().any(|subject| subject.contains(".retrying.")), "an attempt failed: {subjects:?}");
    assert_eq!((plain_answered.load(Ordering::Relaxed), tls_answered.load(Ordering::Relaxed)), (200, 200));
    for name in ["plain", "tls"] {
        let made =
            format!("hookbridge_egress_attempts_total{{destination=\"{name}\",outcome=\"delivered\",error=\"none\"}}");
        eventually("all to be counted", async || (hookbridge.metric(&made).await == 200.0).then_some(())).await;
    }
}
