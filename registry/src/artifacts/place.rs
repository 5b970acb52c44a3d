//! Where artifacts are: a local folder or an S3 bucket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use crate::{Error, Result};

/// How long a bucket may take to accept a connection, and to send or take the next bytes.
const CONNECT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_secs(30);
/// How often, and how long, a request to a bucket that answers 5xx or breaks off is tried again.
const RETRIES: usize = 6;
const RETRY_TIME: Duration = Duration::from_secs(60);

/// A local folder or an S3 bucket, as in `/var/lib/weightsmith/artifacts` and `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ArtifactPlace {
    /// A folder, made when it is missing.
    Folder(PathBuf),
    /// A bucket that exists.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What all keys begin with; empty for none.
        prefix: String,
    },
}

/// How a bucket is reached, where that is not what `AWS_*` variables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Options {
    /// The server's URL; `None`: `AWS_ENDPOINT_URL`, or AWS itself.
    pub endpoint: Option<String>,
    /// The region; `None`: `AWS_REGION`, or `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket is in the path of a request (and not in the host); `None`: in the path with an endpoint of
    /// its own, in the host at AWS.
    pub path_style: Option<bool>,
    /// Whether the endpoint may be plain `http://`.
    pub allow_http: bool,
    /// The key that requests are signed with; `None`: that of the `AWS_*` variables, or of the machine's role.
    pub key: Option<S3Key>,
}

/// An access key of a bucket.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Key {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: String,
}

impl fmt::Debug for S3Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("S3Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for ArtifactPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("artifacts", "write a folder, or s3://bucket or s3://bucket/prefix");
        let Some(rest) = text.strip_prefix("s3://") else {
            return if text.is_empty() || text.contains("://") { Err(wrong()) } else { Ok(Self::Folder(text.into())) };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if !(3..=63).contains(&bucket.len())
            || !bucket.chars().all(valid)
            || (!prefix.is_empty() && object_store::path::Path::parse(prefix).is_err())
        {
            return Err(wrong());
        }
        Ok(Self::S3 { bucket: bucket.into(), prefix: prefix.into() })
    }
}

impl fmt::Display for ArtifactPlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(formatter),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(formatter, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(formatter, "s3://{bucket}/{prefix}"),
        }
    }
}

/// A client of the bucket; credentials are those of the `AWS_*` variables or of the machine's role.
pub(super) fn bucket(name: &str, prefix: &str, options: &S3Options) -> Result<Arc<PrefixStore<AmazonS3>>> {
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: RETRIES,
        retry_timeout: RETRY_TIME,
    };
    // No limit on a whole request: a large download to a slow client takes its time.
    let client = ClientOptions::new().with_timeout_disabled().with_connect_timeout(CONNECT).with_read_timeout(SILENCE);
    let endpoint = options.endpoint.clone().or_else(|| set("AWS_ENDPOINT_URL")).or_else(|| set("AWS_ENDPOINT"));
    let allow_http = options.allow_http || set("AWS_ALLOW_HTTP").is_some_and(|value| value == "true");
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_client_options(client.with_allow_http(allow_http))
        .with_retry(retry);
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(key) = &options.key {
        builder = builder.with_access_key_id(&key.id).with_secret_access_key(&key.secret);
    }
    let path_style = options.path_style.unwrap_or(endpoint.is_some());
    builder = builder.with_virtual_hosted_style_request(!path_style);
    if let Some(endpoint) = endpoint {
        if endpoint.starts_with("http://") && !allow_http {
            return Err(Error::invalid("s3_endpoint", "it is plain http: use https, or allow it with --s3-allow-http"));
        }
        builder = builder.with_endpoint(if path_style { endpoint } else { in_host(&endpoint, name) });
    }
    Ok(Arc::new(PrefixStore::new(builder.build()?, prefix)))
}

/// A variable that is set to something.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `https://host` with the bucket before the host.
fn in_host(endpoint: &str, bucket: &str) -> String {
    endpoint.split_once("://").map_or_else(|| endpoint.into(), |(scheme, rest)| format!("{scheme}://{bucket}.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_written() {
        let s3 = |bucket: &str, prefix: &str| ArtifactPlace::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (text, place, written) in [
            ("/a/b", ArtifactPlace::Folder("/a/b".into()), "/a/b"),
            ("a", ArtifactPlace::Folder("a".into()), "a"),
            ("s3://models", s3("models", ""), "s3://models"),
            ("s3://models/", s3("models", ""), "s3://models"),
            ("s3://models/team/a/", s3("models", "team/a"), "s3://models/team/a"),
        ] {
            let read: ArtifactPlace = text.parse().unwrap();
            assert_eq!((read.to_string().as_str(), read), (written, place), "{text}");
        }
        for bad in ["", "s3://", "s3:///a", "s3://UPPER/a", "s3://ab", "http://a/b", "gs://bucket/a", "s3://abc/a//b"] {
            assert_eq!(bad.parse::<ArtifactPlace>().unwrap_err().code(), "invalid_value", "{bad}");
        }
    }

    #[test]
    fn plain_http_is_by_consent() {
        let mut options = S3Options { endpoint: Some("http://127.0.0.1:9".into()), ..S3Options::default() };
        assert_eq!(bucket("models", "", &options).unwrap_err().code(), "invalid_value");
        options.allow_http = true;
        bucket("models", "", &options).unwrap();
        assert_eq!(in_host("http://127.0.0.1:9", "models"), "http://models.127.0.0.1:9");
    }
}
