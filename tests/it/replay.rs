//! `hookbridge replay`: an operator shows agents an event again, and the duplicate window does not eat it.

use async_nats::jetstream::consumer::PullConsumer;
use futures_util::StreamExt;

use crate::harness::Ended;
use crate::harness::nats::Message;
use crate::harness::{Hookbridge, Nats, binary, run, sign, within};

const TEXT: &str = r#"
[sources.open]
verify = "none"
id = "header:x-id"
type = "header:x-type"
headers = ["x-kept"]
[agents.planner]
events = ["events.>"]
"#;

async fn event(hookbridge: &Hookbridge, id: &str, event_type: &str) {
    let headers = [("x-id", id), ("x-type", event_type), ("x-kept", "yes"), ("content-type", "text/plain")];
    hookbridge.post("/hooks/open", &headers, format!("body of {id}")).await.assert_status(202);
}

async fn replay(nats: &Nats, arguments: &[&str]) -> Ended {
    run(binary(&["replay", "--nats", &nats.url()]).args(arguments)).await
}

/// The next message that the agent `planner` gets.
async fn received(nats: &Nats) -> Message {
    let consumer: PullConsumer = nats.jetstream().get_consumer_from_stream("planner", "EVENTS").await.unwrap();
    let next = async {
        let message = consumer.stream().max_messages_per_batch(1).messages().await.unwrap().next().await;
        let message = message.unwrap().unwrap();
        message.double_ack().await.unwrap();
        message
    };
    let message = within("an event for the agent", next).await;
    Message {
        subject: message.subject.to_string(),
        headers: message.headers.clone().unwrap_or_default(),
        payload: message.payload.clone(),
    }
}

#[tokio::test]
async fn a_replayed_event_comes_to_its_agent_again_though_a_repeat_would_not() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, TEXT).await;
    event(&hookbridge, "d-1", "a.b").await;
    let original = received(&nats).await;
    event(&hookbridge, "d-1", "a.b").await;
    assert_eq!(nats.count("EVENTS").await, 1, "the window knows the id");

    let replayed = replay(&nats, &["--sequence", "1"]).await;
    let line = replayed.assert_code(0).stdout.trim_end();
    assert!(line.starts_with("replayed 1  ") && line.ends_with("  events.open.a.b  d-1 as 2"), "{line}");

    let again = received(&nats).await;
    assert_eq!((&again.subject, &again.payload), (&original.subject, &original.payload));
    for name in ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-time", "ce-datacontenttype", "http-x-kept"] {
        assert!(original.header(name).is_some(), "{name}");
        assert_eq!(again.header(name), original.header(name), "{name}");
    }
    assert_eq!((original.header("Nats-Msg-Id"), again.header("ce-id")), (Some("open:d-1"), Some("d-1")));
    assert!(again.header("Nats-Msg-Id").unwrap().starts_with("open:d-1:replay:"), "{again:?}");
    assert_eq!(again.header("Hookbridge-Replay-Of"), Some("1"));
    assert!(again.header("Hookbridge-Replayed-At").unwrap().ends_with('Z'), "{again:?}");
}

#[tokio::test]
async fn an_event_can_be_replayed_twice_and_so_can_its_replay() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, TEXT).await;
    event(&hookbridge, "d-1", "a").await;
    for arguments in [&["--sequence", "1"][..], &["--source", "open", "--id", "d-1"], &["--sequence", "2"]] {
        replay(&nats, arguments).await.assert_code(0);
    }

    let all = nats.messages("EVENTS", "events.open.a", 4).await;
    let of: Vec<_> = all.iter().map(|event| event.header("Hookbridge-Replay-Of")).collect();
    assert_eq!(of, [None, Some("1"), Some("1"), Some("2")]);
    let mut ids: Vec<_> = all.iter().map(|event| event.header("Nats-Msg-Id").unwrap()).collect();
    assert!(ids[1..].iter().all(|id| id.matches(":replay:").count() == 1), "{ids:?}");
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    let values = |name: &str| all[3].headers.get_all(name).count();
    assert_eq!((values("Hookbridge-Replay-Of"), values("Hookbridge-Replayed-At"), values("ce-id")), (1, 1, 1));
}

#[tokio::test]
async fn an_event_is_found_by_the_delivery_id_that_its_provider_gave_it() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, &format!("{TEXT}{}", sign::SOURCES)).await;
    for id in ["one", "50%\"", "with blank", "four"] {
        event(&hookbridge, id, "a").await;
    }
    let signature = sign::hex("s3cret", b"{}");
    hookbridge.post("/hooks/github", &sign::github(&signature, "push", "one"), "{}").await.assert_status(202);

    for (source, id, of) in [("github", "one", "5"), ("open", "50%\"", "2"), ("open", "with blank", "3")] {
        let replayed = replay(&nats, &["--source", source, "--id", id]).await;
        assert!(replayed.assert_code(0).stdout.starts_with(&format!("replayed {of}  ")), "{replayed}");
    }
    assert_eq!(nats.count("EVENTS").await, 8);
    // When the original is gone, its replay is as good.
    nats.jetstream().get_stream("EVENTS").await.unwrap().delete_message(2).await.unwrap();
    let replayed = replay(&nats, &["--source", "open", "--id", "50%\""]).await;
    assert!(replayed.assert_code(0).stdout.starts_with("replayed 7  "), "{replayed}");
}

#[tokio::test]
async fn many_events_are_replayed_by_subject_and_time_once_somebody_says_yes() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, TEXT).await;
    for (id, event_type) in [("1", "a.x"), ("2", "b.x"), ("3", "a.y"), ("4", "a.z")] {
        event(&hookbridge, id, event_type).await;
    }
    nats.publish("events.open.a.forged", &[], "no event").await;
    let range = ["--subject", "events.open.a.>", "--since", "1h"];
    let replay = async |more: &[&str]| replay(&nats, &[&range[..], more].concat()).await;

    let asked = replay(&[]).await;
    assert!(asked.assert_code(1).stderr.contains("nothing was replayed: 3 events match; to replay them add --yes"));
    let tried = replay(&["--dry-run"]).await;
    assert_eq!(tried.assert_code(0).stdout, asked.stdout);
    let listed: Vec<_> = tried.stdout.lines().map(|line| line.rsplit("  ").next().unwrap()).collect();
    assert!(listed == ["1", "3", "4"] && tried.stdout.starts_with("would replay 1  "), "{tried}");
    assert_eq!(nats.count("EVENTS").await, 5);

    let limited = replay(&["--yes", "--limit", "2"]).await;
    let expected = "stopped at --limit 2: more match, and the next is sequence 4; go on with --since ";
    let (_, since) =
        limited.assert_code(1).stderr.trim_end().split_once(expected).unwrap_or_else(|| panic!("{limited}"));
    assert_eq!(limited.stdout.lines().count(), 2);
    let rest = ["--subject", "events.open.a.>", "--since", since, "--yes"];
    let rest = self::replay(&nats, &rest).await;
    // What was replayed before matches too, and is not replayed with it.
    assert!(rest.assert_code(0).stdout.starts_with("replayed 4  ") && rest.stdout.lines().count() == 1, "{rest}");
    assert_eq!(replay(&["--yes"]).await.assert_code(0).stdout.lines().count(), 3);
    let of = nats.messages("EVENTS", "events.open.a.>", 10).await;
    let of: Vec<_> = of.iter().filter_map(|event| event.header("Hookbridge-Replay-Of")).collect();
    assert_eq!(of, ["1", "3", "4", "1", "3", "4"]);
}

#[tokio::test]
async fn what_is_before_or_after_the_time_is_left_alone() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, TEXT).await;
    for id in ["1", "2", "3"] {
        event(&hookbridge, id, "a").await;
    }
    let stream = nats.jetstream().get_stream("EVENTS").await.unwrap();
    let stored = async |sequence| {
        let time = stream.get_raw_message(sequence).await.unwrap().time;
        humantime::format_rfc3339_nanos(time.into()).to_string()
    };
    let (since, until) = (stored(2).await, stored(3).await);
    let replayed = replay(&nats, &["--subject", "events.>", "--since", &since, "--until", &until]).await;
    assert!(replayed.assert_code(0).stdout.starts_with("replayed 2  "), "{replayed}");
    assert_eq!(replayed.stdout.lines().count(), 1);
}

#[tokio::test]
async fn more_events_than_fit_a_page_are_all_found() {
    let nats = Nats::start().await;
    let _hookbridge = Hookbridge::start(&nats, TEXT).await;
    for index in 0..1100 {
        let id = format!("{index:04}");
        nats.publish("events.open.many", &[("ce-id", &id[..]), ("Nats-Msg-Id", &id)], vec![b'x'; 100]).await;
    }
    let many = ["--subject", "events.open.many", "--since", "1h", "--dry-run", "--limit"];
    let all = replay(&nats, &[&many[..], &["1100"]].concat()).await;
    assert!(all.assert_code(0).stdout.lines().count() == 1100 && all.stdout.ends_with("  1099\n"), "{all}");
    let some = replay(&nats, &[&many[..], &["1000"]].concat()).await;
    assert!(some.assert_code(0).stdout.ends_with("  0999\nand more: more than 1000 events match\n"), "{some}");
    let last = replay(&nats, &["--source", "open", "--id", "1099"]).await;
    assert!(last.assert_code(0).stdout.starts_with("replayed 1100  "), "{last}");
}

#[tokio::test]
async fn replaying_what_is_not_there_says_so() {
    let nats = Nats::start().await;
    let absent = replay(&nats, &["--sequence", "1"]).await;
    assert!(absent.assert_code(1).stderr.contains("EVENTS"), "{absent}");
    let hookbridge = Hookbridge::start(&nats, TEXT).await;
    let empty = replay(&nats, &["--sequence", "1"]).await;
    assert!(empty.assert_code(1).stderr.contains("no event at sequence 1 of EVENTS, which is empty"), "{empty}");
    event(&hookbridge, "1", "a").await;
    nats.publish("events.open.b", &[], "no event").await;

    for (arguments, expected) in [
        (&["--sequence", "9"][..], "there is no event at sequence 9 of EVENTS, which has 1 to 2"),
        (&["--sequence", "2"], "message 2 on events.open.b is not an event: it has no `ce-id`"),
        (&["--source", "open", "--id", "2"], "EVENTS has no event `2` of `open`"),
        (&["--source", "github", "--id", "1"], "EVENTS has no event `1` of `github`"),
        (&["--subject", "events.open.b", "--since", "1h", "--yes"], "EVENTS has no event on events.open.b from "),
    ] {
        let ended = replay(&nats, arguments).await;
        assert!(ended.assert_code(1).stderr.contains(expected), "{expected:?} is not in {ended}");
        assert_eq!(ended.stdout, "");
    }
    assert_eq!(nats.count("EVENTS").await, 2);
}

#[tokio::test]
async fn events_that_are_not_named_or_named_twice_are_bad_usage() {
    let nats = Nats::start().await;
    for arguments in [
        &[][..],
        &["--sequence", "1", "--source", "open", "--id", "1"],
        &["--source", "open"],
        &["--id", "1"],
        &["--source", "open", "--id", ""],
        &["--subject", "events.>"],
        &["--subject", "outbox.>", "--since", "1h"],
        &["--subject", "events..a", "--since", "1h"],
        &["--subject", "events.>", "--since", "soon"],
        &["--subject", "events.>", "--since", "1h", "--until", "2h"],
        &["--sequence", "1", "--since", "1h"],
        &["--sequence", "1", "--limit", "0"],
    ] {
        let ended = replay(&nats, arguments).await;
        assert!(ended.code == Some(2) && ended.stdout.is_empty(), "{arguments:?}: {ended}");
    }
    let help = replay(&nats, &["--help"]).await;
    assert!(help.assert_code(0).stdout.contains("More than one event is replayed only with --yes"), "{help}");
}

#[tokio::test]
async fn a_prefix_is_for_the_server_alone() {
    let nats = Nats::start().await;
    let text = format!("[nats]\nprefix = \"acme\"\n{TEXT}");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    event(&hookbridge, "1", "a").await;
    let configuration = crate::harness::Configuration::new(&text);
    let arguments = ["replay", "--nats", &nats.url(), "--subject", "events.open.*", "--since", "1h"];
    let replayed = run(&mut configuration.hookbridge(&arguments)).await;
    assert!(replayed.assert_code(0).stdout.contains("  events.open.a  1 as 2"), "{replayed}");
    let replayed = nats.messages("acme_EVENTS", "acme.events.open.a", 2).await.pop().unwrap();
    assert_eq!(replayed.header("Hookbridge-Replay-Of"), Some("1"));
}

#[tokio::test]
async fn a_full_stream_refuses_a_replay_and_what_follows_is_left() {
    let nats = Nats::start().await;
    let text = format!("[streams.events]\nmax_bytes = \"1KiB\"\n{TEXT}");
    let hookbridge = Hookbridge::start(&nats, &text).await;
    event(&hookbridge, "1", "a").await;
    event(&hookbridge, "2", "a").await;
    let range = ["--subject", "events.>", "--since", "1h", "--yes"];
    let stopped = replay(&nats, &range).await;
    assert!(stopped.assert_code(1).stderr.contains("of 2 replayed, then stopped at sequence "), "{stopped}");
    assert!(stopped.stderr.contains("the stream is full"), "{stopped}");
}
