//! Data over a socket that does not block, with TLS or without.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

use rustls::Error;
use tokio_rustls::TlsStream;
use tokio_util::either::Either;

use super::Connection;

/// Bytes that one call of the system reads, of records.
const READ_BYTES: usize = 64 << 10;
/// Bytes of records that wait for the system: those of a frame.
const WRITE_BYTES: usize = 320 << 10;

/// A connection that does not block. What comes damaged is an error of the kind
/// [`ErrorKind::InvalidData`].
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<Session>),
}

/// Whatever is in one of its buffers, reading finds it before it asks the system: a socket that
/// says nothing is not asked again before one call of [`Read`] has ended with
/// [`ErrorKind::WouldBlock`].
pub(crate) struct Session {
    socket: TcpStream,
    session: rustls::Connection,
    /// Bytes that were read and are not in the session yet.
    read: Box<[u8]>,
    left: std::ops::Range<usize>,
    /// Bytes of records that the system has given and taken so far.
    passed: u64,
}

impl Stream {
    /// Takes a connection out of its runtime.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new(connection: Connection) -> io::Result<Stream> {
        let (stream, mut session) = match connection {
            Either::Left(stream) => return stream.into_std().map(Stream::Plain),
            Either::Right(stream) => match *stream {
                TlsStream::Client(stream) => {
                    let (stream, session) = stream.into_inner();
                    (stream, rustls::Connection::Client(session))
                }
                TlsStream::Server(stream) => {
                    let (stream, session) = stream.into_inner();
                    (stream, rustls::Connection::Server(session))
                }
            },
        };
        session.set_buffer_limit(Some(WRITE_BYTES));
        let (socket, read) = (stream.into_std()?, vec![0; READ_BYTES].into());
        Ok(Stream::Tls(Box::new(Session { socket, session, read, left: 0..0, passed: 0 })))
    }

    /// Whether what was written waits for the system to take it.
    pub(crate) fn is_pending(&self) -> bool {
        match self {
            Stream::Plain(_) => false,
            Stream::Tls(tls) => tls.session.wants_write(),
        }
    }

    /// Bytes of records that have come and gone so far; 0 without TLS.
    pub(crate) fn passed_bytes(&self) -> u64 {
        match self {
            Stream::Plain(_) => 0,
            Stream::Tls(tls) => tls.passed,
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::Plain(stream) => stream.as_raw_fd(),
            Stream::Tls(tls) => tls.socket.as_raw_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.read_vectored(&mut [IoSliceMut::new(bytes)])
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read_vectored(slices),
            Stream::Tls(tls) => tls.read_vectored(slices),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.write_vectored(slices),
            Stream::Tls(tls) => tls.write_vectored(slices),
        }
    }

    /// Hands the system what waits for it.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

impl Session {
    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            match self.read_plain(slices) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.read_record()?,
                read => return read,
            }
        }
    }

    /// Reads bytes that the session has deciphered.
    fn read_plain(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut total = 0;
        for slice in slices {
            let mut at = 0;
            while at < slice.len() {
                match self.session.reader().read(&mut slice[at..]) {
                    Ok(0) => return Ok(total),
                    Ok(read) => (at, total) = (at + read, total + read),
                    Err(error) if total == 0 => return Err(error),
                    Err(_) => return Ok(total),
                }
            }
        }
        Ok(total)
    }

    /// More for the session, which has nothing deciphered now.
    fn read_record(&mut self) -> io::Result<()> {
        if self.left.is_empty() {
            let read = self.socket.read(&mut self.read)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            self.passed += read as u64;
            self.left = 0..read;
        }
        let mut rest = &self.read[self.left.clone()];
        self.left.start += self.session.read_tls(&mut rest)?;
        self.session.process_new_packets().map(drop).map_err(|error| {
            // The session has put it into words for the peer.
            let _ = self.flush();
            let kind = match error {
                Error::AlertReceived(_) => ErrorKind::ConnectionAborted,
                _ => ErrorKind::InvalidData,
            };
            io::Error::new(kind, error)
        })
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush()?;
        let written = self.session.writer().write_vectored(slices)?;
        match self.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(written),
            flushed => flushed.map(|()| written),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(taken) => self.passed += taken as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
