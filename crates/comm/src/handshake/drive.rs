//! The handshake over a connection.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::states::{
    self, Accepted, CHALLENGE_BYTES, Claim, Dialler, GREETING_BYTES, Greeting, HAIL_BYTES, Keys,
    Listener, NOT_TAKEN, PROOF_BYTES, Refused,
};
use crate::CommError;
use crate::secret::{self, Secret};

/// Most bytes that a process of another version is heard out for.
const LONGEST_HELLO: u64 = 64 << 10;

/// Why a connection that was made is none of the job's.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It broke, or the other end closed it.
    Io(io::Error),
    Refused(Refused),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Io(error)
    }
}

/// Who has connected.
pub(crate) enum Heard {
    /// Someone of the job, who waits for the answer.
    Known(Accepted),
    /// Someone with another secret, who has been told, and what it claims to be.
    Unknown(Claim),
    /// Someone of another version, who has been told.
    Protocol(u32),
}

/// Proves to whoever listens at the other end that this process is of the job, and has it prove
/// the same.
pub(crate) async fn dial(
    stream: &mut TcpStream,
    secret: Secret,
    claim: Claim,
) -> Result<Keys, Failed> {
    let dialler = Dialler::new(secret, claim, nonce()?);
    stream.write_all(dialler.hail()).await?;
    let mut challenge = [0; CHALLENGE_BYTES];
    // Another program may have said less than that before it waits or leaves.
    let mut len = 0;
    while len < challenge.len() {
        match stream.read(&mut challenge[len..]).await? {
            0 if len > 0 => return Err(Failed::Refused(Refused::Stranger)),
            0 => return Err(Failed::Io(io::ErrorKind::UnexpectedEof.into())),
            read => len += read,
        }
        if !dialler.may_be_challenge(&challenge[..len]) {
            return Err(Failed::Refused(Refused::Stranger));
        }
    }
    let (proven, proof) = dialler.prove(&challenge).map_err(Failed::Refused)?;
    stream.write_all(&proof).await?;
    let mut answer = [0; states::ANSWER_BYTES];
    stream.read_exact(&mut answer).await?;
    proven.conclude(&answer).map_err(Failed::Refused)
}

/// Has whoever connected prove that it is of the job; `None` if it is another program, or leaves.
pub(crate) async fn hear(stream: &mut TcpStream, secret: Secret) -> Option<Heard> {
    let mut hail = [0; HAIL_BYTES];
    let (greeting, rest) = hail.split_first_chunk_mut::<GREETING_BYTES>()?;
    stream.read_exact(greeting).await.ok()?;
    match states::greeting(greeting) {
        Greeting::Hail => {}
        Greeting::Former => {
            let mut protocol = [0; 4];
            stream.read_exact(&mut protocol).await.ok()?;
            part(stream, &states::answer_to_former()).await.ok()?;
            return Some(Heard::Protocol(u32::from_le_bytes(protocol)));
        }
        Greeting::Other(Refused::Protocol(got)) => {
            stream.read_exact(rest).await.ok()?;
            let (_, challenge) = Listener::challenge(&hail, nonce().ok()?);
            part(stream, &challenge).await.ok()?;
            return Some(Heard::Protocol(got));
        }
        Greeting::Other(_) => return None,
    }
    stream.read_exact(rest).await.ok()?;
    let (listener, challenge) = Listener::challenge(&hail, nonce().ok()?);
    stream.write_all(&challenge).await.ok()?;
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof).await.ok()?;
    match listener.judge(secret, &proof) {
        Ok(accepted) => Some(Heard::Known(accepted)),
        Err(claim) => {
            // It may be gone; then it knows.
            let _ = stream.write_all(&NOT_TAKEN).await;
            Some(Heard::Unknown(claim))
        }
    }
}

/// Says a last thing to a process of another version, and hears it out: to close a connection with
/// words unread would reset it, and what was said last might be lost.
async fn part(stream: &mut TcpStream, words: &[u8]) -> io::Result<()> {
    stream.write_all(words).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LONGEST_HELLO), &mut tokio::io::sink()).await.map(drop)
}

fn nonce() -> io::Result<[u8; 32]> {
    secret::random().map_err(|error| match error {
        CommError::Runtime(source) => source,
        other => io::Error::other(other),
    })
}
