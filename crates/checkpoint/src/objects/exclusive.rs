//! Creating an object that must not exist, whatever becomes of the answer.
//!
//! ```text
//! put if absent, signed with a token ─▶ created
//!                                    ─▶ exists, or no answer: whose token does it bear?
//!                                         ours ─▶ created      another's ─▶ exists
//!                                         none there ─▶ the error
//! ```
//! A store answers "exists" also to the second sending of a request whose first answer was lost.
//! The token, 128 random bits in the object's metadata, tells that from a rival who was quicker:
//! the bytes could not, where both would write the same.

use bytes::Bytes;
use object_store::path::Path as Key;
use object_store::{
    Attribute, AttributeValue, Attributes, GetOptions, ObjectStore, PutMode, PutOptions, PutPayload,
};

use super::error::ObjectError;
use super::remote::Remote;

/// The metadata that holds the token.
const WRITER: &str = "muster-writer";

/// Names one creation of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl Token {
    /// One that nobody else has.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn new(remote: &Remote) -> Result<Token, ObjectError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| {
            let (bucket, reason) = (remote.advice.bucket.clone(), error.to_string());
            ObjectError::Setup { bucket, reason }
        })?;
        Ok(Token(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The metadata of an object that bears it.
    pub(super) fn attributes(&self) -> Attributes {
        let value = AttributeValue::from(self.0.clone());
        Attributes::from_iter([(Attribute::Metadata(WRITER.into()), value)])
    }
}

/// The state of a name, as far as one writer is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Bears {
    Ours(u64),
    /// Another's token, or none.
    Anothers(u64),
    Nothing,
}

/// Whose object lies under a name, and how long it is.
///
/// # Errors
/// As the store answers.
pub(super) fn look(remote: &Remote, key: &Key, token: &Token) -> Result<Bears, ObjectError> {
    let (service, key) = (remote.service.clone(), key.clone());
    let head = GetOptions { head: true, ..GetOptions::default() };
    let found = remote.ask(async move {
        let found = service.get_opts(&key, head).await?;
        Ok((found.meta.size, found.attributes))
    });
    let (bytes, attributes) = match found {
        Err(ObjectError::NotFound) => return Ok(Bears::Nothing),
        found => found?,
    };
    let written = attributes.get(&Attribute::Metadata(WRITER.into()));
    Ok(match written.is_some_and(|value| value.as_ref() == token.0) {
        true => Bears::Ours(bytes),
        false => Bears::Anothers(bytes),
    })
}

/// Creates an object of a few bytes.
///
/// # Errors
/// [`ObjectError::Exists`] where another did; else as the store answers, and then it is not known
/// to be there, nor not to be.
pub(super) fn create(remote: &Remote, key: &Key, bytes: Bytes) -> Result<(), ObjectError> {
    let token = Token::new(remote)?;
    let (service, to) = (remote.service.clone(), key.clone());
    let options = PutOptions {
        mode: PutMode::Create,
        attributes: token.attributes(),
        ..PutOptions::default()
    };
    let put = remote.ask(async move {
        service.put_opts(&to, PutPayload::from_bytes(bytes), options).await.map(drop)
    });
    match put {
        Err(error) if error.is_doubtful() => match look(remote, key, &token)? {
            Bears::Ours(_) => Ok(()),
            Bears::Anothers(_) => Err(ObjectError::Exists),
            // Such as one that was removed again, or a conflict of two that both failed.
            Bears::Nothing => Err(error),
        },
        result => result,
    }
}
