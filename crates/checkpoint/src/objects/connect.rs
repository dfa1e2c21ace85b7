//! A bucket's service, as the environment describes it.
//!
//! Credentials and endpoints come from the variables that the services' own tools read, and from
//! nowhere else: they are in no config, no event and no checkpoint.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, RetryConfig};

use super::error::{Advice, ObjectError};
use super::place::{Bucket, Service};
use super::remote::{Limits, Remote};

/// Connects to a bucket: nothing is sent yet.
///
/// # Errors
/// The environment contradicts itself, or does not say enough.
pub(super) fn connect(bucket: &Bucket) -> Result<Remote, ObjectError> {
    let setup = |reason: String| {
        let bucket = bucket.to_string();
        ObjectError::Setup { bucket, reason }
    };
    let limits = Limits::of_environment().map_err(setup)?;
    let advice = advice(bucket, limits);
    // TLS takes the process's provider. Another one may have been chosen, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let service: Arc<dyn super::remote::Service> = match bucket.service {
        Service::S3 => Arc::new(s3(bucket, &advice, limits)?),
        Service::Google => {
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(&bucket.name);
            let builder = builder.with_client_options(options(limits)).with_retry(retry(limits));
            Arc::new(builder.build().map_err(|error| setup(error.to_string()))?)
        }
        Service::Azure => {
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(&bucket.name);
            let builder = builder.with_client_options(options(limits)).with_retry(retry(limits));
            Arc::new(builder.build().map_err(|error| setup(error.to_string()))?)
        }
    };
    Ok(Remote::new(service, limits, advice))
}

fn s3(
    bucket: &Bucket,
    advice: &Advice,
    limits: Limits,
) -> Result<object_store::aws::AmazonS3, ObjectError> {
    let builder = AmazonS3Builder::from_env().with_bucket_name(&bucket.name);
    let key = |key: AmazonS3ConfigKey| builder.get_config_value(&key);
    let has_keys = key(AmazonS3ConfigKey::AccessKeyId).is_some();
    let secret = key(AmazonS3ConfigKey::SecretAccessKey).is_some();
    let lacking = |reason: &str| {
        let (bucket, reason) = (bucket.to_string(), reason.to_owned());
        ObjectError::NoCredentials { bucket, reason, variables: advice.variables }
    };
    if has_keys != secret {
        let lacks = if has_keys { "AWS_SECRET_ACCESS_KEY" } else { "AWS_ACCESS_KEY_ID" };
        return Err(lacking(&format!("{lacks} is not set, although the other half is")));
    }
    let of_host = [
        AmazonS3ConfigKey::WebIdentityTokenFile,
        AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
        AmazonS3ConfigKey::ContainerCredentialsFullUri,
        AmazonS3ConfigKey::SkipSignature,
    ];
    let may_ask = std::env::var("AWS_EC2_METADATA_DISABLED").as_deref() != Ok("true");
    if !has_keys && !may_ask && of_host.into_iter().all(|of| key(of).is_none()) {
        return Err(lacking("no variable has any, and the host may not be asked"));
    }
    let endpoint = key(AmazonS3ConfigKey::S3Endpoint).or(key(AmazonS3ConfigKey::Endpoint));
    // Whoever writes http:// means it; the default is https.
    let is_plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let options = options(limits).with_allow_http(is_plain);
    let builder = builder.with_client_options(options).with_retry(retry(limits));
    // The digest is computed for the signature anyway, and the server compares both.
    let builder = builder.with_checksum_algorithm(Checksum::SHA256);
    builder.build().map_err(|error| {
        let (bucket, reason) = (bucket.to_string(), error.to_string());
        ObjectError::Setup { bucket, reason }
    })
}

/// An attempt takes at most a quarter of the whole time, so that there is some for others.
fn options(limits: Limits) -> ClientOptions {
    let once = (limits.total / 4).max(Duration::from_secs(1));
    ClientOptions::new().with_timeout(once).with_connect_timeout(once.min(Duration::from_secs(10)))
}

fn retry(limits: Limits) -> RetryConfig {
    RetryConfig { retry_timeout: limits.total / 2, ..RetryConfig::default() }
}

fn advice(bucket: &Bucket, limits: Limits) -> Advice {
    let seconds = limits.total.as_secs();
    let (variables, endpoint, region) = match bucket.service {
        Service::S3 => (
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, for some)",
            "AWS_ENDPOINT_URL",
            "AWS_REGION",
        ),
        Service::Google => (
            "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
            "GOOGLE_BASE_URL",
            "nothing: Google has no regions here",
        ),
        Service::Azure => (
            "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
            "AZURE_STORAGE_ENDPOINT",
            "nothing: Azure has no regions here",
        ),
    };
    Advice { bucket: bucket.to_string(), variables, endpoint, region, seconds }
}
