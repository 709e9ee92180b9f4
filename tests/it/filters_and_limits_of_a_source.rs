//! What a source says for itself: what it wants, how much of it, and how it answers.

use data_encoding::BASE64;

use crate::harness::{Answer, Hookbridge, Nats, mistakes, request, send_raw, sign};

async fn open(hookbridge: &Hookbridge, event_type: &str, id: &str) -> Answer {
    hookbridge.post("/hooks/open", &[("x-type", event_type), ("x-id", id)], "{}").await
}

#[tokio::test]
async fn types_that_are_not_wanted_are_answered_counted_and_not_published() {
    let nats = Nats::start().await;
    let text = r#"
[sources.open]
verify = "none"
type = "header:X-Type"
id = "header:X-Id"
types = ["issues.*", "push", "*.done", "unknown"]
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    for (id, event_type) in ["issues.opened", "push", "a.b.done", ""].into_iter().enumerate() {
        let answer = open(&hookbridge, event_type, &id.to_string()).await;
        answer.assert_status(202);
        assert_eq!(answer.json()["filtered"], serde_json::Value::Null, "{event_type}");
    }
    for event_type in ["issues", "pushed", "Push", "done", "a.done.b"] {
        let answer = open(&hookbridge, event_type, "unwanted").await;
        answer.assert_status(202);
        assert_eq!(answer.json(), serde_json::json!({ "id": "unwanted", "duplicate": false, "filtered": true }));
    }

    let expected = ["events.open.a.b.done", "events.open.issues.opened", "events.open.push", "events.open.unknown"];
    assert_eq!(nats.subjects("EVENTS").await, expected);
    assert_eq!((hookbridge.counted("open", "filtered").await, hookbridge.counted("open", "stored").await), (5.0, 4.0));
}

#[tokio::test]
async fn an_id_that_was_filtered_is_not_taken_for_stored_afterwards() {
    let nats = Nats::start().await;
    let text = "[sources.open]\nverify = \"none\"\ntype = \"header:X-Type\"\nid = \"header:X-Id\"\ntypes = [\"a\"]";
    let hookbridge = Hookbridge::start(&nats, text).await;
    assert_eq!(open(&hookbridge, "b", "same").await.json()["filtered"], true);
    assert_eq!(open(&hookbridge, "a", "same").await.json()["duplicate"], false);
    assert_eq!(nats.count("EVENTS").await, 1);
}

#[tokio::test]
async fn a_forged_webhook_of_an_unwanted_type_is_401_all_the_same() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &format!("{}types = [\"push\"]", sign::SOURCES)).await;
    hookbridge.post("/hooks/github", &sign::github("sha256=00", "issues", "1"), "{}").await.assert_status(401);
    assert_eq!(hookbridge.counted("github", "filtered").await, 0.0);
}

#[tokio::test]
async fn the_largest_body_of_a_source_may_be_under_and_over_the_gateways() {
    let nats = Nats::start().await;
    let text = r#"
[gateway]
listen = "127.0.0.1:0"
max_body = "10KiB"
[sources.small]
verify = "none"
max_body = "1KiB"
[sources.large]
verify = "none"
max_body = "100KiB"
[sources.other]
verify = "none"
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    for (source, limit) in [("small", 1024), ("large", 100 * 1024), ("other", 10 * 1024)] {
        let path = format!("/hooks/{source}");
        hookbridge.post(&path, &[], vec![b'x'; limit]).await.assert_status(202);
        let over = hookbridge.post(&path, &[], vec![b'x'; limit + 1]).await;
        over.assert_status(413);
        assert_eq!(over.json()["detail"], format!("body is larger than {limit} bytes"));
        assert_eq!(hookbridge.counted(source, "too-large").await, 1.0);
    }
    assert_eq!(nats.count("EVENTS").await, 3);
}

#[tokio::test]
async fn a_body_that_could_never_be_held_is_a_mistake_at_load() {
    let text = "[gateway]\nmax_in_flight = \"1MiB\"\n[sources.a]\nverify = \"none\"\nmax_body = \"2MiB\"";
    let said = mistakes(text);
    assert!(said.contains("sources.a.max_body") && said.contains("max_in_flight"), "{said}");
}

#[tokio::test]
async fn the_largest_webhook_of_github_is_taken_byte_for_byte() {
    let nats = Nats::start_with("max_payload: 32MB").await;
    let text = format!("{}max_body = \"25MiB\"", sign::SOURCES);
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let mut body = br#"{"action":"completed","pad":""#.to_vec();
    // Bytes that repeat at no power of two, so that a piece out of place is seen.
    body.extend((0..25 * 1024 * 1024 - body.len() - 2).map(|index| b'a' + (index % 23) as u8));
    body.extend(b"\"}");
    assert_eq!(body.len(), 25 * 1024 * 1024);
    let signature = sign::hex("s3cret", &body);

    let answer = hookbridge.post("/hooks/github", &sign::github(&signature, "check_run", "1"), body.clone()).await;

    answer.assert_status(202);
    let event = nats.message("EVENTS", "events.github.check_run.completed").await;
    assert!(event.payload == body, "the body was changed");
    body.push(b' ');
    let signature = sign::hex("s3cret", &body);
    hookbridge.post("/hooks/github", &sign::github(&signature, "check_run", "2"), body).await.assert_status(413);
}

#[tokio::test]
async fn methods_and_content_types_are_the_sources_own() {
    let nats = Nats::start().await;
    let text = r#"
[sources.own]
verify = "none"
methods = ["PUT", "GET"]
content_types = ["application/json", "text/xml"]
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let send = async |method: &str, content_type: &str, body: &'static str| {
        let headers = [("content-type", content_type)];
        request(method, &hookbridge.url("/hooks/own"), &headers, body).await
    };

    let refused = send("POST", "application/json", "1").await;
    refused.assert_status(405);
    assert_eq!(refused.header("allow"), "GET, PUT");
    send("PUT", "application/json", "2").await.assert_status(202);
    send("PUT", "Application/JSON; charset=utf-8", "3").await.assert_status(202);
    send("GET", "text/xml", "").await.assert_status(202);
    for other in ["text/plain", "application/jsonx", "application/json, text/plain", ""] {
        send("PUT", other, "4").await.assert_status(415);
    }
    request("PUT", &hookbridge.url("/hooks/own"), &[], "5").await.assert_status(415);

    assert_eq!(nats.count("EVENTS").await, 3);
    assert_eq!(hookbridge.counted("own", "content-type").await, 5.0);
}

#[tokio::test]
async fn senders_are_answered_as_they_want_it() {
    let nats = Nats::start().await;
    let text = r#"
[sources.text]
verify = "none"
answer = { status = 200, text = "[accepted]" }
[sources.json]
verify = "none"
answer = { status = 201, json = { ok = true, n = [1] } }
[sources.empty]
verify = "none"
answer = { status = 200, text = "" }
[sources.nothing]
verify = "none"
answer = { status = 204 }
[sources.adyen]
preset = "adyen"
secrets = ["plain:44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"]
[sources.xero]
preset = "xero"
secrets = ["plain:x"]
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let mut answers = Vec::new();
    for source in ["text", "json", "empty", "nothing"] {
        // The repeat is answered like the first.
        for _ in 0..2 {
            let answer = hookbridge.post(&format!("/hooks/{source}"), &[], "{}").await;
            answers.push((answer.status.as_u16(), answer.header("content-type").to_owned(), answer.text()));
        }
    }
    let plain = |status, text: &str| (status, "text/plain; charset=utf-8".to_owned(), text.to_owned());
    let json = (201, "application/json".to_owned(), r#"{"n":[1],"ok":true}"#.to_owned());
    let (empty, nothing) = ((200, String::new(), String::new()), (204, String::new(), String::new()));
    let expected = [plain(200, "[accepted]"), json, empty, nothing];
    let doubled: Vec<_> = expected.iter().flat_map(|answer| [answer.clone(), answer.clone()]).collect();
    assert_eq!(answers, doubled);

    let refused = hookbridge.post("/hooks/xero", &[("x-xero-signature", "eA==")], r#"{"events":[]}"#).await;
    assert_eq!((refused.status.as_u16(), refused.text().as_str(), refused.header("content-type")), (401, "", ""));
    let body = r#"{"eventDate":"x"}"#;
    let key =
        data_encoding::HEXUPPER.decode(b"44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056").unwrap();
    let signature = BASE64.encode(&sign::hmac(&key, body.as_bytes()));
    let accepted = hookbridge.post("/hooks/adyen", &[("hmacsignature", &signature)], body).await;
    assert_eq!((accepted.status.as_u16(), accepted.text().as_str()), (200, "[accepted]"));
    hookbridge.post("/hooks/adyen", &[("hmacsignature", "eA==")], body).await.assert_status(401);
}

#[tokio::test]
async fn an_answer_without_a_body_leaves_the_connection_in_order() {
    let nats = Nats::start().await;
    let text = r#"
[sources.nothing]
verify = "none"
answer = { status = 204 }
[sources.empty]
verify = "none"
answer = { status = 204, text = "nobody reads this" }
[[sources.empty.handshake]]
name = "hello"
methods = ["PUT"]
verified = false
status = 204
text = "nor this"
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let request = |method: &str, source: &str, rest: &str| {
        format!("{method} /hooks/{source} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n{rest}\r\nx")
    };
    let three = [("POST", "nothing", ""), ("POST", "empty", ""), ("PUT", "empty", "connection: close\r\n")];
    let three = three.map(|(method, source, rest)| request(method, source, rest)).concat();

    let answer = send_raw(&hookbridge.url("/"), three.as_bytes()).await;

    // RFC 9110, section 8.6: a length would make some wait for a body that never comes.
    let answers: Vec<&str> = answer.split("HTTP/1.1 204 ").collect();
    assert!(answers.len() == 4 && answers[0].is_empty(), "{answer}");
    assert!(!answer.contains("content-length:") && !answer.contains("content-type:"), "{answer}");
    assert!(!answer.contains("this") && !answer.contains('{'), "{answer}");
}

#[tokio::test]
async fn names_can_be_put_together() {
    let nats = Nats::start().await;
    let text = r#"
[sources.list]
verify = "none"
type = ["header:X-Topic", "json:/action"]
id = ["json:/shop", "json:/nr"]
[sources.template]
verify = "none"
type = "shop.{header:X-Topic}.{json:/missing}"
id = "{json:/shop}/{json:/nr}"
[sources.first]
verify = "none"
type = "query:t | header:X-Topic"
id = "json:/none | json:/nr"
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let post = async |path: &str, body: &'static str| {
        let answer = hookbridge.post(path, &[("x-topic", "orders/create")], body).await;
        answer.assert_status(202).json()["id"].as_str().unwrap().to_owned()
    };
    let whole = r#"{"shop":"s","nr":7,"action":"made"}"#;

    assert_eq!(post("/hooks/list", whole).await, "s.7");
    assert_eq!(post("/hooks/template", whole).await, "s/7");
    assert_eq!(post("/hooks/first?t=mine", whole).await, "7");
    // Half of an id names nothing.
    assert!(post("/hooks/list", r#"{"shop":"s"}"#).await.starts_with("sha256:"));
    assert!(post("/hooks/template", r#"{"nr":7}"#).await.starts_with("sha256:"));

    let expected = [
        "events.first.mine",
        "events.list.orders.create",
        "events.list.orders.create.made",
        "events.template.shop.orders.create",
    ];
    assert_eq!(nats.subjects("EVENTS").await, expected);
}

#[tokio::test]
async fn ids_that_are_numbers_are_told_apart_to_the_last_digit() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, "[sources.own]\nverify = \"none\"\nid = \"json:/id\"").await;
    for id in ["12345678901234567890123", "12345678901234567890124", "1.0", "1", "1.00", "-0", "1e2"] {
        let answer = hookbridge.post("/hooks/own", &[], format!(r#"{{"id":{id}}}"#)).await;
        assert_eq!(answer.json(), serde_json::json!({ "id": id, "duplicate": false }));
    }
    assert_eq!(nats.count("EVENTS").await, 7);
}

#[tokio::test]
async fn without_a_window_equal_bodies_are_different_events() {
    let nats = Nats::start().await;
    let text = "[sources.own]\nverify = \"none\"\ndedupe_hash_window = \"0s\"";
    let hookbridge = Hookbridge::start(&nats, text).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = hookbridge.post("/hooks/own", &[], "same").await;
        assert_eq!(answer.json()["duplicate"], false);
        ids.push(answer.json()["id"].to_string());
    }
    ids.dedup();
    assert_eq!((ids.len(), nats.count("EVENTS").await), (3, 3));
}

#[tokio::test]
async fn what_a_source_says_itself_wins_over_its_preset() {
    let nats = Nats::start().await;
    let text = r#"
[sources.github]
preset = "github"
secrets = ["plain:s3cret"]
type = "gh.{header:X-GitHub-Event}"
id = "json:/nr"
answer = { status = 200, text = "thanks" }
methods = ["PUT"]
headers = ["X-GitHub-Event"]
[sources.own-way]
preset = "github"
secrets = ["plain:s3cret"]
[sources.own-way.verify]
header = "X-Other"
algorithm = "hmac-sha256"
"#;
    let hookbridge = Hookbridge::start(&nats, text).await;
    let body = br#"{"nr":5,"action":"opened"}"#;
    let (signature, bare) = (sign::hex("s3cret", body), sign::bare("s3cret", body));
    let headers = sign::github(&signature, "issues", "header-id");

    let answer = request("PUT", &hookbridge.url("/hooks/github"), &headers, &body[..]).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "thanks"));
    hookbridge.post("/hooks/github", &headers, &body[..]).await.assert_status(405);
    let event = nats.message("EVENTS", "events.github.gh.issues").await;
    assert_eq!((event.header("ce-id"), event.header("http-x-github-event")), (Some("5"), Some("issues")));

    hookbridge.post("/hooks/own-way", &headers, &body[..]).await.assert_status(401);
    let mut own = headers.clone();
    own.push(("x-other", &bare));
    hookbridge.post("/hooks/own-way", &own, &body[..]).await.assert_status(202);
    nats.message("EVENTS", "events.own-way.issues.opened").await;
}

#[tokio::test]
async fn a_form_in_parts_is_a_form() {
    let nats = Nats::start().await;
    let text = "[sources.sign]\npreset = \"dropbox-sign\"\nsecrets = [\"plain:api-key\"]";
    let hookbridge = Hookbridge::start(&nats, text).await;
    let post = async |event_type: &str| {
        let hash = sign::bare("api-key", b"1348177752signature_request_sent");
        let event =
            format!(r#"{{"event":{{"event_time":"1348177752","event_type":"{event_type}","event_hash":"{hash}"}}}}"#);
        let part = "content-disposition: form-data; name=\"json\"\r\ncontent-type: application/json";
        let body = format!("--b0\r\n{part}\r\n\r\n{event}\r\n--b0--\r\n");
        hookbridge.post("/hooks/sign", &[("content-type", "multipart/form-data; boundary=b0")], body).await
    };

    let answer = post("signature_request_sent").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "Hello API Event Received"));
    post("signature_request_signed").await.assert_status(401);

    let event = nats.message("EVENTS", "events.sign.signature_request_sent").await;
    assert!(event.payload.starts_with(b"--b0\r\n"), "{event:?}");
}
