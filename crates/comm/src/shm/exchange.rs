//! Exchanges: all messages of a call move together, box by box, so none waits for another unless
//! they go the same way.

use device::Device;
use device::trace::now_ns;

use super::channel::BOX_BYTES;
use super::endpoint::{Endpoint, Part, ShmCall, State};
use crate::error::Moved;
use crate::primitives::P2p;
use crate::{CommError, Operation, Result, meter};

impl Endpoint {
    pub(super) fn exchange(&self, device: &Device, messages: &[P2p]) -> Result<()> {
        self.run(|state| {
            state.exchanges += 1;
            let call = self.call(Operation::Exchange, state.exchanges);
            let moved = self.check_revoked();
            let result = moved.and_then(|()| self.move_all(device, messages, state, &call));
            ((call.operation, call.sequence), result)
        })
    }

    fn move_all(
        &self,
        device: &Device,
        messages: &[P2p],
        state: &mut State,
        call: &ShmCall,
    ) -> Result<()> {
        let State { sequence, parts, .. } = state;
        parts.clear();
        parts.resize(messages.len(), Part::default());
        let mut call = call.clone();
        let (mut pause, begin_ns, mut has_moved) = (self.pause(), now_ns(), false);
        loop {
            let heard = self.board.bell(self.place());
            if self.move_some(device, messages, *sequence, parts)? {
                call = self.call(call.operation, call.sequence);
                std::mem::replace(&mut pause, self.pause()).end();
                if !std::mem::replace(&mut has_moved, true) {
                    meter::waited_since(begin_ns);
                }
                self.part_done()?;
            }
            if parts.iter().all(|part| part.is_done) {
                break;
            }
            if pause.again() {
                continue;
            }
            let open = || messages.iter().zip(&*parts).filter(|(_, part)| !part.is_done);
            let of = messages.iter().map(|message| message.tensor().bytes() as u64).sum();
            let moved = Moved { bytes: parts.iter().map(|part| part.bytes as u64).sum(), of };
            self.watch(&call, moved, open().map(|(message, _)| message.peer()))?;
            for (message, _) in open().filter(|(message, _)| !message.is_send()) {
                self.check_order(&call, *sequence, message.peer())?;
            }
            self.board.sleep_for_bell(self.place(), heard, Endpoint::tick());
        }
        let bytes = |sent: bool| -> u64 {
            let there = messages.iter().filter(|message| message.is_send() == sent);
            there.map(|message| message.tensor().bytes() as u64).sum()
        };
        self.job().counters.add(Operation::Exchange, bytes(true), 0, bytes(false));
        Ok(())
    }

    /// Fills and empties boxes as far as that goes now; whether anything moved.
    fn move_some(
        &self,
        device: &Device,
        messages: &[P2p],
        after: u64,
        parts: &mut [Part],
    ) -> Result<bool> {
        let mut moved = false;
        for index in 0..messages.len() {
            let same_way = |other: &P2p| {
                (other.peer(), other.is_send())
                    == (messages[index].peer(), messages[index].is_send())
            };
            let before = messages[..index].iter().zip(&*parts);
            let is_next = before.clone().all(|(other, part)| part.is_done || !same_way(other));
            if is_next && !parts[index].is_done {
                moved |= self.move_one(device, &messages[index], after, &mut parts[index])?;
            }
        }
        Ok(moved)
    }

    fn move_one(
        &self,
        device: &Device,
        message: &P2p,
        after: u64,
        part: &mut Part,
    ) -> Result<bool> {
        let (peer, bytes) = (message.peer(), message.tensor().as_bytes());
        let channel = match message.is_send() {
            true => self.board.channel(self.place(), peer),
            false => self.board.channel(peer, self.place()),
        };
        let mut moved = false;
        while !part.is_done {
            let ready = if message.is_send() { channel.has_room() } else { channel.has_mail() };
            if !ready {
                break;
            }
            let total = bytes.len() as u64;
            let piece = bytes.flat(part.bytes..(part.bytes + BOX_BYTES).min(bytes.len()))?;
            if message.is_send() {
                device.with_memory("send", |k| {
                    channel.put(after, total, k.read::<u8>(&piece)?);
                    Ok(())
                })?;
            } else {
                let (got, expected) = (channel.total(), total);
                if got != expected {
                    return Err(CommError::Length { rank: peer, got, expected });
                }
                device.with_memory("receive", |k| {
                    channel.take(k.write::<u8>(&piece)?);
                    Ok(())
                })?;
            }
            self.board.ring(peer);
            part.bytes += piece.len();
            (part.is_done, moved) = (part.bytes == bytes.len(), true);
        }
        Ok(moved)
    }

    /// Fails if `peer`, from which something should come, is at a later collective instead.
    fn check_order(&self, call: &ShmCall, sequence: u64, peer: usize) -> Result<()> {
        let next = sequence + 1;
        let is_ahead = self.board.has_reached(peer, (next as u32).wrapping_mul(2));
        if !is_ahead || self.board.has_mail(peer, self.place()) {
            return Ok(());
        }
        let theirs = self.board.announcement(peer, next);
        let theirs = match Operation::from_code(theirs.operation) {
            Some(operation) => format!("{operation} #{}", theirs.sequence),
            None => format!("operation {}", theirs.operation),
        };
        let ShmCall { operation, sequence, .. } = *call;
        Err(CommError::Mismatch { operation, sequence, rank: peer, theirs })
    }
}
