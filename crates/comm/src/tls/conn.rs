//! Connections while ranks meet, and for control and signals: with TLS or without.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

use super::{NAME, Tls, TlsFault};

/// A connection, before or after TLS has begun.
pub(crate) type Connection = Either<TcpStream, Box<TlsStream<TcpStream>>>;
type Both = tokio::io::ReadHalf<Box<TlsStream<TcpStream>>>;
pub(crate) type ReadHalf = Either<OwnedReadHalf, Both>;

/// Dropping it ends what is said.
pub(crate) type WriteHalf = Either<OwnedWriteHalf, Ending>;

/// The half of a connection over TLS.
pub(crate) struct Ending(tokio::io::WriteHalf<Box<TlsStream<TcpStream>>>);

/// How long, and how much, somebody is heard out who was told why the connection ends: to close
/// with words unread would reset it, and what was said last might be lost.
const HEARD_OUT: Duration = Duration::from_secs(1);
const HEARD_OUT_BYTES: u64 = 64 << 10;

/// Whether a connection that begins with this byte is TLS: with a record of the handshake.
pub(crate) fn is_record(first: u8) -> bool {
    first == 0x16
}

/// Why there is no connection.
pub(crate) enum Ended {
    Io(io::Error),
    Fault(TlsFault),
}

/// Begins TLS with who listens.
pub(crate) async fn connect(tls: Option<&Tls>, stream: TcpStream) -> Result<Connection, Ended> {
    let Some(tls) = tls else { return Ok(Either::Left(stream)) };
    let name = ServerName::try_from(NAME).map_err(|error| Ended::Io(io::Error::other(error)))?;
    match tls.connector.connect(name, stream).into_fallible().await {
        Ok(stream) => Ok(Either::Right(Box::new(stream.into()))),
        Err((error, stream)) => Err(tls.ended(error, stream).await),
    }
}

/// Begins TLS with who has connected.
pub(crate) async fn accept(tls: &Tls, stream: TcpStream) -> Result<Connection, Ended> {
    match tls.acceptor.accept(stream).into_fallible().await {
        Ok(stream) => Ok(Either::Right(Box::new(stream.into()))),
        Err((error, stream)) => Err(match tls.ended(error, stream).await {
            // It began as TLS does.
            Ended::Fault(TlsFault::Plain) => {
                Ended::Fault(TlsFault::Broken("what it says is no record of TLS".to_owned()))
            }
            ended => ended,
        }),
    }
}

impl Tls {
    async fn ended(&self, error: io::Error, mut stream: TcpStream) -> Ended {
        let hear_out = async {
            stream.shutdown().await?;
            tokio::io::copy(&mut stream.take(HEARD_OUT_BYTES), &mut tokio::io::sink()).await
        };
        let fault = self.fault(&error);
        if fault.is_some() {
            let _ = tokio::time::timeout(HEARD_OUT, hear_out).await;
        }
        fault.map_or(Ended::Io(error), Ended::Fault)
    }

    /// The fault of TLS that has ended a connection.
    pub(crate) fn fault(&self, error: &io::Error) -> Option<TlsFault> {
        TlsFault::of(error, &self.own)
    }
}

/// Who is at the other end.
pub(crate) fn peer_addr(connection: &Connection) -> Option<SocketAddr> {
    match connection {
        Either::Left(stream) => stream.peer_addr().ok(),
        Either::Right(stream) => stream.get_ref().0.peer_addr().ok(),
    }
}

/// Both ways of a connection.
pub(crate) fn split(connection: Connection) -> (ReadHalf, WriteHalf) {
    match connection {
        Either::Left(stream) => {
            let (read, write) = stream.into_split();
            (Either::Left(read), Either::Left(write))
        }
        Either::Right(stream) => {
            let (read, write) = tokio::io::split(stream);
            (Either::Right(read), Either::Right(Ending(write)))
        }
    }
}

/// Says what can be said at once: how many bytes.
pub(crate) fn try_say(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<usize> {
    let mut to = Pin::new(to);
    let would_block = || Err(io::ErrorKind::WouldBlock.into());
    let said = at_once(|context| to.as_mut().poll_write(context, bytes));
    let Poll::Ready(said) = said else { return would_block() };
    let said = said?;
    match at_once(|context| to.as_mut().poll_flush(context)) {
        Poll::Ready(flushed) => flushed.map(|()| said),
        // The session has it, and the rest of it goes with what is said next.
        Poll::Pending => Ok(said),
    }
}

/// Polls once, whatever else this task has done.
fn at_once<T>(poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    let polled = pin!(tokio::task::unconstrained(poll_fn(poll)));
    polled.poll(&mut Context::from_waker(Waker::noop()))
}

impl AsyncWrite for Ending {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // A farewell that cannot be sent at once was not meant for a peer that reads so little.
        let _ = at_once(|context| Pin::new(&mut self.0).poll_shutdown(context));
    }
}
