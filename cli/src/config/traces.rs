//! Where traces are sent: an OpenTelemetry collector, in builds with the feature `otel`.

#[cfg(feature = "otel")]
use std::time::Duration;

use crate::error::{Error, Result};

/// Where spans go. Every build knows the setting; one that cannot send refuses it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Observability")]
pub struct TraceArgs {
    /// URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces, such as http://localhost:4318; only in builds
    /// with the feature `otel`.
    #[arg(long, global = true, env = "WEIGHTSMITH_OTLP_ENDPOINT", hide_env_values = true, value_name = "URL")]
    otlp_endpoint: Option<String>,
}

impl TraceArgs {
    /// The endpoint; an empty one is none.
    fn endpoint(&self) -> Option<&str> {
        self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }
}

#[cfg(not(feature = "otel"))]
impl TraceArgs {
    /// Refuses an endpoint.
    ///
    /// # Errors
    /// `otlp_unsupported`.
    pub fn check(&self) -> Result<()> {
        match self.endpoint() {
            None => Ok(()),
            Some(_) => {
                let text = "this build sends no traces: use one made with `cargo build --release -p cli --features \
                            otel`, or leave out --otlp-endpoint and WEIGHTSMITH_OTLP_ENDPOINT";
                Err(Error::input("otlp_unsupported", text))
            }
        }
    }
}

#[cfg(feature = "otel")]
pub use sending::Traces;

#[cfg(feature = "otel")]
mod sending {
    use opentelemetry::KeyValue;
    use opentelemetry::trace::TracerProvider;
    use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_opentelemetry::OpenTelemetryLayer;
    use tracing_subscriber::registry::LookupSpan;
    use tracing_subscriber::{EnvFilter, Layer};

    use super::*;

    /// What of this program is told, whatever is logged; nothing of those who send it.
    const SPANS: &str = "off,weightsmith=info,api=info,registry=info,inference=info,training=info";
    /// Where OTLP over HTTP takes traces.
    const PATH: &str = "v1/traces";
    /// Longest time for the last spans at the end.
    const LAST: Duration = Duration::from_secs(5);

    /// The sender of spans; what it still has is sent when it goes.
    pub struct Traces(SdkTracerProvider);

    impl TraceArgs {
        /// Begins to send, when there is an endpoint.
        ///
        /// # Errors
        /// `otlp_endpoint_invalid`.
        pub fn open(&self) -> Result<Option<Traces>> {
            let Some(endpoint) = self.endpoint() else {
                return Ok(None);
            };
            let url = address(endpoint)?;
            let invalid =
                |error| Error::input("otlp_endpoint_invalid", format!("cannot send traces to {url}: {error}"));
            let exporter =
                SpanExporter::builder().with_http().with_endpoint(url.as_str()).with_protocol(Protocol::HttpBinary);
            let exporter = exporter.build().map_err(invalid)?;
            let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "weightsmith".into());
            let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
            let resource = Resource::builder().with_service_name(name).with_attribute(version).build();
            let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
            opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
            Ok(Some(Traces(provider)))
        }
    }

    impl Traces {
        /// The layer that gives it the spans.
        pub fn layer<S>(&self) -> Result<impl Layer<S> + use<S>>
        where
            S: tracing::Subscriber + for<'span> LookupSpan<'span>,
        {
            let filter = EnvFilter::try_new(SPANS).map_err(|e| Error::Internal(e.to_string()))?;
            let layer = OpenTelemetryLayer::new(self.0.tracer("weightsmith"));
            Ok(layer.with_location(false).with_threads(false).with_filter(filter))
        }
    }

    impl Drop for Traces {
        fn drop(&mut self) {
            if let Err(error) = self.0.shutdown_with_timeout(LAST) {
                tracing::warn!(%error, "the last traces were not sent");
            }
        }
    }

    /// The URL of traces: that of the collector and OTLP's path, which may be there already.
    fn address(endpoint: &str) -> Result<String> {
        let sentence = "--otlp-endpoint must be an http or https URL of a collector, such as http://localhost:4318";
        let url = reqwest::Url::parse(endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut url = url.ok_or_else(|| Error::input("otlp_endpoint_invalid", sentence))?;
        let path = url.path().trim_end_matches('/').to_owned();
        if !path.ends_with(PATH) {
            url.set_path(&format!("{path}/{PATH}"));
        }
        Ok(url.into())
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_path_is_added_once() {
            for (given, expected) in [
                ("http://localhost:4318", "http://localhost:4318/v1/traces"),
                ("https://x.example/otlp/", "https://x.example/otlp/v1/traces"),
                ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
            ] {
                assert_eq!(address(given).unwrap(), expected);
            }
            for bad in ["localhost:4318", "4318", "grpc://x:4317", "http://"] {
                assert_eq!(address(bad).unwrap_err().code(), "otlp_endpoint_invalid", "{bad}");
            }
        }
    }
}
