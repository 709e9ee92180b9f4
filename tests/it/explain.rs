//! `send` stands in for every provider, and `--explain` says why a request is taken or refused.

use std::fmt::Write;

use crate::harness::{Configuration, Ended, Hookbridge, Nats, binary, run};

/// Sources that prove themselves in very different ways: name, secret as it is pasted, and what else they need.
const SOURCES: [(&str, &str, &str); 11] = [
    ("stripe", "whsec_s3cret", ""),
    ("slack", "slack-s3cret", ""),
    ("twilio", "twilio-s3cret", "public_url = \"https://hooks.example.com/elsewhere\""),
    ("mailgun", "mailgun-s3cret", ""),
    ("adyen", "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056", ""),
    ("shopify", "shopify-s3cret", ""),
    ("gitlab", "gitlab-s3cret", ""),
    ("postmark", "user:postmark-s3cret", ""),
    ("box", "box-s3cret", ""),
    ("hubspot", "hubspot-s3cret", "path_token = \"plain:path-s3cret\""),
    ("paddle", "pdl_ntfset_s3cret", ""),
];

/// The public key of nobody.
const DISCORD: &str = "[sources.discord]\npreset = \"discord\"\nsecrets = [\"plain:c3d7c48ab0ca492e1b182da0706a22fdcc702c30bba93970082380b7b508b24d\"]\n";

fn sources() -> String {
    let mut text = "[gateway]\npublic_url = \"https://hooks.example.com\"\n".to_owned();
    for (name, secret, more) in SOURCES {
        writeln!(text, "[sources.{name}]\npreset = \"{name}\"\nsecrets = [\"plain:{secret}\"]\n{more}").unwrap();
    }
    text + DISCORD
}

/// A gateway, and `hookbridge send` to it.
struct Sender {
    nats: Nats,
    hookbridge: Hookbridge,
    configuration: Configuration,
}

impl Sender {
    async fn start(text: &str) -> Self {
        let nats = Nats::start().await;
        let hookbridge = Hookbridge::start(&nats, text).await;
        Self { nats, hookbridge, configuration: Configuration::new(text) }
    }

    async fn send(&self, arguments: &[&str]) -> Ended {
        let url = self.hookbridge.url("");
        run(self.configuration.hookbridge(&["send", "--url", &url]).args(arguments)).await
    }
}

#[tokio::test]
async fn what_is_sent_as_a_provider_would_is_taken_and_what_is_signed_wrongly_is_not() {
    let sender = Sender::start(&sources()).await;
    for (name, ..) in SOURCES {
        let sent = sender.send(&[name, "--type", "invoice.paid", "--id", "id-1", "--explain"]).await;
        assert!(sent.assert_code(0).stdout.contains("verdict    genuine, by plain:***\n"), "{name}: {sent}");
        assert!(!sent.to_string().contains("s3cret"), "{name}: {sent}");
        // Twilio's requests say no type, and Adyen's id is its signature.
        let event_type = if name == "twilio" { "unknown" } else { "invoice.paid" };
        let event = sender.nats.message("EVENTS", &format!("events.{name}.{event_type}")).await;
        let id = event.header("ce-id").unwrap();
        assert!(id == "id-1" || name == "adyen" || id.starts_with("sha256:"), "{name}: {id}");

        let refused = sender.send(&[name, "--wrong-signature", "--explain"]).await;
        assert!(refused.assert_code(1).stdout.contains("\n401 Unauthorized"), "{name}: {refused}");
        assert!(refused.stdout.contains("verdict    refused: mismatch with the only secret\n"), "{name}: {refused}");
        assert!(!refused.to_string().contains("s3cret"), "{name}: {refused}");
    }
    assert_eq!(sender.nats.count("EVENTS").await, SOURCES.len() as u64);
}

#[tokio::test]
async fn who_has_no_private_key_cannot_send_as_the_provider_and_is_told_what_to_do() {
    let configuration = Configuration::new(&sources());
    let refused = run(&mut configuration.hookbridge(&["send", "discord"])).await;
    assert_eq!(refused.assert_code(2).stdout, "");
    for expected in [
        "error: nothing is sent to `discord`: only the provider has the key: its requests are signed with ed25519",
        "hookbridge send discord --no-sign --explain",
    ] {
        assert!(refused.stderr.contains(expected), "{expected:?} is not in: {refused}");
    }
    let refused = run(&mut configuration.hookbridge(&["send", "box", "--at", "yesterday"])).await;
    assert!(refused.assert_code(2).stderr.contains("neither an RFC 3339 time nor a distance"), "{refused}");
}

#[tokio::test]
async fn a_webhook_of_another_time_is_too_old_by_so_many_seconds() {
    let sender = Sender::start(&sources()).await;
    let old = sender.send(&["slack", "--at", "-712s", "--explain"]).await;
    assert!(old.assert_code(1).stdout.contains("401 Unauthorized"), "{old}");
    let verdict = old.stdout.lines().find(|line| line.starts_with("verdict")).unwrap();
    let seconds = verdict.strip_prefix("verdict    refused: too old by ").unwrap().strip_suffix(" s").unwrap();
    assert!((412..500).contains(&seconds.parse::<u64>().unwrap()), "{old}");
    // The signature itself is right, and that is said.
    assert!(old.stdout.contains("secret 1   plain:***: match"), "{old}");

    let early = sender.send(&["slack", "--at", "+1h", "--explain"]).await;
    assert!(early.assert_code(1).stdout.contains("verdict    refused: from the future by "), "{early}");
}

#[tokio::test]
async fn a_refused_request_is_pasted_and_explained_as_it_is() {
    let sender = Sender::start(&sources()).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"type\":\"event_callback\",\"text\":\"nobody else reads this\"}").unwrap();
    let file = file.path().to_str().unwrap();
    let paste = async |source: &str, headers: &[&str]| {
        let headers = headers.iter().flat_map(|header| ["--header", header]);
        let arguments: Vec<&str> =
            [source, "--no-sign", "--explain", "--file", file].into_iter().chain(headers).collect();
        sender.send(&arguments).await
    };
    let (v0, length) = (format!("X-Slack-Signature: v0={}", "0".repeat(64)), "Content-Length: 999");
    let without_time = paste("slack", &[&v0, length]).await;
    let with_time = paste("slack", &[&v0, "X-Slack-Request-Timestamp: 1700000000"]).await;
    let unknown = paste("slack", &["X-Slack-Signature: v1=00", "X-Slack-Request-Timestamp: 1"]).await;
    let bare = paste("slack", &[]).await;
    let other = paste("discord", &["X-Signature-Ed25519: 00", "X-Signature-Timestamp: 1"]).await;
    let no_way = paste("box", &["BOX-SIGNATURE-VERSION: 1"]).await;
    for (answered, expected) in [
        (without_time, "refused: no timestamp: nothing at `header:x-slack-request-timestamp`"),
        (with_time, "refused: mismatch with the only secret"),
        (unknown, "refused: no signature with a known version: none at `header:x-slack-signature` begins with `v0=`"),
        (bare, "refused: no signature: nothing at `header:x-slack-signature`"),
        (other, "refused: mismatch with the only secret"),
        (no_way, "does not apply, `header:box-signature-algorithm` is not `HmacSHA256`"),
    ] {
        assert!(answered.assert_code(1).stdout.contains(expected), "{expected:?} is not in: {answered}");
        assert!(answered.stdout.contains("401 Unauthorized"), "{answered}");
        assert!(!answered.to_string().contains("nobody"), "the body was printed: {answered}");
    }
    assert_eq!(sender.nats.count("EVENTS").await, 0);
}

#[tokio::test]
async fn a_body_of_ones_own_is_signed_byte_for_byte_unless_the_signature_stands_inside() {
    let sender = Sender::start(&sources()).await;
    let body = "{ \"id\" : \"evt_1\", \"type\":\"charge.failed\" }";
    let sent = sender.send(&["stripe", "--type", "other", "--body", body]).await;
    assert!(sent.assert_code(0).stderr.contains("note: --type has no effect"), "{sent}");
    assert_eq!(sender.nats.message("EVENTS", "events.stripe.charge.failed").await.payload, body);

    let body = "{\"event-data\":{\"event\":\"opened\",\"id\":\"e-1\"}}";
    let sent = sender.send(&["mailgun", "--body", body]).await;
    assert!(sent.assert_code(0).stderr.contains("note: the signature stands inside the body"), "{sent}");
    let event = sender.nats.message("EVENTS", "events.mailgun.opened").await.json();
    assert_eq!(event["event-data"]["id"], "e-1");

    let json = sender.send(&["twilio", "--body", "{\"a\":1}", "--explain"]).await;
    assert!(json.assert_code(0).stdout.contains("{url:any-port} = `https://hooks.example.com/elsewhere?bodySHA256="));
}

#[tokio::test]
async fn a_preset_is_printed_as_a_source_that_loads_and_works() {
    let printed = run(&mut binary(&["check", "--explain", "mailgun"])).await;
    assert!(printed.assert_code(0).stdout.contains("[[sources.mailgun.verify]]"), "{printed}");
    let text = printed.stdout.replace("env:MAILGUN_SECRET", "plain:s3cret");
    let sender = Sender::start(&text).await;
    sender.send(&["mailgun", "--type", "opened"]).await.assert_code(0);
    assert_eq!(sender.nats.message("EVENTS", "events.mailgun.opened").await.json()["event-data"]["event"], "opened");

    let unknown = run(&mut binary(&["check", "--explain", "stirpe"])).await;
    assert_eq!(unknown.assert_code(1).stderr, "error: no preset `stirpe`, did you mean `stripe`?\n");
    let listed = run(&mut binary(&["check", "--presets"])).await;
    let zoom = listed.assert_code(0).stdout.lines().find(|line| line.starts_with("zoom ")).unwrap();
    assert!(zoom.contains(" provider ") && zoom.ends_with("; handshakes: url-validation"), "{zoom}");
}

#[tokio::test]
async fn a_check_says_how_a_source_names_its_events_and_how_sure_its_preset_is() {
    let text = "[sources.meta]\npreset = \"meta\"\nsecrets = [\"plain:s3cret\"]\nverify_token = \"plain:s3cret\"\n\
                types = [\"page*\"]\nsplit = true\nmax_body = \"3MiB\"\nmethods = [\"POST\", \"PUT\"]\nrate = \"10/s\"\n\
                [sources.open]\nverify = \"none\"\npath_token = \"plain:s3cret\"";
    let checked = run(&mut Configuration::new(text).hookbridge(&["check"])).await;
    for expected in [
        "  POST|PUT /hooks/meta -> events.meta.<type>\n    preset meta, 1 secret, delivery id none: by body\n",
        "    type json:/object\n    handshakes subscribe; only types page*; split at json:/entry; bodies up to 3.0 MiB\n",
        "    rate 10/s burst 10; memory for ids up to 580.9 MiB\n",
        "    note: preset meta is from other gateways' catalogues: compare a real request before money depends on it\n",
        "  POST /hooks/open/<token> -> events.open.<type>\n    no proof (verify = \"none\"), 0 secrets, ",
        "memory 580.9 MiB for ids at 10/s in the 72h window, 224.1 MiB per million ids\n",
    ] {
        assert!(checked.assert_code(0).stdout.contains(expected), "{expected:?} is not in: {checked}");
    }
    assert!(!checked.to_string().contains("s3cret"), "{checked}");
}
