//! The span of a request: for the log, and with the feature `otel` also for a collector of traces.

use axum::http::{HeaderMap, Method, StatusCode};
use tracing::Span;

use crate::metrics::Route;

/// The span of a request that begins. With the feature it goes on from the client's `traceparent`.
#[cfg_attr(not(feature = "otel"), allow(unused_variables))]
pub(crate) fn begin(id: &str, method: &Method, path: &str, headers: &HeaderMap) -> Span {
    #[cfg(not(feature = "otel"))]
    let span = tracing::info_span!("request", %id, %method, %path);
    #[cfg(feature = "otel")]
    let span = traced::begin(id, method, path, headers);
    span
}

/// Notes in the current span how the request was answered.
#[cfg_attr(not(feature = "otel"), allow(unused_variables))]
pub(crate) fn answered(method: &Method, route: &Route, status: StatusCode) {
    #[cfg(feature = "otel")]
    traced::answered(method, route.name(), status);
}

/// Attributes are those of OpenTelemetry's semantic conventions; set beside the span's fields, they are in no log line.
#[cfg(feature = "otel")]
mod traced {
    use opentelemetry::propagation::Extractor;
    use opentelemetry::trace::{Status, TraceContextExt};
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    use super::*;

    struct Headers<'a>(&'a HeaderMap);

    impl Extractor for Headers<'_> {
        fn get(&self, key: &str) -> Option<&str> {
            self.0.get(key).and_then(|value| value.to_str().ok())
        }

        fn keys(&self) -> Vec<&str> {
            self.0.keys().map(axum::http::HeaderName::as_str).collect()
        }
    }

    pub(super) fn begin(id: &str, method: &Method, path: &str, headers: &HeaderMap) -> Span {
        let span = tracing::info_span!("request", %id, %method, %path, otel.kind = "server");
        let parent = opentelemetry::global::get_text_map_propagator(|from| from.extract(&Headers(headers)));
        // Fails where nothing collects traces.
        let _ = span.set_parent(parent);
        span.set_attribute("http.request.method", method.to_string());
        span.set_attribute("url.path", path.to_owned());
        span.set_attribute("http.request.header.x-request-id", id.to_owned());
        span
    }

    pub(super) fn answered(method: &Method, route: &str, status: StatusCode) {
        let span = Span::current();
        span.set_attribute("http.route", route.to_owned());
        span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.set_status(Status::error(status.to_string()));
        }
        span.context().span().update_name(format!("{method} {route}"));
    }
}
