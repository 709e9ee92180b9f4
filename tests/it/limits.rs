//! What a hostile or broken sender meets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Hookbridge, Nats, send_raw, within};

const SMALL: &str = r#"
[gateway]
listen = "127.0.0.1:0"
max_body = "1KiB"
max_headers = "4KiB"
max_in_flight = "2KiB"
header_timeout = "300ms"
idle_timeout = "300ms"
body_timeout = "300ms"

[sources.open]
verify = "none"
"#;

#[tokio::test]
async fn a_body_at_the_limit_is_taken_and_one_byte_more_is_413() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    hookbridge.post("/hooks/open", &[], vec![b'x'; 1024]).await.assert_status(202);
    hookbridge.post("/hooks/open", &[], vec![b'x'; 1025]).await.assert_status(413);

    let mut chunked =
        b"POST /hooks/open HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n".to_vec();
    chunked.extend(format!("401\r\n{}\r\n0\r\n\r\n", "x".repeat(1025)).bytes());
    let answer = send_raw(&hookbridge.url("/"), &chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("application/problem+json"), "{answer}");
    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn a_body_that_the_server_could_not_take_is_413_before_it_can_close_the_connection() {
    let nats = Nats::start_with("max_payload: 128KB").await;
    let hookbridge = Hookbridge::start(&nats, "[sources.open]\nverify = \"none\"").await;
    hookbridge.post("/hooks/open", &[], vec![b'x'; 64 * 1024]).await.assert_status(202);
    hookbridge.post("/hooks/open", &[], vec![b'x'; 64 * 1024 + 1]).await.assert_status(413);
    hookbridge.post("/hooks/open", &[], vec![b'x'; 200 * 1024]).await.assert_status(413);
    hookbridge.post("/hooks/open", &[], "small").await.assert_status(202);
}

#[tokio::test]
async fn a_flood_of_headers_is_413_whether_many_or_large() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    let many: String = (0..500).map(|index| format!("x-{index}: y\r\n")).collect();
    let floods = [
        ("five kilobytes", format!("x: {}\r\n", "y".repeat(5000))),
        ("five hundred", many),
        ("a megabyte", format!("x: {}\r\n", "y".repeat(1 << 20))),
    ];
    for (name, flood) in floods {
        let request =
            format!("POST /hooks/open HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n{flood}\r\n");
        let answer = send_raw(&hookbridge.url("/"), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{name}: {answer}");
        assert!(answer.contains("application/problem+json"), "{name}: {answer}");
    }
    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn a_slow_body_is_408_and_so_are_slow_headers() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    for slow in [
        "POST /hooks/open HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx",
        "POST /hooks/open HTTP/1.1\r\nhost: x\r\nx-endless: ",
    ] {
        let answer = send_raw(&hookbridge.url("/"), slow.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{slow:?}: {answer}");
        assert!(answer.contains("application/problem+json"), "{slow:?}: {answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_without_a_word() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    assert_eq!(send_raw(&hookbridge.url("/"), b"").await, "");
}

#[tokio::test]
async fn bodies_over_the_budget_are_429_and_the_budget_comes_back() {
    let nats = Nats::start().await;
    let text = SMALL.replace("body_timeout = \"300ms\"", "body_timeout = \"20s\"");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let address = hookbridge.url("").replace("http://", "");
    let head = b"POST /hooks/open HTTP/1.1\r\nhost: x\r\ncontent-length: 1024\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(head).await.unwrap();
        stream.write_all(&[b'x'; 1000]).await.unwrap();
        held.push(stream);
    }
    let both = async || hookbridge.metric("hookbridge_ingress_body_bytes").await >= 2000.0;
    crate::harness::eventually("both bodies to be held", async || both().await.then_some(())).await;

    let busy = hookbridge.post("/hooks/open", &[], "x").await;
    busy.assert_status(429);
    assert_eq!(busy.header("retry-after"), "1");

    for mut stream in held {
        stream.write_all(&[b'y'; 24]).await.unwrap();
        let mut answer = [0; 12];
        within("an answer", stream.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 202");
    }
    let freed = async || hookbridge.post("/hooks/open", &[], "x").await.status == 202;
    crate::harness::eventually("the budget to be free again", async || freed().await.then_some(())).await;
}

#[tokio::test]
async fn a_sender_that_goes_away_in_the_middle_leaves_nothing_behind() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    let address = hookbridge.url("").replace("http://", "");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST /hooks/open HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
    drop(stream);

    let gone = async || hookbridge.metric("hookbridge_ingress_connections").await == 0.0;
    crate::harness::eventually("the connection to end", async || gone().await.then_some(())).await;
    assert_eq!(hookbridge.metric("hookbridge_ingress_body_bytes").await, 0.0);
    assert_eq!(nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_while_every_other_has_a_request_in_progress() {
    let nats = Nats::start().await;
    let text = SMALL.replace("body_timeout = \"300ms\"", "body_timeout = \"20s\"\nmax_connections = 1");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let address = hookbridge.url("").replace("http://", "");
    let mut first = TcpStream::connect(&address).await.unwrap();
    first.write_all(b"POST /hooks/open HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
    let begun = async || (hookbridge.metric("hookbridge_ingress_body_bytes").await == 2.0).then_some(());
    crate::harness::eventually("the first request to have begun", begun).await;
    let mut second = TcpStream::connect(&address).await.unwrap();
    second
        .write_all(b"POST /hooks/open HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(200), second.read(&mut byte)).await;
    assert!(early.is_err(), "the second connection was served beside the first");

    drop(first);
    let mut answer = String::new();
    within("an answer", second.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
}

const POST: &str = "POST /hooks/open HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n";

#[tokio::test]
async fn what_follows_a_request_never_costs_it_its_answer() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    let two = format!("{POST}\r\nab{POST}connection: close\r\n\r\ncd");
    for (name, request, expected) in [
        ("a stray line end", format!("{POST}\r\n01\r\n"), vec!["202"]),
        ("a stray line end before the close", format!("{POST}connection: close\r\n\r\n02\r\n"), vec!["202"]),
        ("the beginning of another request", format!("{POST}\r\n03POST /ho"), vec!["202", "408"]),
        ("another request", two, vec!["202", "202"]),
        ("what is no request", format!("{POST}\r\n04\u{1} nonsense\r\n\r\n"), vec!["202", "400"]),
    ] {
        let answer = send_raw(&hookbridge.url("/"), request.as_bytes()).await;
        let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)).collect();
        assert_eq!(statuses, expected, "{name}: {answer}");
    }
    assert_eq!(nats.count("EVENTS").await, 6);
}

#[tokio::test]
async fn a_body_over_the_limit_in_many_chunks_is_answered_413() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let request = format!(
        "POST /hooks/open HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(64)
    );
    let answer = send_raw(&hookbridge.url("/"), request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn a_path_that_is_no_text_is_the_same_404() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    hookbridge.post("/hooks/%ff", &[], "x").await.assert_status(404);
}

#[tokio::test]
async fn a_sender_that_has_said_all_it_has_to_say_still_gets_its_answer() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, SMALL).await;
    let mut stream = TcpStream::connect(hookbridge.url("").replace("http://", "")).await.unwrap();
    stream.write_all(format!("{POST}\r\nab").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    within("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
}
