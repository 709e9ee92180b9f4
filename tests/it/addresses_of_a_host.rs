//! Several addresses of one host, wrong ones among them, and no file descriptor to reach any.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::harness::{Configuration, Dns, Hookbridge, Nats, Program, Receiver, Reply, eventually};

const NAME: &str = "crm.example.test";

fn endpoint(port: u16, dns: &Dns, more: &str) -> String {
    format!(
        "[egress]\nnameservers = [\"{}\"]\n{more}\n[endpoints.crm]\nurl = \"http://{NAME}:{port}/\"\nsignatures = []\n\
         [callbacks]\nallow = [\"*\"]\nsignatures = []\n",
        dns.address()
    )
}

async fn publish(nats: &Nats, id: &str) {
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", id)], "x").await;
}

/// An address that does not answer to connecting: its queue is full and nobody takes from it.
async fn swallowing(address: SocketAddr) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(address).unwrap();
    let (listener, mut waiting) = (socket.listen(1).unwrap(), Vec::new());
    while let Ok(connected) = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
        waiting.push(connected.unwrap());
    }
    (listener, waiting)
}

#[tokio::test]
async fn an_address_that_does_not_answer_holds_the_others_up_for_a_moment_only() {
    let (nats, dns) = (Nats::start().await, Dns::start().await);
    let mut receiver = Receiver::at("127.0.0.2:0").await;
    let silent = [3, 4].map(|last| SocketAddr::from(([127, 0, 0, last], receiver.port())));
    let _silent = [swallowing(silent[0]).await, swallowing(silent[1]).await];
    dns.say(NAME, &["127.0.0.3 127.0.0.4 127.0.0.2"]);
    // Half of this is more than the test would wait for.
    let _hookbridge = Hookbridge::start(&nats, &endpoint(receiver.port(), &dns, "timeout = \"10m\"")).await;

    publish(&nats, "m-1").await;

    receiver.next().await;
    assert_eq!(nats.message("RECEIPTS", "receipts.a.*.m-1").await.json()["attempt"], 1);
}

#[tokio::test]
async fn a_wrong_address_of_a_moment_is_not_final_for_an_endpoint_and_is_for_a_callback() {
    let (nats, dns) = (Nats::start().await, Dns::start().await);
    let mut receiver = Receiver::at("127.0.0.2:0").await;
    dns.say(NAME, &["0.0.0.0", "127.0.0.2"]);
    let text = endpoint(receiver.port(), &dns, "retry = [\"100ms\"]");
    let _hookbridge = Hookbridge::start(&nats, &text).await;

    publish(&nats, "m-1").await;

    receiver.next().await;
    let retrying = nats.message("RECEIPTS", "receipts.a.retrying.m-1").await.json();
    assert_eq!((retrying["attempt"].as_u64(), retrying["error_class"].as_str()), (Some(1), Some("forbidden")));
    assert!(retrying["detail"].as_str().unwrap().contains("0.0.0.0"), "{retrying}");
    assert_eq!(nats.message("RECEIPTS", "receipts.a.delivered.m-1").await.json()["attempt"], 2);

    dns.say("other.example.test", &["0.0.0.0", "127.0.0.2"]);
    let url = format!("http://other.example.test:{}/", receiver.port());
    nats.publish("outbox.a", &[("Hookbridge-Callback-Url", &url), ("Nats-Msg-Id", "callback")], "x").await;
    let dead = nats.message("RECEIPTS", "receipts.a.*.callback").await.json();
    assert_eq!((dead["outcome"].as_str(), dead["reason"].as_str()), (Some("dead"), Some("forbidden")));
}

#[tokio::test]
async fn without_a_file_descriptor_nothing_is_an_attempt_and_everything_is_delivered_later() {
    const MESSAGES: usize = 80;
    let (nats, receiver) = (Nats::start().await, Receiver::start().await);
    receiver.otherwise(Reply::Hold);
    let text = format!(
        "[egress]\ntimeout = \"10m\"\nretry = [\"100ms\"]\n\
         [endpoints.crm]\nurl = \"{}\"\nsignatures = []\nmax_concurrent = 200\nbreaker = {{ failures = 2 }}\n",
        receiver.url("/")
    );
    let configuration = Configuration::new(&text);
    let courier = configuration.hookbridge(&["courier", "--nats", &nats.url()]);
    let courier = courier.as_std();
    let mut limited = tokio::process::Command::new("sh");
    limited.args(["-c", "ulimit -n 56 && exec \"$0\" \"$@\""]).arg(courier.get_program()).args(courier.get_args());
    let courier = Program::start(&mut limited);
    courier.ready().await;

    for number in 0..MESSAGES {
        publish(&nats, &format!("m-{number}")).await;
    }

    courier.complains("Out of file descriptors for deliveries").await;
    receiver.otherwise(Reply::Status(204));
    for number in 0..MESSAGES {
        let delivered = async || {
            receiver.release();
            let subject = format!("receipts.a.delivered.m-{number}");
            nats.subjects("RECEIPTS").await.contains(&subject).then_some(())
        };
        eventually("the delivery", delivered).await;
    }
    let subjects = nats.subjects("RECEIPTS").await;
    assert!(!subjects.iter().any(|subject| subject.contains(".retrying.")), "{subjects:?}");
}
