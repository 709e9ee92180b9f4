//! One trace from the webhook that comes in to the webhook that goes out.

use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::harness::{Collector, Configuration, Nats, Program, Receiver, attribute, post, sign, within};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SENDER: &str = "00f067aa0ba902b7";
const BODY: &str = r#"{"text":"a-private-body"}"#;

fn configuration(collector: &Collector, receiver: &Receiver) -> Configuration {
    Configuration::new(&format!(
        "{}\n[telemetry]\notlp = \"{}\"\nservice_name = \"bridge-under-test\"\n\
         [endpoints.crm]\nurl = \"{}\"\nsecrets = [\"plain:endpoint-s3cret\"]\nsignatures = [\"standard-webhooks\"]\n",
        sign::SOURCES,
        collector.url(),
        receiver.url("/hooks?key=query-s3cret")
    ))
}

/// Sends a webhook within a trace.
async fn send(program: &Program, traceparent: &str) {
    let signature = sign::hex("s3cret", BODY.as_bytes());
    let mut headers = sign::github(&signature, "push", "d-1");
    headers.extend([("traceparent", traceparent), ("tracestate", "vendor=1")]);
    post(&format!("{}/hooks/github", program.gateway().await), &headers, BODY).await.assert_status(202);
}

/// Answers the event as an agent does: with the trace context that came with it.
async fn answer(nats: &Nats) -> String {
    let event = nats.message("EVENTS", "events.github.push").await;
    let traceparent = event.header("traceparent").unwrap();
    assert_eq!(event.header("tracestate"), Some("vendor=1"));
    let routed = [("Hookbridge-Endpoint", "crm"), ("Nats-Msg-Id", "m-1")];
    let traced = [("traceparent", traceparent), ("tracestate", event.header("tracestate").unwrap())];
    nats.publish("outbox.planner", &[routed, traced].concat(), "another-private-body").await;
    traceparent.to_owned()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let (span, more) = (found.next(), found.next());
    assert!(more.is_none(), "{name} is there twice: {spans:?}");
    span.unwrap_or_else(|| panic!("{name} is not in {spans:?}"))
}

#[tokio::test]
async fn one_trace_leads_from_the_webhook_that_came_in_to_the_one_that_went_out() {
    let (nats, collector, mut receiver) = tokio::join!(Nats::start(), Collector::start(), Receiver::start());
    let program = configuration(&collector, &receiver).serve(&nats);
    program.ready().await;

    send(&program, &format!("00-{TRACE}-{SENDER}-01")).await;
    let event = answer(&nats).await;
    let delivered = receiver.next().await;
    nats.message("RECEIPTS", "receipts.planner.delivered.m-1").await;
    // What waits to be exported goes out when the process stops.
    program.signal("TERM").await;
    let ended = program.ended().await;
    ended.assert_code(0);

    let spans = collector.spans();
    let (receive, deliver) = (named(&spans, "receive webhook"), named(&spans, "deliver webhook"));
    assert_eq!(spans.len(), 2, "{spans:?}");
    for span in [receive, deliver] {
        assert_eq!(HEXLOWER.encode(&span.trace_id), TRACE, "{span:?}");
    }
    let id = |span: &Span| HEXLOWER.encode(&span.span_id);
    assert_eq!(HEXLOWER.encode(&receive.parent_span_id), SENDER);
    assert_eq!(event, format!("00-{TRACE}-{}-01", id(receive)));
    assert_eq!(HEXLOWER.encode(&deliver.parent_span_id), id(receive));
    assert_eq!(delivered.header("traceparent"), format!("00-{TRACE}-{}-01", id(deliver)));
    assert_eq!(delivered.header("tracestate"), "vendor=1");

    assert_eq!((receive.kind(), deliver.kind()), (SpanKind::Server, SpanKind::Client));
    assert_eq!(attribute(receive, "hookbridge.source"), "github");
    assert_eq!(attribute(receive, "http.response.status_code"), "202");
    assert_eq!(attribute(deliver, "hookbridge.destination"), "crm");
    assert_eq!(attribute(deliver, "hookbridge.delivery"), "m-1");
    assert_eq!(attribute(deliver, "http.response.status_code"), "204");
    assert!(collector.services().iter().all(|name| name == "bridge-under-test"), "{}", collector.dump());
    let (exported, printed) = (collector.dump(), ended.to_string());
    for private in ["private-body", "s3cret", &sign::hex("s3cret", BODY.as_bytes())["sha256=".len()..]] {
        assert!(!exported.contains(private), "{private} was exported: {exported}");
        assert!(!printed.contains(private), "{private} was logged: {printed}");
    }
}

#[tokio::test]
async fn a_trace_that_its_sender_does_not_record_is_passed_on_and_not_exported() {
    let (nats, collector, mut receiver) = tokio::join!(Nats::start(), Collector::start(), Receiver::start());
    let program = configuration(&collector, &receiver).serve(&nats);
    program.ready().await;

    send(&program, &format!("00-{TRACE}-{SENDER}-00")).await;
    let event = answer(&nats).await;
    let delivered = receiver.next().await;
    program.signal("TERM").await;
    program.ended().await.assert_code(0);

    for traceparent in [event.as_str(), delivered.header("traceparent")] {
        assert!(traceparent.starts_with(&format!("00-{TRACE}-")) && traceparent.ends_with("-00"), "{traceparent}");
    }
    assert_eq!(collector.spans(), [], "a trace was exported that nobody records");
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_no_webhook_and_no_clean_exit() {
    let (nats, mut receiver) = tokio::join!(Nats::start(), Receiver::start());
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "{}\n[telemetry]\notlp = \"http://{}\"\n[endpoints.crm]\nurl = \"{}\"\nsignatures = []",
        sign::SOURCES,
        silent.local_addr().unwrap(),
        receiver.url("/")
    );
    let program = Configuration::new(&text).serve(&nats);
    program.ready().await;

    send(&program, &format!("00-{TRACE}-{SENDER}-01")).await;
    answer(&nats).await;
    receiver.next().await;
    program.signal("TERM").await;
    let _connection = within("an export", silent.accept()).await.unwrap();
    let ended = program.ended().await;
    assert!(ended.assert_code(0).stderr.contains("Not all traces reached the collector"), "{ended}");
}
