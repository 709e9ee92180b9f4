//! `hookbridge dead` and `hookbridge deliveries redeliver`: an operator sends again what was given up, or delivered.

use crate::harness::{Configuration, Ended, Hookbridge, Nats, Receiver, Reply, binary, eventually, run};

/// Two endpoints that also want tickets, callbacks to anywhere, and one attempt in all.
fn text(one: &Receiver, two: &Receiver) -> String {
    let endpoint = |name: &str, receiver: &Receiver| {
        format!(
            "[endpoints.{name}]\nurl = \"{}\"\nsignatures = []\nsubjects = [\"outbox.*.ticket.>\"]\n",
            receiver.url("/")
        )
    };
    format!(
        "{}{}[callbacks]\nallow = [\"*\"]\nsecrets = [\"plain:s\"]\n[egress]\nretry = []\n",
        endpoint("one", one),
        endpoint("two", two)
    )
}

struct Setup {
    nats: Nats,
    one: Receiver,
    two: Receiver,
    _hookbridge: Hookbridge,
}

async fn setup() -> Setup {
    let (nats, one, two) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &text(&one, &two)).await;
    Setup { nats, one, two, _hookbridge: hookbridge }
}

impl Setup {
    async fn dead(&self, arguments: &[&str]) -> Ended {
        run(binary(&["dead", arguments[0], "--nats", &self.nats.url()]).args(&arguments[1..])).await
    }

    async fn redeliver(&self, agent: &str, delivery: &str) -> Ended {
        let arguments = ["deliveries", "redeliver", "--agent", agent, "--delivery", delivery];
        run(binary(&arguments).args(["--nats", &self.nats.url()])).await
    }

    /// Lets a message to the endpoint `one` die.
    async fn dies(&mut self, agent: &str, id: &str, endpoint: &str) {
        let receiver = if endpoint == "one" { &mut self.one } else { &mut self.two };
        receiver.then(Reply::Status(500));
        let headers = [("Hookbridge-Endpoint", endpoint), ("Nats-Msg-Id", id), ("content-type", "text/plain")];
        self.nats.publish(&format!("outbox.{agent}"), &headers, format!("body of {id}")).await;
        receiver.next().await;
        self.nats.message("RECEIPTS", &format!("receipts.{agent}.dead.{id}")).await;
    }
}

/// The first words of each line.
fn firsts(stdout: &str, words: usize) -> Vec<String> {
    stdout.lines().map(|line| line.split_whitespace().take(words).collect::<Vec<_>>().join(" ")).collect()
}

#[tokio::test]
async fn a_replayed_dead_letter_arrives_with_the_same_id_and_body_within_the_duplicate_window_too() {
    let mut setup = setup().await;
    setup.dies("a", "m-1", "one").await;

    let replayed = setup.dead(&["replay", "--sequence", "1"]).await;

    let line = replayed.assert_code(0).stdout.trim_end();
    assert!(line.starts_with("replayed 1  ") && line.ends_with(" as 2"), "{line}");
    let delivered = setup.one.next().await;
    assert_eq!((delivered.header("webhook-id"), &delivered.body[..]), ("m-1", &b"body of m-1"[..]));
    assert_eq!(delivered.header("content-type"), "text/plain");
    let again = setup.nats.messages("OUTBOX", "outbox.a", 2).await.pop().unwrap();
    for (name, value) in [
        ("Hookbridge-Replay-Of", "DEAD:1"),
        ("Hookbridge-Message-Id", "m-1"),
        ("Hookbridge-Delivery-Id", "m-1"),
        ("Hookbridge-Endpoint", "one"),
    ] {
        assert_eq!(again.header(name), Some(value), "{name}");
    }
    assert!(again.header("Nats-Msg-Id").unwrap().starts_with("replay:DEAD:1:"), "{again:?}");
    assert_eq!(setup.nats.message("RECEIPTS", "receipts.a.delivered.m-1").await.json()["attempt"], 1);
    assert_eq!((setup.nats.count("DEAD").await, setup.two.unread()), (1, 0), "nothing else is touched");
}

#[tokio::test]
async fn a_replay_has_all_its_attempts_again_and_its_agent_is_told() {
    let (nats, mut one, two) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let retrying = text(&one, &two).replace("retry = []", "retry = [\"100ms\", \"100ms\"]");
    let _hookbridge = Hookbridge::start(&nats, &retrying).await;
    // The first attempt of the replay takes its time, so that the command tells of it before the courier does.
    for reply in [Reply::Status(500), Reply::Status(500), Reply::Status(500), Reply::Hang, Reply::Status(500)] {
        one.then(reply);
    }
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "one"), ("Nats-Msg-Id", "m-1")], "x").await;
    nats.message("DEAD", "dead.a.m-1").await;

    let replay = ["dead", "replay", "--agent", "a", "--delivery", "m-1", "--nats", &nats.url()];
    run(&mut binary(&replay)).await.assert_code(0);

    for _ in 0..6 {
        assert_eq!(one.next().await.header("webhook-id"), "m-1");
    }
    assert_eq!(nats.message("RECEIPTS", "receipts.a.delivered.m-1").await.json()["attempt"], 3);
    let told = nats.messages("RECEIPTS", "receipts.a.retrying.m-1", 5).await;
    let told = told.iter().find(|told| told.json()["attempt"] == 0).unwrap();
    assert_eq!(told.header("Hookbridge-Outbox-Sequence"), Some("2"));
    let body = told.json();
    for (key, value) in [("reason", "replayed"), ("delivery", "m-1"), ("destination", "one"), ("outcome", "retrying")] {
        assert_eq!(body[key], value, "{key}");
    }
}

#[tokio::test]
async fn envelopes_callbacks_and_messages_without_an_id_are_replayed_as_they_were() {
    let mut setup = setup().await;
    let callback = setup.two.url("/callback");
    let envelope = r#"{"endpoint":"one","payload":{"k":1},"id":"inner"}"#;
    setup.one.then(Reply::Status(500));
    setup.nats.publish("outbox.a", &[], envelope).await;
    let first = setup.one.next().await;
    setup.two.then(Reply::Status(500));
    setup.nats.publish("outbox.a", &[("Hookbridge-Callback-Url", &callback)], "called").await;
    let second = setup.two.next().await;
    setup.nats.messages("RECEIPTS", "receipts.a.dead.*", 2).await;

    let replayed = setup.dead(&["replay", "--agent", "a", "--yes"]).await;

    assert_eq!(replayed.assert_code(0).stdout.lines().count(), 2);
    let again = setup.one.next().await;
    assert_eq!((again.header("webhook-id"), &again.body[..]), ("inner", &br#"{"k":1}"#[..]));
    assert_eq!(again.body, first.body);
    let again = setup.two.next().await;
    assert_eq!((again.path.as_str(), &again.body[..]), ("/callback", &b"called"[..]));
    assert_eq!(again.header("webhook-id"), second.header("webhook-id"));
}

#[tokio::test]
async fn of_a_fan_out_only_the_endpoint_whose_delivery_died_gets_the_replay() {
    let mut setup = setup().await;
    setup.two.then(Reply::Status(500));
    setup.nats.publish("outbox.a.ticket.new", &[("Nats-Msg-Id", "m")], "x").await;
    setup.one.next().await;
    setup.two.next().await;
    setup.nats.message("RECEIPTS", "receipts.a.dead.*").await;
    setup.nats.message("RECEIPTS", "receipts.a.delivered.*").await;

    setup.dead(&["replay", "--destination", "two"]).await.assert_code(0);

    let again = setup.two.next().await;
    assert_eq!((again.header("webhook-id"), &again.body[..]), ("m", &b"x"[..]));
    setup.nats.messages("RECEIPTS", "receipts.a.delivered.*", 2).await;
    assert_eq!(setup.one.unread(), 0);
}

#[tokio::test]
async fn a_replay_whose_endpoint_is_gone_is_dead_again_and_one_that_nobody_wanted_goes_to_who_wants_it_now() {
    let (nats, mut one, mut two) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let hookbridge = Hookbridge::start(&nats, &text(&one, &two)).await;
    two.then(Reply::Status(500));
    nats.publish("outbox.a.ticket.new", &[("Nats-Msg-Id", "m")], "x").await;
    one.next().await;
    two.next().await;
    nats.publish("outbox.a.invoice.new", &[("Nats-Msg-Id", "n")], "y").await;
    nats.messages("RECEIPTS", "receipts.a.dead.*", 2).await;
    hookbridge.stop().await.unwrap();
    let changed = text(&one, &two)
        .replace("[endpoints.two]", "[endpoints.renamed]")
        .replace("subjects = [\"outbox.*.ticket.>\"]", "subjects = [\"outbox.*.ticket.>\", \"outbox.*.invoice.>\"]");
    let _hookbridge = Hookbridge::start(&nats, &changed).await;

    let replay = ["dead", "replay", "--agent", "a", "--yes", "--nats", &nats.url()];
    run(&mut binary(&replay)).await.assert_code(0);

    assert_eq!((&one.next().await.body[..], &two.next().await.body[..]), (&b"y"[..], &b"y"[..]));
    let dead = nats.messages("DEAD", "dead.a.*", 3).await.pop().unwrap();
    assert_eq!(dead.header("Hookbridge-Reason"), Some("unroutable"));
    assert!(dead.header("Hookbridge-Detail").unwrap().contains("has this delivery id"), "{dead:?}");
    assert_eq!(dead.header("Hookbridge-Replay-Of"), Some("DEAD:1"));
    assert_eq!((one.unread(), two.unread()), (0, 0));
}

#[tokio::test]
async fn dead_letters_are_listed_by_agent_destination_reason_delivery_and_time() {
    let mut setup = setup().await;
    setup.dies("a", "m-1", "one").await;
    setup.dies("b", "m-2", "two").await;
    setup.nats.publish("outbox.a", &[("Hookbridge-Endpoint", "typo"), ("Nats-Msg-Id", "m-3")], "x").await;
    setup.nats.message("RECEIPTS", "receipts.a.dead.m-3").await;
    setup.nats.publish("dead.a.forged", &[], "no dead letter").await;
    let stored = setup.nats.jetstream().get_stream("DEAD").await.unwrap().get_raw_message(2).await.unwrap().time;
    let second = humantime::format_rfc3339_nanos(stored.into()).to_string();

    for (filter, expected) in [
        (&[][..], &["1", "2", "3"][..]),
        (&["--agent", "a"], &["1", "3"]),
        (&["--destination", "two"], &["2"]),
        (&["--reason", "unroutable"], &["3"]),
        (&["--delivery", "m-1"], &["1"]),
        (&["--since", &second], &["2", "3"]),
        (&["--until", &second], &["1"]),
        (&["--agent", "b", "--reason", "unroutable"], &[]),
    ] {
        let listed = setup.dead(&[&["list"], filter].concat()).await;
        assert_eq!(firsts(&listed.assert_code(0).stdout, 1), expected, "{filter:?}");
    }
    let all = setup.dead(&["list"]).await.stdout;
    assert!(all.starts_with("1  ") && all.contains("  a  m-1  to one  exhausted  1 attempt  "), "{all}");
    assert!(all.contains("  a  m-3  to nobody  unroutable  0 attempts  there is no endpoint `typo`"), "{all}");
    let json = setup.dead(&["list", "--json", "--limit", "1"]).await;
    assert!(json.assert_code(0).stderr.contains("more match, and the next is sequence 2"), "{json}");
    let json: serde_json::Value = serde_json::from_str(json.stdout.trim()).unwrap();
    assert_eq!((json["delivery"].as_str(), json["attempts"].as_u64()), (Some("m-1"), Some(1)));
}

#[tokio::test]
async fn many_are_replayed_only_once_somebody_says_yes_and_no_more_than_the_limit() {
    let mut setup = setup().await;
    for id in ["m-1", "m-2", "m-3"] {
        setup.dies("a", id, "one").await;
    }

    let asked = setup.dead(&["replay", "--reason", "exhausted"]).await;
    assert!(asked.assert_code(1).stderr.contains("nothing was replayed: 3 dead letters match"), "{asked}");
    let tried = setup.dead(&["replay", "--reason", "exhausted", "--dry-run"]).await;
    assert_eq!(tried.assert_code(0).stdout, asked.stdout);
    assert_eq!(firsts(&tried.stdout, 3), ["would replay 1", "would replay 2", "would replay 3"]);
    assert_eq!((setup.nats.count("OUTBOX").await, setup.one.unread()), (3, 0));

    let some = setup.dead(&["replay", "--agent", "a", "--limit", "2", "--yes", "--remove", "--rate", "600/m"]).await;
    assert!(some.assert_code(1).stderr.contains("stopped at --limit 2: more match"), "{some}");
    assert_eq!(firsts(&some.stdout, 2), ["replayed 1", "replayed 2"]);
    setup.nats.messages("RECEIPTS", "receipts.a.delivered.*", 2).await;
    assert_eq!(firsts(&setup.dead(&["list"]).await.stdout, 1), ["3"], "what is replayed was removed");
}

#[tokio::test]
async fn a_second_run_delivers_a_second_time_and_a_replay_that_died_stands_for_both() {
    let mut setup = setup().await;
    setup.dies("a", "m-1", "one").await;
    for _ in 0..2 {
        setup.dead(&["replay", "--agent", "a"]).await.assert_code(0);
        assert_eq!(setup.one.next().await.header("webhook-id"), "m-1");
    }
    setup.one.then(Reply::Status(500));
    setup.dead(&["replay", "--agent", "a"]).await.assert_code(0);
    setup.one.next().await;
    setup.nats.messages("DEAD", "dead.a.m-1", 2).await;

    let replayed = setup.dead(&["replay", "--agent", "a", "--remove"]).await;

    assert_eq!(firsts(&replayed.assert_code(0).stdout, 2), ["replayed 2"]);
    assert_eq!(setup.nats.count("DEAD").await, 0, "the letter that it stands for went with it");
    setup.one.next().await;
    setup.nats.messages("RECEIPTS", "receipts.a.delivered.m-1", 3).await;
    assert_eq!(setup.one.unread(), 0);
}

#[tokio::test]
async fn what_cannot_be_replayed_is_named_and_the_rest_is_replayed() {
    let mut setup = setup().await;
    let letter = async |id: &str, more: &[(&str, &str)]| {
        let all = [("Hookbridge-Message-Id", id), ("Hookbridge-Reason", "expired"), ("Hookbridge-Attempt", "1")];
        setup.nats.publish(&format!("dead.a.{id}"), &[&all[..], more].concat(), "").await;
    };
    let subject = ("Hookbridge-Subject", "outbox.a");
    letter("expired", &[]).await;
    letter("body", &[subject, ("Hookbridge-Body", "too-large")]).await;
    letter("headers", &[subject, ("Hookbridge-Headers", "too-large")]).await;
    letter("foreign", &[("Hookbridge-Subject", "outbox.b")]).await;
    setup.dies("a", "good", "one").await;

    let replayed = setup.dead(&["replay", "--agent", "a", "--yes"]).await;

    let errors = &replayed.assert_code(1).stderr;
    for expected in [
        "not replayed: 1: it has no body: the message had left OUTBOX",
        "not replayed: 2: it has no body: it was too large",
        "not replayed: 3: the headers of the message are not in it",
        "not replayed: 4: it names no subject of its agent in OUTBOX",
        "4 of 5 were not replayed",
    ] {
        assert!(errors.contains(expected), "{expected:?} is not in {errors}");
    }
    assert_eq!(firsts(&replayed.stdout, 2), ["replayed 5"]);
    assert_eq!(&setup.one.next().await.body[..], b"body of good");
    let tried = setup.dead(&["replay", "--sequence", "2", "--dry-run"]).await;
    assert!(tried.stdout.starts_with("cannot replay 2  "), "{tried}");
    assert_eq!(setup.nats.count("OUTBOX").await, 2);
}

#[tokio::test]
async fn what_was_delivered_is_delivered_again_to_its_one_destination() {
    let mut setup = setup().await;
    setup.nats.publish("outbox.a.ticket.new", &[("Nats-Msg-Id", "m")], "x").await;
    setup.one.next().await;
    setup.two.next().await;
    let receipts = setup.nats.messages("RECEIPTS", "receipts.a.delivered.*", 2).await;
    let to_two = receipts.iter().map(|receipt| receipt.json()).find(|receipt| receipt["destination"] == "two").unwrap();
    let delivery = to_two["delivery"].as_str().unwrap();

    for times in [1, 2] {
        let redelivered = eventually("the end of the delivery before", async || {
            Some(setup.redeliver("a", delivery).await).filter(|ended| !ended.stderr.contains("has not ended"))
        });
        redelivered.await.assert_code(0);
        let again = setup.two.next().await;
        assert_eq!((again.header("webhook-id"), &again.body[..]), ("m", &b"x"[..]));
        let delivered = format!("receipts.a.delivered.{delivery}");
        setup.nats.messages("RECEIPTS", &delivered, times + 1).await;
    }

    let of: Vec<_> = setup.nats.messages("OUTBOX", "outbox.a.ticket.new", 3).await;
    let of: Vec<_> = of.iter().filter_map(|message| message.header("Hookbridge-Replay-Of")).collect();
    assert_eq!(of, ["OUTBOX:1", "OUTBOX:2"]);
    let told = setup.nats.message("RECEIPTS", &format!("receipts.a.retrying.{delivery}")).await.json();
    assert_eq!((told["reason"].as_str(), told["attempt"].as_u64()), (Some("redelivered"), Some(0)));
    assert_eq!((setup.one.unread(), setup.nats.count("DEAD").await), (0, 0));
}

#[tokio::test]
async fn an_endpoint_that_keeps_order_gets_a_replay_in_its_line() {
    let (nats, mut one, two) = (Nats::start().await, Receiver::start().await, Receiver::start().await);
    let ordered = text(&one, &two).replacen("signatures = []", "signatures = []\nordered = true", 1);
    let _hookbridge = Hookbridge::start(&nats, &ordered).await;
    one.then(Reply::Status(500));
    for id in ["m-1", "m-2"] {
        nats.publish("outbox.a.ticket.x", &[("Hookbridge-Endpoint", "one"), ("Nats-Msg-Id", id)], id).await;
        assert_eq!(one.next().await.header("webhook-id"), id);
    }
    nats.message("RECEIPTS", "receipts.a.delivered.m-2").await;

    let replay = ["dead", "replay", "--agent", "a", "--nats", &nats.url()];
    run(&mut binary(&replay)).await.assert_code(0);

    assert_eq!(one.next().await.header("webhook-id"), "m-1");
    nats.message("RECEIPTS", "receipts.a.delivered.m-1").await;
    assert_eq!((one.unread(), nats.count("DEAD").await), (0, 1));
}

#[tokio::test]
async fn replays_come_no_faster_than_they_are_paced() {
    let mut setup = setup().await;
    for id in ["m-1", "m-2", "m-3"] {
        setup.dies("a", id, "one").await;
    }
    setup.dead(&["replay", "--agent", "a", "--yes", "--rate", "2/s"]).await.assert_code(0);
    let stream = setup.nats.jetstream().get_stream("OUTBOX").await.unwrap();
    let (first, last) = (stream.get_raw_message(4).await.unwrap().time, stream.get_raw_message(6).await.unwrap().time);
    assert!(last - first >= std::time::Duration::from_millis(900), "{first} {last}");
}

#[tokio::test]
async fn what_cannot_be_redelivered_says_why() {
    let mut setup = setup().await;
    setup.nats.publish("outbox.a", &[("Hookbridge-Endpoint", "one"), ("Nats-Msg-Id", "gone")], "x").await;
    setup.one.next().await;
    setup.nats.message("RECEIPTS", "receipts.a.delivered.gone").await;
    setup.nats.jetstream().get_stream("OUTBOX").await.unwrap().delete_message(1).await.unwrap();
    setup.dies("a", "dead", "one").await;
    let waiting = [("Hookbridge-Outbox-Sequence", "9")];
    setup.nats.publish("receipts.a.retrying.waits", &waiting, "{\"attempt\":1}").await;

    for (delivery, expected) in [
        ("gone", "sequence 1 of OUTBOX, is no longer there"),
        ("dead", "hookbridge dead replay --agent a --delivery dead"),
        ("waits", "has not ended"),
        ("unknown", "no receipt of delivery `unknown` of agent `a`"),
    ] {
        let ended = setup.redeliver("a", delivery).await;
        assert!(ended.assert_code(1).stderr.contains(expected), "{expected:?} is not in {ended}");
    }
    assert_eq!((setup.nats.count("OUTBOX").await, setup.one.unread()), (1, 0));
}

#[tokio::test]
async fn nothing_found_is_said_and_bad_usage_is_refused() {
    let setup = setup().await;
    let absent = setup.dead(&["replay", "--sequence", "1"]).await;
    assert!(absent.assert_code(1).stderr.contains("no dead letter at sequence 1 of DEAD, which is empty"), "{absent}");
    assert!(setup.dead(&["replay", "--agent", "a"]).await.assert_code(1).stderr.contains("no dead letter matches"));
    assert_eq!(setup.dead(&["list"]).await.assert_code(0).stdout, "");
    for arguments in [
        &["replay"][..],
        &["replay", "--sequence", "1", "--agent", "a"],
        &["replay", "--delivery", "a.>"],
        &["replay", "--agent", "*"],
        &["replay", "--agent", "a", "--rate", "fast"],
        &["replay", "--since", "1h", "--until", "2h"],
        &["list", "--limit", "0"],
    ] {
        let ended = setup.dead(arguments).await;
        assert!(ended.code == Some(2) && ended.stdout.is_empty(), "{arguments:?}: {ended}");
    }
    setup.redeliver("a", "b.c").await.assert_code(2);
}

#[tokio::test]
async fn a_prefix_is_for_the_server_alone() {
    let (nats, mut one, two) =
        (Nats::start().await, Receiver::scripted([Reply::Status(500)]).await, Receiver::start().await);
    let text = format!("[nats]\nprefix = \"acme\"\n{}", text(&one, &two));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    nats.publish("acme.outbox.a", &[("Hookbridge-Endpoint", "one"), ("Nats-Msg-Id", "m")], "x").await;
    one.next().await;
    nats.message("acme_RECEIPTS", "acme.receipts.a.dead.m").await;
    let configuration = Configuration::new(&text);

    let arguments = ["dead", "replay", "--agent", "a", "--nats", &nats.url()];
    run(&mut configuration.hookbridge(&arguments)).await.assert_code(0);

    assert_eq!(one.next().await.header("webhook-id"), "m");
    nats.message("acme_RECEIPTS", "acme.receipts.a.delivered.m").await;
}
