//! Every known way of writing a URL that leads inside, as an agent would write it, with canaries that must never be
//! reached. The URLs stand in `data/hostile_urls.txt`.

use std::collections::BTreeMap;

use tokio::net::TcpListener;

use crate::harness::{Dns, Hookbridge, Nats, Receiver, free_port};

const URLS: &str = include_str!("data/hostile_urls.txt");

/// What the name server says of names beneath hostile.test, question by question.
const NAMES: [(&str, &str); 47] = [
    ("loopback", "127.0.0.1"),
    ("loopback-again", "127.0.0.1 127.0.0.1"),
    ("zero", "0.0.0.0"),
    ("private-a", "10.0.0.1"),
    ("private-b", "172.16.0.1"),
    ("private-c", "192.168.0.1"),
    ("shared", "100.64.0.1"),
    ("link-local", "169.254.1.1"),
    ("metadata", "169.254.169.254"),
    ("alibaba", "100.100.100.200"),
    ("oracle", "192.0.0.192"),
    ("azure", "168.63.129.16"),
    ("benchmark", "198.18.0.1"),
    ("multicast", "224.0.0.1"),
    ("broadcast", "255.255.255.255"),
    ("documentation", "192.0.2.1"),
    ("v6-loopback", "::1"),
    ("v6-unspecified", "::"),
    ("v6-mapped", "::ffff:127.0.0.1"),
    ("v6-mapped-metadata", "::ffff:169.254.169.254"),
    ("v6-compatible", "::127.0.0.1"),
    ("v6-translated", "::ffff:0:127.0.0.1"),
    ("v6-nat64", "64:ff9b::127.0.0.1"),
    ("v6-nat64-local", "64:ff9b:1::127.0.0.1"),
    ("v6-6to4", "2002:7f00:1::1"),
    ("v6-teredo", "2001:0:4136:e378:8000:63bf:80ff:fffe"),
    ("v6-isatap", "2a00:1450:4001:800:0:5efe:127.0.0.1"),
    ("v6-unique-local", "fd00::1"),
    ("v6-link-local", "fe80::1"),
    ("v6-aws", "fd00:ec2::254"),
    ("v6-documentation", "2001:db8::1"),
    ("v6-segment", "5f00::1"),
    ("public-and-private", "93.184.215.14 127.0.0.1"),
    ("private-and-public", "127.0.0.1 93.184.215.14"),
    ("many-and-one", "93.184.215.14 93.184.215.15 93.184.215.16 93.184.215.17 93.184.215.18 10.0.0.1"),
    ("public-v4-and-private-v6", "93.184.215.14 ::1"),
    ("private-v4-and-public-v6", "127.0.0.1 2606:2800:21f::1"),
    ("alias", "loopback.hostile.test"),
    ("alias-of-alias", "alias.hostile.test"),
    ("alias-far", "alias-of-alias.hostile.test"),
    ("alias-to-v6", "v6-mapped.hostile.test"),
    ("alias-beside", "public-and-private.hostile.test"),
    ("alias-to-localhost", "localhost"),
    ("a.wild", "127.0.0.1"),
    ("deep.er.wild", "127.0.0.1"),
    ("xn--bcher-kva", "127.0.0.1"),
    ("never", "127.0.0.1"),
];

/// Listeners on both loopback addresses at one port, which must never be reached.
struct Canary(Vec<Receiver>, u16);

impl Canary {
    async fn start() -> Self {
        let port = free_on_both().await;
        // A machine without IPv6 has one listener only.
        let has_v6 = TcpListener::bind("[::1]:0").await.is_ok();
        let mut listeners = vec![Receiver::at(&format!("127.0.0.1:{port}")).await];
        if has_v6 {
            listeners.push(Receiver::at(&format!("[::1]:{port}")).await);
        }
        Self(listeners, port)
    }

    fn connections(&self) -> usize {
        self.0.iter().map(Receiver::connections).sum()
    }
}

/// A port that is free on both loopback addresses; somebody else may have the one of the first at the second.
async fn free_on_both() -> u16 {
    for _ in 0..100 {
        let port = free_port();
        match TcpListener::bind(("::1", port)).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Ok(_) | Err(_) => return port,
        }
    }
    panic!("no port is free on both loopback addresses")
}

/// The URLs of the file, with the canaries' ports; and those of this machine's own addresses.
fn urls(canary: &Canary, other: &Canary) -> Vec<String> {
    let (port, other) = (canary.1.to_string(), other.1.to_string());
    let written = URLS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let read = |line: &str| serde_json::from_str::<String>(&format!("\"{line}\"")).unwrap();
    let mut urls: Vec<String> =
        written.map(|line| read(line).replace("{port}", &port).replace("{other}", &other)).collect();
    for interface in if_addrs::get_if_addrs().unwrap() {
        let host = if interface.ip().is_ipv6() { format!("[{}]", interface.ip()) } else { interface.ip().to_string() };
        urls.push(format!("http://{host}:{port}/"));
    }
    urls
}

#[tokio::test]
async fn no_hostile_url_reaches_anything_and_each_ends_as_a_dead_letter() {
    let (nats, dns) = (Nats::start().await, Dns::start().await);
    let (canary, other) = (Canary::start().await, Canary::start().await);
    for (name, answer) in NAMES {
        dns.say(&format!("{name}.hostile.test"), &[answer]);
    }
    dns.say("localhost", &["127.0.0.1 ::1"]);
    let text = format!(
        "[egress]\nallow_networks = []\nretry = []\nnameservers = [\"{}\"]\n\
         [callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]",
        dns.address()
    );
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let urls = urls(&canary, &other);
    assert!(urls.len() >= 500, "{}", urls.len());

    for (index, url) in urls.iter().enumerate() {
        let envelope = serde_json::json!({ "callback_url": url, "payload": index });
        nats.publish("outbox.a", &[("Nats-Msg-Id", &format!("u-{index}"))], envelope.to_string()).await;
    }

    let mut escaped = Vec::new();
    let mut reasons = BTreeMap::<String, usize>::new();
    for letter in nats.messages("DEAD", "dead.>", urls.len()).await {
        let index: usize = letter.subject.rsplit_once("u-").unwrap().1.parse().unwrap();
        let reason = letter.header("Hookbridge-Reason").unwrap_or_default().to_owned();
        if !["forbidden", "malformed"].contains(&reason.as_str()) {
            escaped.push(format!("{:?}: {reason}: {:?}", urls[index], letter.headers));
        }
        *reasons.entry(reason).or_default() += 1;
    }
    assert!(escaped.is_empty(), "{} of {}:\n{}", escaped.len(), urls.len(), escaped.join("\n"));
    assert!(reasons["forbidden"] >= 400 && reasons["malformed"] >= 50, "{reasons:?}");
    assert_eq!((canary.connections(), other.connections()), (0, 0));
    assert_eq!(nats.count("DEAD").await, urls.len() as u64);
    assert_eq!(dns.asked("never.hostile.test"), 0, "a port is refused before its host is looked up");
    assert!(dns.asked("loopback.hostile.test") > 0, "the names were not looked up at all");
}
