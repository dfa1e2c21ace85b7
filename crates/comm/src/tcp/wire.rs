//! The two halves of a connection, which count what goes through them.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::exchange::{Call, Progress, Stage};
use super::frame::{HEADER_BYTES, Header};
use crate::Result;

/// What one rank says to `peer`.
pub(super) struct Writer {
    peer: usize,
    half: OwnedWriteHalf,
    pub header_bytes: u64,
    pub payload_bytes: u64,
}

impl Writer {
    pub(super) fn new(peer: usize, half: OwnedWriteHalf) -> Writer {
        Writer { peer, half, header_bytes: 0, payload_bytes: 0 }
    }

    /// Begins a frame of `length` bytes.
    pub(super) async fn header(
        &mut self,
        call: &Call,
        progress: &Progress<'_>,
        length: u64,
    ) -> Result<()> {
        let bytes = call.header(length).encode();
        self.write(&bytes, call, |moved| progress.advance(moved, false)).await?;
        self.header_bytes += bytes.len() as u64;
        Ok(())
    }

    /// A part of the frame.
    pub(super) async fn payload(
        &mut self,
        call: &Call,
        progress: &Progress<'_>,
        bytes: &[u8],
    ) -> Result<()> {
        self.write(bytes, call, |moved| progress.advance(moved, true)).await?;
        self.payload_bytes += bytes.len() as u64;
        Ok(())
    }

    async fn write(&mut self, mut bytes: &[u8], call: &Call, moved: impl Fn(usize)) -> Result<()> {
        while !bytes.is_empty() {
            match self.half.write(bytes).await {
                Ok(0) => {
                    let error = std::io::ErrorKind::WriteZero.into();
                    return Err(call.lost_by(self.peer, &error).await);
                }
                Ok(count) => {
                    bytes = &bytes[count..];
                    moved(count);
                }
                Err(error) => return Err(call.lost_by(self.peer, &error).await),
            }
        }
        Ok(())
    }
}

/// What `peer` says to this rank.
pub(super) struct Reader {
    peer: usize,
    half: OwnedReadHalf,
    pub payload_bytes: u64,
}

impl Reader {
    pub(super) fn new(peer: usize, half: OwnedReadHalf) -> Reader {
        Reader { peer, half, payload_bytes: 0 }
    }

    /// The payload length of the frame that must come next.
    pub(super) async fn header(&mut self, call: &Call, progress: &Progress<'_>) -> Result<u64> {
        let (peer, mut bytes) = (self.peer, [0; HEADER_BYTES]);
        self.read(&mut bytes, call, |moved| progress.advance(moved, false)).await?;
        let header = Header::decode(&bytes).ok_or_else(|| call.lost(peer, "it sent no frame"))?;
        if header.token != call.token {
            return Err(call.lost(peer, "it sent a frame of another job"));
        }
        if header != call.header(header.length) {
            return Err(call.mismatch(peer, &header));
        }
        progress.reach(peer, Stage::Arrived);
        Ok(header.length)
    }

    /// A part of the frame.
    pub(super) async fn payload(
        &mut self,
        call: &Call,
        progress: &Progress<'_>,
        bytes: &mut [u8],
    ) -> Result<()> {
        self.read(bytes, call, |moved| progress.advance(moved, true)).await?;
        self.payload_bytes += bytes.len() as u64;
        Ok(())
    }

    /// A frame of `length` bytes; `message` grows with what really comes, not with what a header
    /// promises.
    pub(super) async fn message(
        &mut self,
        call: &Call,
        progress: &Progress<'_>,
        length: u64,
        message: &mut Vec<u8>,
    ) -> Result<()> {
        let mut rest = (&mut self.half).take(length);
        while rest.limit() > 0 {
            match rest.read_buf(message).await {
                Ok(0) => {
                    let error = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(call.lost_by(self.peer, &error).await);
                }
                Ok(count) => progress.advance(count, true),
                Err(error) => return Err(call.lost_by(self.peer, &error).await),
            }
        }
        self.payload_bytes += length;
        Ok(())
    }

    async fn read(
        &mut self,
        mut bytes: &mut [u8],
        call: &Call,
        moved: impl Fn(usize),
    ) -> Result<()> {
        while !bytes.is_empty() {
            match self.half.read(bytes).await {
                Ok(0) => {
                    let error = std::io::ErrorKind::UnexpectedEof.into();
                    return Err(call.lost_by(self.peer, &error).await);
                }
                Ok(count) => {
                    bytes = &mut bytes[count..];
                    moved(count);
                }
                Err(error) => return Err(call.lost_by(self.peer, &error).await),
            }
        }
        Ok(())
    }
}
