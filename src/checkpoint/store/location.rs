//! Where checkpoints are: a folder, or a bucket of an S3 store.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where checkpoints are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointLocation {
    Folder(PathBuf),
    /// `s3://bucket/prefix`. Endpoint and credentials are in the standard variables:
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
    /// `AWS_ALLOW_HTTP` and others.
    S3 {
        bucket: String,
        prefix: String,
    },
}

impl FromStr for CheckpointLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<CheckpointLocation, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Some(CheckpointLocation::Folder(text.into()))
                .filter(|_| !text.is_empty())
                .ok_or_else(|| "it is empty".into());
        };
        match scheme {
            "file" if rest.starts_with('/') => Ok(CheckpointLocation::Folder(rest.into())),
            "s3" => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
                if bucket.is_empty() || !bucket.bytes().all(allowed) || rest.contains(['?', '#', '@']) {
                    return Err(format!(
                        "{text:?} does not name a bucket: write it as in s3://bucket/prefix"
                    ));
                }
                Ok(CheckpointLocation::S3 { bucket: bucket.into(), prefix: prefix.trim_matches('/').into() })
            }
            _ => Err(format!("{text:?} is neither a folder nor of the form s3://bucket/prefix")),
        }
    }
}

impl CheckpointLocation {
    /// The location below this one with a name.
    pub fn join(&self, name: &str) -> CheckpointLocation {
        match self {
            CheckpointLocation::Folder(folder) => CheckpointLocation::Folder(folder.join(name)),
            CheckpointLocation::S3 { bucket, prefix } if prefix.is_empty() => {
                CheckpointLocation::S3 { bucket: bucket.clone(), prefix: name.into() }
            }
            CheckpointLocation::S3 { bucket, prefix } => {
                CheckpointLocation::S3 { bucket: bucket.clone(), prefix: format!("{prefix}/{name}") }
            }
        }
    }
}

impl fmt::Display for CheckpointLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointLocation::Folder(folder) => folder.display().fmt(f),
            CheckpointLocation::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            CheckpointLocation::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}
