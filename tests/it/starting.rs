//! A starting gateway opens its port when it can keep its promise, or after some seconds.

use hookbridge::app::Roles;

use crate::harness::{Configuration, Hookbridge, Nats, Wire, binary, eventually, request, run};

const OPEN: &str = "[sources.open]\nverify = \"none\"";

#[tokio::test]
async fn a_gateway_lets_nobody_in_before_nats_is_ready_and_answers_the_first_request_with_202() {
    let mut nats = Nats::absent("").await;
    let configuration = Configuration::new(OPEN);
    let gateway = configuration.gateway(&nats);
    let admin = gateway.admin().await;
    assert_eq!(request("GET", &format!("{admin}/livez"), &[], "").await.status, 200);
    assert_eq!(request("GET", &format!("{admin}/readyz"), &[], "").await.status, 503);
    assert!(!gateway.stderr().contains("Gateway listens"), "{}", gateway.stderr());

    nats.run();
    gateway.ready().await;
    let mut wire = Wire::connect(&gateway.gateway().await).await;
    wire.post().await;
    assert!(!gateway.stderr().contains("NATS was not ready within"), "{}", gateway.stderr());
}

#[tokio::test]
async fn the_address_is_taken_at_the_start_and_refuses_until_nats_is_ready() {
    let mut nats = Nats::absent("").await;
    let hookbridge = Hookbridge::start_without_nats(&nats, Roles::Gateway, OPEN).await;
    assert!(Wire::try_connect(&hookbridge.url("/")).await.is_none(), "it listens without NATS");
    nats.run();
    hookbridge.ready().await;
    hookbridge.post("/hooks/open", &[], "x").await.assert_status(202);
}

#[tokio::test]
async fn without_nats_a_gateway_listens_after_some_seconds_and_says_so() {
    let nats = Nats::absent("").await;
    let gateway = Configuration::new(OPEN).gateway(&nats);
    let url = gateway.gateway().await;
    gateway.complains("NATS was not ready within 5s").await;
    request("POST", &format!("{url}/hooks/open"), &[], "x").await.assert_status(503);
}

#[tokio::test]
async fn a_gateway_that_is_stopped_before_it_listens_ends_at_once() {
    let nats = Nats::absent("").await;
    let gateway = Configuration::new(&format!("shutdown_delay = \"1h\"\n{OPEN}")).gateway(&nats);
    gateway.admin().await;
    gateway.signal("TERM").await;
    let ended = gateway.ended().await;
    assert!(!ended.stderr.contains("Gateway listens"), "{ended}");
    ended.assert_code(0);
}

#[tokio::test]
async fn an_address_that_is_in_use_ends_the_start_with_a_sentence() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, OPEN).await;
    let address = hookbridge.url("").replace("http://", "");
    let configuration = Configuration::new(&format!("[gateway]\nlisten = \"{address}\"\n{OPEN}"));
    let ended = configuration.gateway(&nats).ended().await;
    assert!(ended.stderr.contains(&format!("gateway.listen: cannot listen on {address}: ")), "{ended}");
    ended.assert_code(1);
}

#[tokio::test]
async fn the_check_refuses_times_that_cannot_work() {
    let text = "shutdown_delay = \"2h\"\n[gateway]\nidle_timeout = \"0s\"\n[sources.open]\nverify = \"none\"";
    let configuration = Configuration::new(text);
    let ended = run(binary(&["check", "--config"]).arg(configuration.own())).await;
    ended.assert_code(1);
    for expected in ["gateway.idle_timeout: must be more than 0", "shutdown_delay: must be at most 1h"] {
        assert!(ended.to_string().contains(expected), "{expected:?} is not in {ended}");
    }
    let short = Configuration::new(&format!("[gateway]\nidle_timeout = \"60s\"\n{OPEN}"));
    let ended = run(binary(&["check", "--config"]).arg(short.own())).await;
    ended.assert_code(0);
    assert!(ended.to_string().contains("gateway.idle_timeout: 1m is too short"), "{ended}");
    let default = Configuration::new(OPEN);
    let ended = run(binary(&["check", "--config"]).arg(default.own())).await;
    assert!(!ended.to_string().contains("idle_timeout"), "{ended}");
}

#[tokio::test]
async fn the_address_of_a_gateway_that_has_ended_is_free_at_once() {
    let nats = Nats::start().await;
    let hookbridge = Hookbridge::start(&nats, OPEN).await;
    let url = hookbridge.url("");
    let mut wire = Wire::connect(&url).await;
    wire.post().await;
    hookbridge.stop().await.unwrap();
    wire.assert_ends().await;

    let text = format!("[gateway]\nlisten = \"{}\"\n{OPEN}", url.replace("http://", ""));
    let next = Hookbridge::start(&nats, &text).await;
    let listens = async || Wire::try_connect(&next.url("")).await;
    eventually("the next gateway to listen", listens).await.post().await;
}
