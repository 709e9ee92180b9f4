//! Traces over OTLP, and the trace context that travels HTTP → NATS headers → HTTP.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;
use url::Url;

use crate::event::trace::Context;

/// The target of every span that goes to the collector.
pub(crate) const TARGET: &str = "hookbridge::trace";

/// The longest that one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of a collector's answer that are read.
const MAX_ANSWER: usize = 64 * 1024;

/// The way to the collector. Spans that are waiting go out when [`Tracing::shutdown`] is called.
pub(crate) struct Tracing(SdkTracerProvider);

impl Tracing {
    /// Prepares to export to `<url>/v1/traces`, OTLP over HTTP with protobuf. Needs a running Tokio runtime.
    pub(crate) fn new(url: &Url, service: &str) -> anyhow::Result<Self> {
        let endpoint = format!("{}/v1/traces", url.as_str().trim_end_matches('/'));
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Exporter::new()?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let resource = Resource::builder().with_service_name(service.to_owned()).build();
        let processor = BatchSpanProcessor::builder(exporter).build();
        let provider = SdkTracerProvider::builder().with_resource(resource).with_span_processor(processor).build();
        Ok(Self(provider))
    }

    /// The layer that turns spans of [`TARGET`] into exported ones.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        let layer = tracing_opentelemetry::layer().with_tracer(self.0.tracer("hookbridge"));
        layer.with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TARGET))
    }

    /// Sends what is waiting.
    pub(crate) fn shutdown(self) {
        if let Err(error) = self.0.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!("Not all traces reached the collector: {error}");
        }
    }
}

/// Makes `span` a child of the context that came with a request or a message, and returns the context that
/// goes on with it: the span's own where traces are exported, else the one that came, else a fresh one.
pub(crate) fn continue_from(span: &Span, came: Option<Context>) -> Context {
    let propagator = TraceContextPropagator::new();
    if let Some(came) = &came
        && !span.is_disabled()
        && let Err(error) = span.set_parent(propagator.extract(&Carrier::from(came)))
    {
        tracing::debug!("Trace context was not taken over: {error}");
    }
    let mut carrier = Carrier::default();
    if !span.is_disabled() {
        propagator.inject_context(&span.context(), &mut carrier);
    }
    let own = Context::parse(carrier.traceparent.as_deref(), carrier.tracestate.as_deref());
    own.or(came).unwrap_or_else(Context::fresh)
}

/// The two headers, as the propagator wants them.
#[derive(Default)]
struct Carrier {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl From<&Context> for Carrier {
    fn from(context: &Context) -> Self {
        Self { traceparent: Some(context.traceparent.clone()), tracestate: context.tracestate.clone() }
    }
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent.as_deref(),
            "tracestate" => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        match key {
            "traceparent" => self.traceparent = Some(value),
            "tracestate" => self.tracestate = Some(value).filter(|value| !value.is_empty()),
            _ => {}
        }
    }
}

/// Carries exports over the HTTP client that the process already has.
///
/// The SDK exports from a thread of its own that knows no Tokio, so the request runs on the runtime.
#[derive(Clone, Debug)]
struct Exporter {
    client: Client<hyper_rustls::HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

impl Exporter {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { client: crate::tls::http_client()?, runtime: Handle::current() })
    }

    fn send(&self, request: Request<Bytes>) -> impl Future<Output = Result<Response<Bytes>, HttpError>> + use<> {
        let answer = self.client.request(request.map(Full::new));
        async move {
            let (parts, body) = tokio::time::timeout(EXPORT_TIMEOUT, answer).await??.into_parts();
            let body = tokio::time::timeout(EXPORT_TIMEOUT, Limited::new(body, MAX_ANSWER).collect()).await??;
            Ok(Response::from_parts(parts, body.to_bytes()))
        }
    }
}

#[async_trait::async_trait]
impl HttpClient for Exporter {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.runtime.spawn(self.send(request)).await?
    }
}
