//! URLs of object stores, as paths.
//!
//! ```text
//! s3://bucket/prefix/step-00001000.g0003/COMMIT
//!      bucket ─ key ───────────────────────────
//! ```
//! A URL is kept in a [`Path`] as it is written, so that joining names to it, asking for its parent
//! and showing it do what they do with a directory.

use std::fmt;
use std::path::Path;

use object_store::path::Path as Key;

use super::error::ObjectError;

/// Whose protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Service {
    S3,
    Google,
    Azure,
}

/// The beginnings of URLs that are understood.
const SCHEMES: [(&str, Service); 3] =
    [("s3", Service::S3), ("gs", Service::Google), ("az", Service::Azure)];

/// A bucket, or container as Azure says.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    pub service: Service,
    pub name: String,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = SCHEMES.iter().find(|(_, service)| *service == self.service);
        write!(f, "{}://{}", of.map_or("s3", |(scheme, _)| scheme), self.name)
    }
}

/// An object or a prefix of some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub bucket: Bucket,
    /// Empty for the bucket itself.
    pub key: Key,
}

/// Whether a path is a URL, rather than a file's. One of a scheme that is not known is, too, so
/// that it is refused by name.
pub fn is_url(path: &Path) -> bool {
    scheme(path).is_some()
}

fn scheme(path: &Path) -> Option<(&str, &str)> {
    let (scheme, rest) = path.to_str()?.split_once("://")?;
    let mut letters = scheme.chars();
    let begins = letters.next().is_some_and(|first| first.is_ascii_alphabetic());
    let goes_on = |c: char| c.is_ascii_alphanumeric() || ['+', '-', '.'].contains(&c);
    (begins && letters.all(goes_on)).then_some((scheme, rest))
}

impl Place {
    /// The place of a URL.
    ///
    /// # Errors
    /// It is none of an object store.
    pub(super) fn parse(path: &Path) -> Result<Place, ObjectError> {
        let url = path.display().to_string();
        let fail = |reason: String| ObjectError::Url { url: url.clone(), reason };
        let (scheme, rest) = scheme(path).ok_or_else(|| fail("it has no scheme".to_owned()))?;
        let known = SCHEMES.iter().find(|(name, _)| *name == scheme);
        let Some(&(_, service)) = known else {
            let near = SCHEMES.iter().max_by(|(a, _), (b, _)| {
                strsim::jaro_winkler(scheme, a).total_cmp(&strsim::jaro_winkler(scheme, b))
            });
            let near = near.map_or("s3", |(name, _)| name);
            return Err(fail(format!("`{scheme}` is not known, the nearest is `{near}`")));
        };
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(fail("it names no bucket".to_owned()));
        }
        if let Some(odd) = bucket.chars().find(|c| !is_of_bucket(*c)) {
            return Err(fail(format!("a bucket's name has no `{odd}`")));
        }
        let key = Key::parse(key).map_err(|error| fail(error.to_string()))?;
        Ok(Place { bucket: Bucket { service, name: bucket.to_owned() }, key })
    }
}

fn is_of_bucket(c: char) -> bool {
    c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> String {
        match Place::parse(Path::new(url)) {
            Ok(place) => format!("{} {:?}", place.bucket, place.key.as_ref()),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_url_is_a_bucket_and_a_key() {
        assert_eq!(parsed("s3://b"), "s3://b \"\"");
        assert_eq!(parsed("s3://b/"), "s3://b \"\"");
        assert_eq!(parsed("gs://my-bucket.x/a/b c"), "gs://my-bucket.x \"a/b c\"");
        assert_eq!(parsed("az://b/a/"), "az://b \"a\"");
        let joined = Path::new("s3://b/run").join("step-00000001.g0001").join("COMMIT");
        assert_eq!(parsed(joined.to_str().unwrap()), "s3://b \"run/step-00000001.g0001/COMMIT\"");
        assert_eq!(
            joined.parent().unwrap().display().to_string(),
            "s3://b/run/step-00000001.g0001"
        );
    }

    #[test]
    fn what_is_no_url_of_a_store_is_told() {
        assert!(parsed("s4://b/x").contains("the nearest is `s3`"), "{}", parsed("s4://b/x"));
        assert!(parsed("s3:///x").contains("names no bucket"));
        assert!(parsed("s3://b?/x").contains("no `?`"));
        assert!(parsed("s3://b/x//y").contains("s3://b/x//y"), "{}", parsed("s3://b/x//y"));
        for path in ["s3:/b", "runs/a", "/s3://b", "://b", "3s://b"] {
            assert!(!is_url(Path::new(path)), "{path}");
        }
    }
}
