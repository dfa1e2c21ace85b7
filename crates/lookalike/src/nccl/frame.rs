//! The messages between ranks and the hub, over a socket of the system.

use std::io::{self, Read, Write};

use super::call::{Call, Kind};
use super::number::DataType;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A rank comes.
    Hello { rank: u32, ranks: u32, version: u32 },
    /// All have come.
    Welcome,
    /// A rank's calls that begin together; numbered in the order in which it made them.
    Batch { number: u64, calls: Vec<Call> },
    /// The result of each call of a batch.
    Done { number: u64, results: Vec<Vec<u8>> },
    /// The communicator is broken.
    Failed { code: i32, text: String },
    /// A rank goes, and nobody needs it any more.
    Bye,
}

struct Bytes(Vec<u8>);

impl Bytes {
    fn number(&mut self, value: u64) -> &mut Bytes {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Bytes {
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }
}

impl Frame {
    /// # Errors
    /// The other side is gone.
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        let mut out = Bytes(Vec::new());
        match self {
            Frame::Hello { rank, ranks, version } => {
                out.number(0).number((*rank).into()).number((*ranks).into());
                out.number((*version).into());
            }
            Frame::Welcome => {
                out.number(1);
            }
            Frame::Batch { number, calls } => {
                out.number(2).number(*number).number(calls.len() as u64);
                for call in calls {
                    out.number(call.kind as u64).number(call.dtype.0.into());
                    out.number(call.op.into()).bytes(&call.factor).number(call.peer.into());
                    out.number(call.count).bytes(&call.data);
                }
            }
            Frame::Done { number, results } => {
                out.number(3).number(*number).number(results.len() as u64);
                for result in results {
                    out.bytes(result);
                }
            }
            Frame::Failed { code, text } => {
                out.number(4).number((*code).cast_unsigned().into()).bytes(text.as_bytes());
            }
            Frame::Bye => {
                out.number(5);
            }
        }
        to.write_all(&(out.0.len() as u64).to_le_bytes())?;
        to.write_all(&out.0)
    }

    /// # Errors
    /// The other side is gone, or says what this does not understand.
    pub(crate) fn read(mut from: impl Read) -> io::Result<Frame> {
        let mut len = [0; 8];
        from.read_exact(&mut len)?;
        let mut bytes = vec![0; u64::from_le_bytes(len) as usize];
        from.read_exact(&mut bytes)?;
        let mut rest = Rest(&bytes);
        rest.frame().ok_or_else(|| io::Error::other("a frame that is none"))
    }
}

struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn number(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.number()?).ok()
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let len = self.small()?;
        let (first, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(first.to_vec())
    }

    fn call(&mut self) -> Option<Call> {
        Some(Call {
            kind: Kind::of(self.small()?)?,
            dtype: DataType::of(self.small()?)?,
            op: self.small()?,
            factor: self.bytes()?.try_into().ok()?,
            peer: self.small()?,
            count: self.number()?,
            data: self.bytes()?,
        })
    }

    fn frame(&mut self) -> Option<Frame> {
        Some(match self.number()? {
            0 => Frame::Hello { rank: self.small()?, ranks: self.small()?, version: self.small()? },
            1 => Frame::Welcome,
            2 => {
                let (number, len) = (self.number()?, self.number()?);
                let calls = (0..len).map(|_| self.call()).collect::<Option<_>>()?;
                Frame::Batch { number, calls }
            }
            3 => {
                let (number, len) = (self.number()?, self.number()?);
                let results = (0..len).map(|_| self.bytes()).collect::<Option<_>>()?;
                Frame::Done { number, results }
            }
            4 => {
                let code = self.small::<u32>()?.cast_signed();
                Frame::Failed { code, text: String::from_utf8(self.bytes()?).ok()? }
            }
            5 => Frame::Bye,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let call = Call { count: 3, ..Call::exchange(Kind::Window, vec![1, 2, 3]) };
        let frames = [
            Frame::Hello { rank: 1, ranks: 4, version: 23_007 },
            Frame::Welcome,
            Frame::Batch { number: 7, calls: vec![call.clone(), call] },
            Frame::Done { number: 7, results: vec![vec![], vec![9]] },
            Frame::Failed { code: 6, text: "gone".to_owned() },
            Frame::Bye,
        ];
        for frame in frames {
            let mut bytes = Vec::new();
            frame.write(&mut bytes).unwrap();
            assert_eq!(Frame::read(&bytes[..]).unwrap(), frame);
            assert!(Frame::read(&bytes[..bytes.len() - 1]).is_err());
        }
    }
}
