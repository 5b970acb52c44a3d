//! Where artifacts are.

use std::path::Path;

use registry::{ArtifactPlace, S3Options};

/// The artifact store. Credentials of a bucket are those of the `AWS_*` variables, or of the machine's role.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageArgs {
    /// Where artifacts are: a folder, or `s3://bucket/prefix` [default: the folder `artifacts` of the data folder].
    #[arg(long, env = "WEIGHTSMITH_ARTIFACTS", value_name = "PLACE")]
    pub artifacts: Option<ArtifactPlace>,
    /// URL of an S3 server other than AWS.
    #[arg(long, env = "WEIGHTSMITH_S3_ENDPOINT", value_name = "URL")]
    pub s3_endpoint: Option<String>,
    /// Region of the bucket [default: that of AWS_REGION, or us-east-1].
    #[arg(long, env = "WEIGHTSMITH_S3_REGION", value_name = "REGION")]
    pub s3_region: Option<String>,
    /// Whether the bucket is in the path of a request, and not in the host [default: with an endpoint true, else
    /// false].
    #[arg(long, env = "WEIGHTSMITH_S3_PATH_STYLE", num_args = 0..=1, default_missing_value = "true")]
    pub s3_path_style: Option<bool>,
    /// Allow an endpoint of plain http.
    #[arg(long, env = "WEIGHTSMITH_S3_ALLOW_HTTP")]
    pub s3_allow_http: bool,
}

impl StorageArgs {
    /// The place, with the default for a data folder.
    pub fn place(&self, data_dir: &Path) -> ArtifactPlace {
        self.artifacts.clone().unwrap_or_else(|| ArtifactPlace::Folder(data_dir.join("artifacts")))
    }

    /// How a bucket is reached.
    pub fn options(&self) -> S3Options {
        S3Options {
            endpoint: self.s3_endpoint.clone().filter(|url| !url.is_empty()),
            region: self.s3_region.clone().filter(|region| !region.is_empty()),
            path_style: self.s3_path_style,
            allow_http: self.s3_allow_http,
            key: None,
        }
    }
}
