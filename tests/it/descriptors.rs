//! The limit of open files: raised where it may be, and never used up by senders.

use crate::harness::{Configuration, Nats, Program, Wire, eventually, request};

const OPEN: &str = "[sources.open]\nverify = \"none\"";
const TOO_FEW: &str = "gateway.max_connections is 20000, but the open-file limit of ";

async fn assert_alive(program: &Program) {
    let livez = format!("{}/livez", program.admin().await);
    assert_eq!(request("GET", &livez, &[], "").await.status, 200);
}

#[tokio::test]
async fn with_few_descriptors_idle_connections_keep_out_neither_health_checks_nor_webhooks() {
    let nats = Nats::start().await;
    let configuration = Configuration::new(OPEN);
    let program = Program::start(&mut configuration.with_files(&["serve", "--nats", &nats.url()], 256, 256));
    program.ready().await;
    let warning = program.complains(TOO_FEW).await;
    assert!(warning.contains("limit of 256 allows only"), "{warning}");
    let url = program.gateway().await;
    let mut idle = Vec::new();
    for index in 0..400 {
        idle.push(Wire::connect(&url).await);
        if index % 50 == 49 {
            assert_alive(&program).await;
            Wire::connect(&url).await.post().await;
        }
    }
    assert_eq!(nats.count("EVENTS").await, 8);
    assert_eq!(program.stderr().matches(TOO_FEW).count(), 1, "{}", program.stderr());
    assert!(!program.stderr().contains("Could not accept"), "{}", program.stderr());
}

#[tokio::test]
async fn a_low_limit_is_raised_as_far_as_it_may_be() {
    let nats = Nats::start().await;
    let configuration = Configuration::new(&format!("[gateway]\nmax_connections = 500\n{OPEN}"));
    let mut command = configuration.with_files(&["gateway", "--nats", &nats.url()], 64, 2048);
    let program = Program::start(&mut command);
    program.ready().await;
    let mut wires = Vec::new();
    for _ in 0..300 {
        let mut wire = Wire::connect(&program.gateway().await).await;
        wire.post().await;
        wires.push(wire);
    }
    for wire in &mut wires {
        wire.post().await;
    }
    assert!(!program.stderr().contains("gateway.max_connections is"), "{}", program.stderr());
}

#[tokio::test]
async fn a_process_without_a_descriptor_left_answers_health_checks_and_recovers() {
    let nats = Nats::start().await;
    let configuration = Configuration::new(OPEN);
    let program = Program::start(&mut configuration.with_files(&["gateway", "--nats", &nats.url()], 256, 256));
    program.ready().await;
    let url = program.gateway().await;
    let mut idle = Vec::new();
    for _ in 0..60 {
        idle.push(Wire::connect(&url).await);
    }
    let connections = async || {
        let page = request("GET", &format!("{}/metrics", program.admin().await), &[], "").await.text();
        page.contains("hookbridge_ingress_connections 60\n").then_some(())
    };
    eventually("the connections to be taken", connections).await;
    program.use_up_files().await;
    // Those who come now fill what gaps there are, and get the places of those who are idle.
    for _ in 0..20 {
        idle.push(Wire::connect(&url).await);
        Wire::connect(&url).await.post().await;
    }
    for _ in 0..20 {
        assert_alive(&program).await;
    }
    let said = program.stderr().matches("Could not accept a connection").count();
    assert!((1..=4).contains(&said), "said {said} times:\n{}", program.stderr());
}
