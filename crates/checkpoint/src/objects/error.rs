//! The meanings of an object store's answers, and what to do about them.

use std::error::Error as _;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

/// Errors of object stores; they come inside an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    #[error(
        "`{url}` is no URL of an object store: {reason}; write s3://BUCKET/PREFIX, \
         gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
    )]
    Url { url: String, reason: String },
    #[error("the store of {bucket} cannot be set up: {reason}")]
    Setup { bucket: String, reason: String },
    #[error("no object has this name")]
    NotFound,
    #[error("an object of this name exists already")]
    Exists,
    #[error("it is a prefix of other objects, not empty")]
    NotEmpty,
    #[error("there is no bucket {bucket}; create it, or look at its name and at {endpoint}")]
    NoBucket { bucket: String, endpoint: &'static str },
    #[error("there are no credentials for {bucket}: {reason}; set {variables}")]
    NoCredentials { bucket: String, reason: String, variables: &'static str },
    #[error("{bucket} refuses the credentials ({code}); look at {variables}")]
    Refused { bucket: String, code: String, variables: &'static str },
    #[error(
        "{bucket} does not let these credentials do this ({code}); they need to list, read, write \
         and delete objects there"
    )]
    Forbidden { bucket: String, code: String },
    #[error(
        "the clock of this host is too far from that of {bucket}, so its signatures do not count; \
         set it"
    )]
    ClockSkew { bucket: String },
    #[error("{bucket} lies in another region ({reason}); set {variable}")]
    Region { bucket: String, reason: String, variable: &'static str },
    #[error("{bucket} cannot be reached: {reason}; look at the network and at {endpoint}")]
    Unreachable { bucket: String, reason: String, endpoint: &'static str },
    #[error("{bucket} asks for fewer requests ({code}) and went on doing so; try again later")]
    Throttled { bucket: String, code: String },
    #[error("{bucket} gave no answer within {seconds} s (MUSTER_STORE_SECONDS)")]
    Hung { bucket: String, seconds: u64 },
    #[error("the object was replaced while it was being read")]
    Changed,
    #[error("its bytes {start}..{end} were written already, and are on their way")]
    Rewritten { start: u64, end: u64 },
    #[error(
        "an object of more than {most} bytes cannot be uploaded in parts of {part}; save with more \
         ranks, so that each writes less"
    )]
    TooLong { most: u64, part: u64 },
    #[error("{bucket} cannot do what a checkpoint needs: {reason}")]
    Unsupported { bucket: String, reason: String },
    #[error("{bucket} answered: {reason}")]
    Answer { bucket: String, reason: String },
}

impl ObjectError {
    /// True where the store or the way to it has failed, so that the same may succeed later.
    pub fn is_outage(&self) -> bool {
        matches!(
            self,
            ObjectError::Unreachable { .. }
                | ObjectError::Throttled { .. }
                | ObjectError::Hung { .. }
                | ObjectError::Answer { .. }
        )
    }

    /// The one inside an error of a disk, if there is one.
    pub fn of(error: &io::Error) -> Option<&ObjectError> {
        error.get_ref()?.downcast_ref()
    }

    /// True where the request may have had its effect although it failed.
    pub(super) fn is_doubtful(&self) -> bool {
        // `Exists` is in doubt, too: an answer may have been lost, and the request sent again.
        matches!(self, ObjectError::Exists | ObjectError::NotFound) || self.is_outage()
    }

    fn kind(&self) -> io::ErrorKind {
        match self {
            ObjectError::NotFound => io::ErrorKind::NotFound,
            ObjectError::Exists => io::ErrorKind::AlreadyExists,
            ObjectError::NotEmpty => io::ErrorKind::DirectoryNotEmpty,
            ObjectError::Hung { .. } => io::ErrorKind::TimedOut,
            // Not `NotFound` for a bucket, nor `PermissionDenied`, to which others give advice.
            _ => io::ErrorKind::Other,
        }
    }
}

impl From<ObjectError> for io::Error {
    fn from(error: ObjectError) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

/// Words about a bucket's service.
#[derive(Debug, Clone)]
pub(super) struct Advice {
    /// The bucket, as in its URLs.
    pub bucket: String,
    pub variables: &'static str,
    pub endpoint: &'static str,
    pub region: &'static str,
    /// After which a call is given up.
    pub seconds: u64,
}

/// An error of the library, in a kind of ours.
pub(super) fn explain(error: object_store::Error, advice: &Advice) -> ObjectError {
    use object_store::Error;
    let text = words(&error);
    let code = between(&text, "<Code>", "</Code>").map(str::to_owned);
    let by_code = code.as_deref().and_then(|code| of_code(code, &text, advice));
    if let Some(error) = by_code {
        return error;
    }
    let code = code.unwrap_or_else(|| status(&text));
    let bucket = advice.bucket.clone();
    match error {
        Error::NotFound { .. } => ObjectError::NotFound,
        Error::AlreadyExists { .. } => ObjectError::Exists,
        Error::Precondition { .. } | Error::NotModified { .. } => ObjectError::Changed,
        Error::PermissionDenied { .. } => ObjectError::Forbidden { bucket, code },
        Error::Unauthenticated { .. } => {
            ObjectError::Refused { bucket, code, variables: advice.variables }
        }
        Error::NotSupported { .. } | Error::NotImplemented { .. } => {
            ObjectError::Unsupported { bucket, reason: shortened(&text) }
        }
        error => of_transport(&error, &text, advice),
    }
}

/// The codes of S3, which others speak, and those of Azure that differ.
fn of_code(code: &str, text: &str, advice: &Advice) -> Option<ObjectError> {
    let bucket = advice.bucket.clone();
    let code_of = || code.to_owned();
    Some(match code {
        "NoSuchBucket" | "ContainerNotFound" => {
            ObjectError::NoBucket { bucket, endpoint: advice.endpoint }
        }
        "NoSuchKey" | "NoSuchUpload" | "BlobNotFound" => ObjectError::NotFound,
        "RequestTimeTooSkewed" | "RequestExpired" => ObjectError::ClockSkew { bucket },
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "AuthenticationFailed"
        | "NotSignedUp" => {
            ObjectError::Refused { bucket, code: code_of(), variables: advice.variables }
        }
        "AccessDenied" | "AllAccessDisabled" | "AuthorizationFailure" => {
            ObjectError::Forbidden { bucket, code: code_of() }
        }
        "SlowDown" | "ServerBusy" | "TooManyRequests" | "ServiceUnavailable" => {
            ObjectError::Throttled { bucket, code: code_of() }
        }
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "TemporaryRedirect" => {
            let reason = between(text, "<Message>", "</Message>").unwrap_or(code).to_owned();
            ObjectError::Region { bucket, reason, variable: advice.region }
        }
        "NotImplemented" => ObjectError::Unsupported { bucket, reason: shortened(text) },
        _ => return None,
    })
}

/// Where machines of a cloud ask for the credentials that they run under.
const METADATA_SERVICES: [&str; 2] = ["169.254.169.254", "metadata.google.internal"];

/// Of an error without a code: what became of the connection.
fn of_transport(error: &object_store::Error, text: &str, advice: &Advice) -> ObjectError {
    let bucket = advice.bucket.clone();
    // Whoever finds no credentials in the environment asks the cloud's machine for some.
    if METADATA_SERVICES.iter().any(|address| text.contains(address)) {
        let reason = "none are set, and this machine has none of a cloud's".to_owned();
        return ObjectError::NoCredentials { bucket, reason, variables: advice.variables };
    }
    let mut cause = Some(error as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            let reason = root(http);
            return match http.kind() {
                HttpErrorKind::Decode => ObjectError::Answer { bucket, reason },
                HttpErrorKind::Timeout => ObjectError::Hung { bucket, seconds: advice.seconds },
                _ => ObjectError::Unreachable { bucket, reason, endpoint: advice.endpoint },
            };
        }
        cause = error.source();
    }
    if text.contains("without LOCATION") {
        let reason = "it redirects without saying where to".to_owned();
        return ObjectError::Region { bucket, reason, variable: advice.region };
    }
    match status(text).as_str() {
        code @ ("503" | "429") => ObjectError::Throttled { bucket, code: code.to_owned() },
        _ => ObjectError::Answer { bucket, reason: shortened(text) },
    }
}

/// All that an error and its causes say, each once.
fn words(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The last cause, which says what happened rather than to whom.
fn root(error: &HttpError) -> String {
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        last = error.to_string();
        cause = error.source();
    }
    last
}

/// The number of a status in the library's words, or else "no code".
fn status(text: &str) -> String {
    let after = text.split_once("status code: ").map(|(_, rest)| rest);
    let digits: String =
        after.unwrap_or_default().chars().take_while(char::is_ascii_digit).collect();
    if digits.is_empty() { "no code".to_owned() } else { digits }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    text.split_once(from)?.1.split_once(to).map(|(inner, _)| inner)
}

/// On one line, and not for ever.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice() -> Advice {
        let bucket = "s3://b".to_owned();
        Advice { bucket, variables: "KEYS", endpoint: "ENDPOINT", region: "REGION", seconds: 9 }
    }

    fn of_body(code: &str) -> ObjectError {
        let source = format!("status code: 403: <Error><Code>{code}</Code></Error>").into();
        explain(object_store::Error::Generic { store: "S3", source }, &advice())
    }

    #[test]
    fn codes_have_kinds_and_remedies() {
        assert!(of_body("RequestTimeTooSkewed").to_string().contains("clock"));
        assert!(of_body("InvalidAccessKeyId").to_string().contains("KEYS"));
        assert!(of_body("NoSuchBucket").to_string().contains("create it"));
        assert!(of_body("PermanentRedirect").to_string().contains("REGION"));
        assert!(matches!(of_body("AccessDenied"), ObjectError::Forbidden { .. }));
        assert!(of_body("SlowDown").is_outage());
        assert!(matches!(of_body("Strange"), ObjectError::Answer { .. }));
    }

    #[test]
    fn of_no_credentials_the_variables_are_told_not_the_service_that_was_asked() {
        let source = "error sending request for http://169.254.169.254/latest/api/token".into();
        let error = explain(object_store::Error::Generic { store: "S3", source }, &advice());
        assert!(matches!(error, ObjectError::NoCredentials { .. }), "{error}");
        assert!(error.to_string().ends_with("; set KEYS"), "{error}");
        assert!(!error.to_string().contains("169"), "{error}");
    }

    #[test]
    fn a_bucket_that_is_missing_is_no_missing_file() {
        let kind = io::Error::from(of_body("NoSuchBucket")).kind();
        assert_ne!(kind, io::ErrorKind::NotFound);
        assert_eq!(io::Error::from(of_body("NoSuchKey")).kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_status_is_found_in_the_words() {
        assert_eq!(status("Server returned non-2xx status code: 503 Service: x"), "503");
        assert_eq!(status("nothing"), "no code");
        assert_eq!(shortened(&"a ".repeat(400)).chars().count(), 301);
    }
}
