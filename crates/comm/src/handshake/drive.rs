//! The handshake over a connection, inside of TLS where the job has that.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use super::states::{
    self, Accepted, CHALLENGE_BYTES, Claim, Dialler, GREETING_BYTES, Greeting, HAIL_BYTES, Keys,
    Listener, NOT_TAKEN, OVER_TLS, PROOF_BYTES, Refused,
};
use crate::CommError;
use crate::lack::Lack;
use crate::secret::{self, Secret};
use crate::tls::{self, Connection, Ended, Security, TlsFault};

/// Most bytes that a process of another version is heard out for.
const LONGEST_HELLO: u64 = 64 << 10;

/// Why a connection that was made is none of the job's.
#[derive(Debug)]
pub(crate) enum Failed {
    /// It broke, or the other end closed it.
    Io(io::Error),
    Refused(Refused),
    Tls(TlsFault),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Io(error)
    }
}

impl From<Ended> for Failed {
    fn from(ended: Ended) -> Failed {
        match ended {
            Ended::Io(error) => Failed::Io(error),
            Ended::Fault(fault) => Failed::Tls(fault),
        }
    }
}

/// Who has connected.
pub(crate) enum Heard {
    /// Someone of the job, who waits for the answer.
    Known(Connection, Accepted),
    Stranger(Stranger),
}

/// Who has connected and is none of the job's.
pub(crate) enum Stranger {
    /// Someone with another secret, who has been told, and what it claims to be.
    Secret(Claim),
    /// Someone of another version, who has been told.
    Protocol(u32),
    /// Someone with whom there is no TLS, or TLS alone, who has been told.
    Tls(TlsFault),
    /// Who says that this host will not start, and cannot prove that it is the host.
    Lacks { node: u32, lack: Lack },
}

/// Proves to whoever listens at the other end that this process is of the job, and has it prove
/// the same.
pub(crate) async fn dial(
    stream: TcpStream,
    security: &Security,
    claim: Claim,
) -> Result<(Connection, Keys), Failed> {
    let Security { secret, tls } = security;
    let mut connection = tls::connect(tls.as_ref(), stream).await?;
    match prove(&mut connection, *secret, claim).await {
        Ok(keys) => Ok((connection, keys)),
        Err(Failed::Refused(Refused::Protocol(word))) => Err(in_place_of_protocol(word)),
        // Who listens judges a certificate after this end has heard its own.
        Err(Failed::Io(error)) => Err(tls
            .as_ref()
            .and_then(|tls| tls.fault(&error))
            .map_or(Failed::Io(error), Failed::Tls)),
        Err(failed) => Err(failed),
    }
}

/// The failure that a listener tells by this word instead of a challenge.
fn in_place_of_protocol(word: u32) -> Failed {
    match u8::try_from(word).ok().and_then(Lack::of_word) {
        Some(lack) => Failed::Tls(TlsFault::Lacks(lack)),
        None if word == u32::from(OVER_TLS) => Failed::Tls(TlsFault::Needed),
        None => Failed::Refused(Refused::Protocol(word)),
    }
}

/// Says to who listens that this host will not start, and what it lacks to prove itself; returns
/// when a process of this protocol has heard it.
pub(crate) async fn give_notice(
    mut stream: TcpStream,
    node: u32,
    lack: Lack,
) -> Result<(), Failed> {
    say(&mut stream, &states::notice(node, lack)).await?;
    let mut name = [0; GREETING_BYTES];
    stream.read_exact(&mut name).await?;
    match name == states::name() {
        true => Ok(()),
        false => Err(Failed::Refused(Refused::Stranger)),
    }
}

/// Says to who has connected, with TLS or without, that this process will not let anybody in, and
/// what it lacks to prove itself.
pub(crate) async fn answer_lacking(mut stream: TcpStream, lack: Lack) -> io::Result<()> {
    let mut start = [0];
    stream.peek(&mut start).await?;
    if tls::is_record(start[0]) {
        return part(&mut stream, &states::alert(lack)).await;
    }
    let mut hail = [0; HAIL_BYTES];
    stream.read_exact(&mut hail).await?;
    match hail.first_chunk().map(states::greeting) {
        Some(Greeting::Hail) => part(&mut stream, &states::no_challenge(&hail, lack.word())).await,
        // One that does not start either has been heard.
        Some(Greeting::Lacks(_)) => part(&mut stream, &states::name()).await,
        _ => Ok(()),
    }
}

async fn prove(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    secret: Secret,
    claim: Claim,
) -> Result<Keys, Failed> {
    let dialler = Dialler::new(secret, claim, nonce()?);
    say(stream, dialler.hail()).await?;
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
    say(stream, &proof).await?;
    let mut answer = [0; states::ANSWER_BYTES];
    stream.read_exact(&mut answer).await?;
    proven.conclude(&answer).map_err(Failed::Refused)
}

/// Has whoever connected prove that it is of the job; `None` if it is another program, or leaves.
pub(crate) async fn hear(stream: TcpStream, security: &Security) -> Option<Heard> {
    hear_any(stream, security, true).await
}

/// As [`hear`], of who is of the job alone: nobody else is told why not.
pub(crate) async fn hear_known(stream: TcpStream, security: &Security) -> Option<Heard> {
    let heard = hear_any(stream, security, false).await?;
    matches!(heard, Heard::Known(..)).then_some(heard)
}

async fn hear_any(stream: TcpStream, security: &Security, tells: bool) -> Option<Heard> {
    let Security { secret, tls } = security;
    let plain = |stream, is_enough| hear_out(Either::Left(stream), *secret, is_enough, tells);
    let Some(tls) = tls else { return plain(stream, true).await };
    // One byte tells: no hail begins as a record of TLS does.
    let mut start = [0];
    stream.peek(&mut start).await.ok()?;
    if !tls::is_record(start[0]) {
        return plain(stream, false).await;
    }
    match tls::accept(tls, stream).await {
        Ok(connection) => hear_out(connection, *secret, true, tells).await,
        Err(Ended::Fault(fault)) => Some(Heard::Stranger(Stranger::Tls(fault))),
        Err(Ended::Io(_)) => None,
    }
}

/// As [`hear_any`], over a connection that has TLS or needs none, or should have it.
async fn hear_out(
    mut stream: Connection,
    secret: Secret,
    is_enough: bool,
    tells: bool,
) -> Option<Heard> {
    let stranger = |stranger| Some(Heard::Stranger(stranger));
    let mut hail = [0; HAIL_BYTES];
    let (greeting, rest) = hail.split_first_chunk_mut::<GREETING_BYTES>()?;
    stream.read_exact(greeting).await.ok()?;
    match states::greeting(greeting) {
        Greeting::Hail => {}
        Greeting::Lacks(_) if !tells => {
            // It learns no more than that somebody of this protocol is here, and goes.
            stream.read_exact(rest).await.ok()?;
            part(&mut stream, &states::name()).await.ok()?;
            return None;
        }
        _ if !tells => return None,
        Greeting::Former => {
            let mut protocol = [0; 4];
            stream.read_exact(&mut protocol).await.ok()?;
            part(&mut stream, &states::answer_to_former()).await.ok()?;
            return stranger(Stranger::Protocol(u32::from_le_bytes(protocol)));
        }
        Greeting::Other(Refused::Protocol(got)) => {
            stream.read_exact(rest).await.ok()?;
            let (_, challenge) = Listener::challenge(&hail, nonce().ok()?);
            part(&mut stream, &challenge).await.ok()?;
            return stranger(Stranger::Protocol(got));
        }
        Greeting::Lacks(lack) => {
            stream.read_exact(rest).await.ok()?;
            part(&mut stream, &states::name()).await.ok()?;
            return stranger(Stranger::Lacks { node: states::noticed(&hail), lack });
        }
        Greeting::Other(_) if tls::is_record(greeting[0]) => {
            part(&mut stream, &states::name()).await.ok()?;
            return stranger(Stranger::Tls(TlsFault::Needed));
        }
        Greeting::Other(_) => return None,
    }
    stream.read_exact(rest).await.ok()?;
    if !is_enough {
        if tells {
            part(&mut stream, &states::no_challenge(&hail, OVER_TLS)).await.ok()?;
        }
        return stranger(Stranger::Tls(TlsFault::Plain));
    }
    let (listener, challenge) = Listener::challenge(&hail, nonce().ok()?);
    say(&mut stream, &challenge).await.ok()?;
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof).await.ok()?;
    match listener.judge(secret, &proof) {
        Ok(accepted) => Some(Heard::Known(stream, accepted)),
        Err(claim) => {
            if tells {
                // It may be gone; then it knows.
                let _ = say(&mut stream, &NOT_TAKEN).await;
            }
            stranger(Stranger::Secret(claim))
        }
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), words: &[u8]) -> io::Result<()> {
    stream.write_all(words).await?;
    stream.flush().await
}

/// Says a last thing to whoever is turned away, and hears it out: to close a connection with
/// words unread would reset it, and what was said last might be lost.
async fn part(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), words: &[u8]) -> io::Result<()> {
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
