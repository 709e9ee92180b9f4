//! The program as its users run it: arguments, exit codes, what it prints, signals.

use tokio::net::TcpStream;
use tokio::process::Command;

use crate::harness::{Configuration, Hookbridge, Nats, Program, Receiver, Reply, binary};
use crate::harness::{eventually, free_port, nats, post, request, run, sign};

const GOOD: &str = r#"
[nats]
url = "nats://somebody:nats-s3cret@127.0.0.1:4222"
[gateway]
public_url = "https://hooks.example.com"
peer_rate = "20/s"
trusted_proxies = ["10.0.0.0/8", "fd00::/8"]
[admin]
token = "plain:admin-s3cret"
[sources.github]
preset = "github"
secrets = ["plain:github-s3cret"]
networks = ["192.30.252.0/22"]
rate = "600/m burst 100"
max_concurrent = 50
[agents.planner]
events = ["events.github.>"]
[endpoints.crm]
url = "https://crm.example.com/hooks?key=query-s3cret"
secrets = ["plain:endpoint-s3cret"]
signatures = ["standard-webhooks"]
headers = { authorization = "header-s3cret" }
[endpoints.api]
url = "https://api.example.com/"
signatures = []
secret_headers = { x-api-key = "plain:key-s3cret" }
payload = "cloudevents"
max_body = "256KiB"
transform = "{id: .order.id}"
capture_response = true
capture_headers = ["etag"]
[endpoints.api.auth.oauth2]
token_url = "https://auth.example.com/token?key=query-s3cret"
client_id = "me"
client_secret = "plain:client-s3cret"
scopes = ["send"]
"#;

#[tokio::test]
async fn a_good_configuration_is_explained_without_its_secrets() {
    let checked = run(&mut Configuration::new(GOOD).hookbridge(&["check"])).await;

    checked.assert_code(0);
    for expected in [
        "POST https://hooks.example.com/hooks/github -> events.github.<type>",
        "peer rate 20/s burst 20; trusted proxies 10.0.0.0/8, fd00::/8",
        "preset github, 1 secret",
        "networks 192.30.252.0/22; rate 600/m burst 100; 50 at once",
        "planner: events.github.>",
        "crm: https://crm.example.com/hooks",
        "authentication OAuth 2.0 client me at https://auth.example.com/token, send",
        "secret headers x-api-key (plain:***)",
        "transformed by {id: .order.id}",
        "payload cloudevents, at most 256.0 KiB",
        "answers are captured, with etag",
        "EVENTS       events.>",
        "OUTBOX       outbox.>",
        "RETRY        retry.>",
        "the configuration is fine",
    ] {
        assert!(checked.stdout.contains(expected), "{expected:?} is not in: {checked}");
    }
    assert!(!checked.to_string().contains("s3cret"), "{checked}");
}

/// A mistake of every kind: an unknown key, a secret that is not there, two ways of proving oneself.
const BAD: &str = r#"
[gateway]
max_bdy = "1MiB"
[sources.absent]
preset = "github"
secrets = ["env:HOOKBRIDGE_TEST_UNSET"]
[sources.both]
preset = "github"
verify = "none"
secrets = ["plain:hunter2"]
[sources.naked]
preset = "github"
secrets = ["hunter2"]
"#;

#[tokio::test]
async fn every_mistake_is_named_with_file_key_and_reason_and_without_a_secret() {
    let configuration = Configuration::new(BAD);
    let checked = run(&mut configuration.hookbridge(&["check"])).await;

    checked.assert_code(1);
    let file = configuration.own();
    for expected in [
        "gateway.max_bdy: unknown key `max_bdy`, did you mean `max_body`?",
        "sources.absent.secrets: environment variable `HOOKBRIDGE_TEST_UNSET` is not set",
        "sources.both: has both `preset` and verify = ",
        "sources.naked.secrets.0: a secret is written `env:NAME`",
    ] {
        let expected = format!("error: {file}: {expected}");
        assert!(checked.stderr.contains(&expected), "{expected:?} is not in: {checked}");
    }
    assert!(checked.stderr.contains("4 things wrong"), "{checked}");
    assert!(!checked.to_string().contains("hunter2"), "{checked}");
}

#[tokio::test]
async fn a_limit_that_cannot_be_meant_is_named_with_file_key_and_reason() {
    let source = |key: &str| format!("[sources.open]\nverify = \"none\"\n{key}");
    for (text, expected) in [
        (source("rate = \"0/s\""), "sources.open.rate: `0/s`: 0 would let nothing through"),
        (source("rate = \"fast\""), "sources.open.rate: `fast`: a rate is written `50/s`, `600/m` or `1000/h`"),
        (source("rate = 50"), "sources.open.rate: expected a rate such as `50/s`"),
        (source("max_concurrent = 0"), "sources.open.max_concurrent: must be at least 1"),
        (source("networks = [\"10.0.0.1/33\"]"), "sources.open.networks"),
        ("[gateway]\npeer_rate = \"0/m\"".to_owned(), "gateway.peer_rate: `0/m`: 0 would let nothing through"),
        ("[gateway]\ntrusted_proxies = [\"proxy\"]".to_owned(), "gateway.trusted_proxies"),
    ] {
        let configuration = Configuration::new(&text);
        let checked = run(&mut configuration.hookbridge(&["check"])).await;
        let expected = format!("error: {}: {expected}", configuration.own());
        assert!(checked.assert_code(1).stderr.contains(&expected), "{expected:?} is not in: {checked}");
    }
}

#[tokio::test]
async fn a_process_with_a_bad_configuration_does_not_start() {
    for role in ["serve", "gateway", "courier"] {
        let ended = run(&mut Configuration::new(BAD).hookbridge(&[role])).await;
        ended.assert_code(2);
        assert!(ended.stderr.contains("did you mean `max_body`?"), "{ended}");
    }
    let ended = run(&mut binary(&["serve", "--config", "/nowhere/at-all.toml"])).await;
    assert!(ended.assert_code(2).stderr.contains("/nowhere/at-all.toml: no such file"), "{ended}");
}

#[tokio::test]
async fn bad_usage_is_told_from_a_question() {
    for arguments in [&["serve", "--no-such-flag"][..], &["no-such-command"], &["send"], &[]] {
        let ended = run(&mut binary(arguments)).await;
        ended.assert_code(2);
        assert!(ended.stdout.is_empty() && ended.stderr.contains("Usage: hookbridge"), "{ended}");
    }
    let header = ["publish", "outbox.a", "-H", "no colon"];
    run(&mut binary(&header)).await.assert_code(2);

    let help = run(&mut binary(&["--help"])).await;
    assert!(help.assert_code(0).stdout.contains("Usage: hookbridge"), "{help}");
    let version = run(&mut binary(&["--version"])).await;
    assert_eq!(version.assert_code(0).stdout, concat!("hookbridge ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[tokio::test]
async fn a_check_online_asks_the_server() {
    let nats = Nats::start().await;
    let configuration = Configuration::new(sign::SOURCES);
    let arguments = ["check", "--online", "--nats", &nats.url()];

    let checked = run(&mut configuration.hookbridge(&arguments)).await;
    checked.assert_code(0);
    assert!(checked.stdout.contains("max_payload 8.0 MiB"), "{checked}");
    assert!(checked.stdout.contains("the configuration is fine"), "{checked}");
    assert_eq!(nats.jetstream().query_account().await.unwrap().streams, 0, "a check created something");
}

#[tokio::test]
async fn a_server_that_takes_less_than_the_gateway_fails_the_check_online() {
    let nats = Nats::start_with("max_payload: 512KB").await;
    let checked =
        run(&mut Configuration::new(sign::SOURCES).hookbridge(&["check", "--online", "--nats", &nats.url()])).await;
    checked.assert_code(1);
    for expected in ["a max_body of 960.0 KiB", "max_payload 1.0 MiB", "the server has 512.0 KiB"] {
        assert!(checked.stderr.contains(expected), "{expected:?} is not in: {checked}");
    }
}

#[tokio::test]
async fn a_check_online_without_a_server_fails() {
    let url = format!("nats://127.0.0.1:{}", free_port());
    let checked = run(&mut Configuration::new("").hookbridge(&["check", "--online", "--nats", &url])).await;
    assert!(checked.assert_code(1).stderr.contains("NATS cannot be reached"), "{checked}");
}

#[tokio::test]
async fn the_environment_wins_over_files() {
    let configuration = Configuration::new(GOOD);
    let mut command = configuration.hookbridge(&["check"]);
    command.env("HOOKBRIDGE__GATEWAY__LISTEN", "127.0.0.1:18080").env("HOOKBRIDGE__GATEWAY__MAX_BODY", "1KiB");
    let checked = run(&mut command).await;
    assert!(checked.assert_code(0).stdout.contains("gateway   127.0.0.1:18080, bodies up to 1.0 KiB"), "{checked}");

    let mut command = configuration.hookbridge(&["check"]);
    let checked = run(command.env("HOOKBRIDGE__GATEWAY__LISTEM", "127.0.0.1:18080")).await;
    let expected = "environment: gateway.listem: unknown key `listem`, did you mean `listen`?";
    assert!(checked.assert_code(1).stderr.contains(expected), "{checked}");
}

#[tokio::test]
async fn publish_prints_the_ack_and_sends_the_headers() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::start().await);
    let text = format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []", receiver.url("/"));
    let _hookbridge = Hookbridge::start(&nats, &text).await;
    let id = "Nats-Msg-Id: me-1";
    let url = nats.url();
    let arguments = ["publish", "--nats", &url, "outbox.me", "-H", "Hookbridge-Endpoint: crm", "-H", id, "hello"];
    let ack = async || {
        let ended = run(&mut binary(&arguments)).await;
        serde_json::from_str::<serde_json::Value>(&ended.assert_code(0).stdout).unwrap()
    };

    let first = ack().await;
    assert_eq!((&first["stream"], &first["seq"]), (&"OUTBOX".into(), &1.into()), "{first}");
    assert_eq!(first.get("duplicate"), None, "{first}");
    let delivered = receiver.next().await;
    assert_eq!((delivered.header("webhook-id"), &delivered.body[..]), ("me-1", &b"hello"[..]));
    assert_eq!(ack().await["duplicate"], true);
}

#[tokio::test]
async fn publish_fails_where_no_stream_takes_the_subject_and_without_a_server() {
    let nats = Nats::start().await;
    let _hookbridge = Hookbridge::start(&nats, "").await;
    let ended = run(&mut binary(&["publish", "--nats", &nats.url(), "nobody.keeps.this", "x"])).await;
    assert!(ended.assert_code(1).stderr.contains("no stream takes subject `nobody.keeps.this`"), "{ended}");
    assert_eq!(ended.stdout, "");

    let absent = format!("nats://127.0.0.1:{}", free_port());
    let ended = run(&mut binary(&["publish", "--nats", &absent, "outbox.me", "x"])).await;
    assert!(ended.assert_code(1).stderr.contains("NATS cannot be reached"), "{ended}");
}

#[tokio::test]
async fn tail_prints_what_is_published_from_now_on() {
    let nats = Nats::start().await;
    let _hookbridge = Hookbridge::start(&nats, "").await;
    nats.publish("events.demo.before", &[("ce-id", "0")], "before").await;
    let tail = ["tail", "--nats", &nats.url(), "--count", "2", "--json", "events.demo.>"];
    let tail = Program::start(&mut binary(&tail));
    tail.complains("watching events.demo.>").await;

    nats.publish("events.demo.now", &[("ce-id", "1")], "text").await;
    nats.publish("events.demo.now", &[], vec![0xff, 0x00]).await;
    let ended = tail.ended().await;
    let lines: Vec<serde_json::Value> =
        ended.assert_code(0).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            serde_json::json!({ "subject": "events.demo.now", "headers": [["ce-id", "1"]], "body": "text" }),
            serde_json::json!({ "subject": "events.demo.now", "headers": [], "body_base64": "/wA=" }),
        ]
    );
}

#[tokio::test]
async fn tail_all_begins_with_what_the_stream_has_kept() {
    let nats = Nats::start().await;
    let _hookbridge = Hookbridge::start(&nats, "").await;
    for body in ["one", "\u{1b}[2Jtwo", "three"] {
        nats.publish("events.demo.kept", &[("ce-id", body)], body).await;
    }
    let tail = ["tail", "--nats", &nats.url(), "--all", "--count", "2", "events.demo.>"];
    let ended = run(&mut binary(&tail)).await;
    // What comes from outside must not steer the terminal.
    let cleared = "\u{fffd}[2Jtwo";
    let expected =
        format!("── events.demo.kept\n   ce-id: one\none\n── events.demo.kept\n   ce-id: {cleared}\n{cleared}\n");
    assert_eq!(ended.assert_code(0).stdout, expected);
}

#[tokio::test]
async fn send_posts_a_webhook_that_the_gateway_takes_and_a_wrong_one_that_it_does_not() {
    let nats = Nats::start().await;
    let text = format!(
        "{}\n[sources.standard]\npreset = \"standard-webhooks\"\nsecrets = [\"plain:whsec_c3RhbmRhcmQtc2VjcmV0\"]",
        sign::SOURCES
    );
    let hookbridge = Hookbridge::start(&nats, &text).await;
    let configuration = Configuration::new(&text);
    let url = hookbridge.url("");
    let send = async |arguments: &[&str]| run(configuration.hookbridge(&["send", "--url", &url]).args(arguments)).await;

    let sent = send(&["github", "--type", "push", "--id", "d-1", "--body", "{\"ref\":\"main\"}"]).await;
    assert!(sent.assert_code(0).stdout.contains("202") && sent.stdout.contains("\"duplicate\":false"), "{sent}");
    let event = nats.message("EVENTS", "events.github.push").await;
    assert_eq!((event.header("ce-id"), &event.payload[..]), (Some("d-1"), &b"{\"ref\":\"main\"}"[..]));
    send(&["standard"]).await.assert_code(0);
    assert_eq!(nats.count("EVENTS").await, 2);

    for source in ["github", "standard"] {
        let refused = send(&[source, "--wrong-signature"]).await;
        assert!(refused.assert_code(1).stdout.contains("401"), "{refused}");
        assert!(refused.stderr.contains("the gateway did not take the webhook"), "{refused}");
    }
    assert_eq!(nats.count("EVENTS").await, 2);
    let unknown = send(&["gitlab"]).await;
    assert!(unknown.assert_code(2).stderr.contains("configured are: github, standard"), "{unknown}");
}

#[tokio::test]
async fn sigterm_lets_a_process_finish_what_it_holds_and_its_log_is_json() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hold]).await);
    let text = format!("[endpoints.crm]\nurl = \"{}\"\nsignatures = []", receiver.url("/"));
    let served = Configuration::new(&text).serve(&nats);
    served.ready().await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")], "x").await;
    receiver.next().await;

    served.signal("TERM").await;
    served.complains("Stopping: finishing what is held").await;
    receiver.release();
    let ended = served.ended().await;
    ended.assert_code(0);
    assert_eq!(nats.message("RECEIPTS", "receipts.a.delivered.m-1").await.json()["attempt"], 1);
    assert_eq!(ended.stdout, "");
    for line in ended.stderr.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["message"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let (nats, mut receiver) = (Nats::start().await, Receiver::scripted([Reply::Hang]).await);
    let text = format!(
        "shutdown_grace = \"1h\"\n[endpoints.crm]\nurl = \"{}\"\nsignatures = []\n[egress]\ntimeout = \"1h\"",
        receiver.url("/")
    );
    let served = Configuration::new(&text).serve(&nats);
    served.ready().await;
    nats.publish("outbox.a", &[("Hookbridge-Endpoint", "crm")], "x").await;
    receiver.next().await;

    served.signal("INT").await;
    served.complains("Stopping: finishing what is held").await;
    served.signal("INT").await;
    let ended = served.ended().await;
    assert!(ended.assert_code(1).stderr.contains("stopped at once by a second signal"), "{ended}");
}

#[tokio::test]
async fn sighup_reads_the_secrets_again() {
    let nats = Nats::start().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "old\n").unwrap();
    let text = format!("[sources.github]\npreset = \"github\"\nsecrets = [\"file:{}\"]", secret.path().display());
    let served = Configuration::new(&text).serve(&nats);
    served.ready().await;
    let hook = format!("{}/hooks/github", served.gateway().await);
    let post = async |key: &str, id: &str| post(&hook, &sign::github(&sign::hex(key, b"{}"), "push", id), "{}").await;
    post("old", "1").await.assert_status(202);

    std::fs::write(secret.path(), "new\n").unwrap();
    served.signal("HUP").await;
    served.complains("Secrets read again: 1; failed: 0").await;
    post("old", "2").await.assert_status(401);
    post("new", "3").await.assert_status(202);

    std::fs::remove_file(secret.path()).unwrap();
    served.signal("HUP").await;
    served.complains("A secret was not read again and stays as it was").await;
    post("new", "4").await.assert_status(202);
}

#[tokio::test]
async fn a_wrong_password_for_nats_is_said_once_by_each_role_and_tried_again_and_again() {
    let mut nats = Nats::absent("authorization { user: \"hookbridge\", password: \"right\" }").await;
    nats.run();
    let text = "[nats]\nuser = \"hookbridge\"\npassword = \"plain:wrong-s3cret\"";
    let served = Configuration::new(text).serve(&nats);

    let refused = async || (nats.log().matches("User \"hookbridge\"").count() >= 8).then_some(());
    eventually("several attempts", refused).await;
    let admin = served.admin().await;
    assert_eq!(request("GET", &format!("{admin}/readyz"), &[], "").await.status, 503);
    assert_eq!(request("GET", &format!("{admin}/livez"), &[], "").await.status, 200);
    served.signal("TERM").await;
    let ended = served.ended().await;
    ended.assert_code(0);
    let said = ended.stderr.lines().filter(|line| line.contains("uthorization"));
    let said: Vec<serde_json::Value> = said.map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(said.len(), 2, "once for each role: {ended}");
    for role in ["gateway", "courier"] {
        let named = format!("The {role}'s NATS connection: ");
        assert!(said.iter().any(|line| line["message"].as_str().unwrap().starts_with(&named)), "{ended}");
    }
    assert!(!ended.to_string().contains("s3cret"), "{ended}");
}

#[tokio::test]
async fn ready_says_whether_a_process_is() {
    let mut nats = Nats::absent("").await;
    let served = Configuration::new("").serve(&nats);
    let url = format!("{}/readyz", served.admin().await);

    let not_yet = run(&mut binary(&["ready", "--url", &url])).await;
    assert!(not_yet.assert_code(1).stderr.starts_with("error: "), "{not_yet}");
    nats.run();
    served.ready().await;
    let ready = run(&mut binary(&["ready", "--url", &url])).await;
    assert_eq!(ready.assert_code(0).stdout, "ready\n");

    served.signal("TERM").await;
    served.ended().await.assert_code(0);
    let gone = run(&mut binary(&["ready", "--url", &url])).await;
    assert!(gone.assert_code(1).stderr.contains("does not answer"), "{gone}");
}

/// `hookbridge dev` on ports and a folder of its own.
struct Dev {
    program: Program,
    port: u16,
    _files: (tempfile::TempDir, tempfile::NamedTempFile),
}

impl Dev {
    async fn start() -> Self {
        let (port, endpoint) = (free_port(), free_port());
        let (data, overlay) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        let text = format!(
            "[gateway]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [endpoints.demo]\nurl = \"http://127.0.0.1:{endpoint}/\"\n\
             [callbacks]\nallow = [\"http://127.0.0.1:{endpoint}/\"]\n"
        );
        std::fs::write(overlay.path(), text).unwrap();
        let mut command = binary(&["dev", "--nats-port", &port.to_string()]);
        command.arg("--nats-server").arg(nats::program()).arg("--data").arg(data.path());
        let program = Program::start(command.arg("--config").arg(overlay.path()));
        program.says("Ctrl-C stops everything.").await;
        Self { program, port, _files: (data, overlay) }
    }

    /// A line of what is printed to try, as somebody would copy it.
    fn advice(&self, with: &str) -> String {
        let printed = self.program.stdout();
        printed.lines().find(|line| line.contains(with)).unwrap_or_else(|| panic!("{with}: {printed}")).to_owned()
    }

    /// Waits until nothing listens where its nats-server did.
    async fn nats_gone(port: u16) {
        let refused = async || TcpStream::connect(("127.0.0.1", port)).await.err();
        eventually("nats-server to be gone", refused).await;
    }
}

#[tokio::test]
async fn dev_shows_a_webhook_that_comes_back_as_a_signed_callback() {
    let dev = Dev::start().await;
    let curl = dev.advice("curl -i ");
    let hook = curl.split_whitespace().find(|word| word.starts_with("http://")).unwrap();
    assert!(hook.ends_with("/hooks/demo"), "{curl}");

    let body = r#"{"type":"order.created","order":42}"#;
    let signature = sign::hex("demo-secret", body.as_bytes());
    let headers = [("content-type", "application/json"), ("x-signature", signature.as_str())];
    post(hook, &headers, body).await.assert_status(202);
    let received = dev.program.says("endpoint  received").await;
    assert!(received.contains("verified webhook-signature and x-signature"), "{received}");
    assert!(received.contains(r#""you_said":{"order":42,"type":"order.created"}"#), "{received}");

    let sent = run(Command::new("sh").arg("-c").arg(dev.advice(" publish --nats "))).await;
    assert!(sent.assert_code(0).stdout.contains("\"stream\":\"OUTBOX\""), "{sent}");
    dev.program.says(r#"{"hello":"world"}"#).await;
    let delegate = dev.advice("/agents/demo/tasks").replace(" \\", &dev.advice("-d '{\"task_id\""));
    let taken = run(Command::new("sh").arg("-c").arg(delegate)).await;
    assert!(taken.assert_code(0).stdout.contains(r#""status":"submitted""#), "{taken}");
    let told = dev.program.says("endpoint  received demo-t-1-done").await;
    assert!(told.contains(r#""status":"completed""#) && told.contains(r#""prompt":"think""#), "{told}");
    let task = run(Command::new("sh").arg("-c").arg(dev.advice("/tasks/t-1"))).await;
    assert!(task.assert_code(0).stdout.contains(r#""status":"completed""#), "{task}");
    let receipts = run(Command::new("sh").arg("-c").arg(format!("{} --count 2", dev.advice(" tail --nats ")))).await;
    assert!(receipts.assert_code(0).stdout.contains("receipts.demo.delivered."), "{receipts}");

    dev.program.signal("TERM").await;
    dev.program.ended().await.assert_code(0);
    assert!(TcpStream::connect(("127.0.0.1", dev.port)).await.is_err(), "nats-server outlived `dev`");
}

#[tokio::test]
async fn dev_that_is_killed_leaves_no_nats_server_behind() {
    let dev = Dev::start().await;
    assert!(TcpStream::connect(("127.0.0.1", dev.port)).await.is_ok());
    dev.program.signal("KILL").await;
    assert_eq!(dev.program.ended().await.code, None);
    Dev::nats_gone(dev.port).await;
}

#[tokio::test]
async fn dev_refuses_a_nats_server_that_is_not_there_and_a_nats_of_somebody_else() {
    let ended = run(&mut binary(&["dev", "--nats-server", "/nowhere/nats-server"])).await;
    assert!(ended.assert_code(2).stderr.contains("there is no nats-server at /nowhere/nats-server"), "{ended}");
    let ended = run(&mut binary(&["dev", "--nats", "nats://127.0.0.1:4222"])).await;
    assert!(ended.assert_code(2).stderr.contains("use `hookbridge serve`"), "{ended}");
}
