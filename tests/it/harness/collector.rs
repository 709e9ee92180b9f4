//! A collector of traces: OTLP over HTTP with protobuf.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;

/// Takes what is exported and keeps it.
pub(crate) struct Collector {
    address: SocketAddr,
    exported: Exported,
    server: tokio::task::JoinHandle<()>,
}

type Exported = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, exported) = (listener.local_addr().unwrap(), Exported::default());
        let router = Router::new().route("/v1/traces", post(take)).with_state(exported.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, exported, server }
    }

    /// What `telemetry.otlp` is set to.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All spans so far.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let exported = self.exported.lock().unwrap();
        let scopes = exported.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The names of the services that exported.
    pub(crate) fn services(&self) -> Vec<String> {
        let exported = self.exported.lock().unwrap();
        let resources = exported.iter().flat_map(|request| &request.resource_spans).map(|spans| &spans.resource);
        let attributes = resources.flatten().flat_map(|resource| &resource.attributes);
        let names = attributes.filter(|attribute| attribute.key == "service.name");
        names.filter_map(|name| name.value.as_ref()?.value.as_ref().map(text)).collect()
    }

    /// Everything that was exported, as text.
    pub(crate) fn dump(&self) -> String {
        format!("{:?}", self.exported.lock().unwrap())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(exported): State<Exported>, body: Bytes) {
    exported.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
}

/// An attribute of a span, as text.
pub(crate) fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = found.and_then(|found| found.value.as_ref()?.value.as_ref());
    value.map(text).unwrap_or_else(|| panic!("{key}: {span:?}"))
}

fn text(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}
