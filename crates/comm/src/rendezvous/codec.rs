//! Frames of the control connection: a length, little-endian, and so many bytes.
//!
//! Memory grows with what has come and not with what a length promises: many who have not said who
//! they are may be connected at a time.

use std::io::{Error, ErrorKind};

use bytes::{Buf, BytesMut};
use tokio_util::codec::Decoder;

/// Longest frame; a hello of a few dozen digests takes kilobytes.
pub(super) const FRAME_BYTES: usize = 1 << 20;
const LENGTH_BYTES: usize = 4;

/// An error of the kind [`ErrorKind::InvalidData`] is a length that no frame has.
#[derive(Debug, Default)]
pub(super) struct Codec;

impl Decoder for Codec {
    type Item = BytesMut;
    type Error = Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<BytesMut>, Error> {
        let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_BYTES {
            return Err(ErrorKind::InvalidData.into());
        }
        if bytes.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        bytes.advance(LENGTH_BYTES);
        Ok(Some(bytes.split_to(length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
    }

    #[test]
    fn frames_survive_any_cut_and_a_promise_takes_no_memory() {
        let frames = [&b""[..], b"x", &[7; 3000]];
        let whole: Vec<u8> = frames.into_iter().flat_map(frame).collect();
        for cut in 0..whole.len() {
            let (mut bytes, mut got) = (BytesMut::new(), Vec::new());
            for part in [&whole[..cut], &whole[cut..]] {
                bytes.extend_from_slice(part);
                while let Some(frame) = Codec.decode(&mut bytes).unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, frames, "{cut}");
        }
        let mut promise = BytesMut::from(&u32::try_from(FRAME_BYTES).unwrap().to_le_bytes()[..]);
        let room = promise.capacity();
        assert!(Codec.decode(&mut promise).unwrap().is_none());
        assert_eq!(promise.capacity(), room);
        let mut long = BytesMut::from(&(FRAME_BYTES as u32 + 1).to_le_bytes()[..]);
        assert_eq!(Codec.decode(&mut long).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
