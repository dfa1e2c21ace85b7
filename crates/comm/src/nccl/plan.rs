//! An operation as what is enqueued for it, made once and used for many calls.

use std::ops::Range;
use std::sync::Arc;

use device::{DType, Device, DeviceError, Placement, Stream, Tensor};

use super::SumOrder;
use super::action::Action;
use super::calls::{Move, summed};
use super::gather;
use super::reduce::{Part, Room};
use crate::copies::store;
use crate::digest::Digest;
use crate::op::Op;
use crate::ordered::Reduction;
use crate::primitives::P2p;
use crate::site::Site;
use crate::step::Step;
use crate::{AllToAll, CommError, EvenPlan, Operation, Result, Window};

/// The actions that one member enqueues, in this order.
pub(crate) struct Plan {
    pub(crate) operation: Operation,
    pub(super) check: Arc<Check>,
    pub(super) actions: Vec<Action>,
    pub(super) reductions: Vec<Reduction>,
    /// Bytes that leave this member, and that come to it.
    pub(super) bytes: (u64, u64),
}

/// How the members find out that they do the same.
pub(super) enum Check {
    /// By a digest that is the same on all of them.
    All { operation: Operation, digest: u64 },
    /// Also by the bytes that each sends to, and expects from, each.
    Lengths { digest: u64, send: Vec<u64>, receive: Vec<u64> },
    /// Those that send to or receive from each other tell each other so: the companion's exchange
    /// of the lengths, on memory of the host, and what is expected of each message received.
    Pairs { step: Box<Step>, expected: Vec<(usize, Tensor, u64)> },
}

/// The parts that plans are made from.
pub(super) struct Maker<'a> {
    pub(super) site: Site<'a>,
    pub(super) device: &'a Device,
    pub(super) host: &'a Device,
    pub(super) stream: &'a Stream,
    pub(super) sum: SumOrder,
    /// A byte of each member, for barriers.
    pub(super) ticks: &'a Tensor,
    pub(super) room: &'a dyn Fn(Room, usize) -> Result<Tensor>,
}

impl Maker<'_> {
    /// # Errors
    /// As [`Op::steps`]; memory of another device than the group's; no memory.
    pub(super) fn plan(&self, op: Op) -> Result<Plan> {
        let mut plan = match self.by_the_library(&op)? {
            Some(plan) => plan,
            None => self.in_steps(op)?,
        };
        plan.bytes = (0, 0);
        for action in &plan.actions {
            let Action::Moves(moves) = action else { continue };
            for step in moves {
                step.check(self.stream)?;
                let (sent, received) = traffic(step, self.site.members.place, self.members());
                plan.bytes = (plan.bytes.0 + sent, plan.bytes.1 + received);
            }
        }
        Ok(plan)
    }

    fn members(&self) -> usize {
        self.site.members.len()
    }

    fn in_steps(&self, op: Op) -> Result<Plan> {
        let steps = op.steps(&self.site)?;
        let operation = steps.first().map_or(Operation::Exchange, Step::operation);
        let (mut actions, mut reductions) = (Vec::new(), Vec::new());
        let mut digest = Digest::default();
        let mut check = None;
        for step in steps {
            match step {
                Step::Barrier => actions.push(self.barrier()?),
                // Groups of a library have no boxes, and peers do not reach their windows.
                Step::OneShot(_)
                | Step::ReduceToAll(..)
                | Step::ReduceByHosts(_)
                | Step::GatherByHosts(_) => return Err(CommError::ForeignWindow),
                Step::Reduce(reduction) => {
                    digest.add(reduction.digest as usize);
                    actions.extend(self.reduce(&reduction, reductions.len())?);
                    reductions.push(*reduction);
                }
                Step::Gather(op, of) => {
                    digest.add(of as usize);
                    let moves = gather::moves(&op, self.site.members.place)?;
                    actions.extend((!moves.is_empty()).then_some(Action::Moves(moves)));
                }
                Step::AllToAll(op) => {
                    check = Some(lengths(&op));
                    actions.extend(self.all_to_all(&op)?);
                }
                Step::Exchange(messages) => {
                    check = Some(self.pairs(&messages)?);
                    actions.extend(exchange(messages));
                }
            }
        }
        let check = check.unwrap_or(Check::All { operation, digest: digest.value() });
        let check = Arc::new(check);
        Ok(Plan { operation, check, actions, reductions, bytes: (0, 0) })
    }

    fn barrier(&self) -> Result<Action> {
        let place = self.site.members.place;
        let all = self.ticks.flat(0..self.members())?;
        Ok(Action::Moves(vec![Move::AllGather { own: all.flat(place..place + 1)?, all }]))
    }

    fn reduce(&self, reduction: &Reduction, index: usize) -> Result<Vec<Action>> {
        if reduction.sums.is_elsewhere() {
            return Err(DeviceError::Foreign { kernel: "reduce_scatter_ordered" }.into());
        }
        let (place, device, room) = (self.site.members.place, self.device, self.room);
        Part { reduction, index, place, device, room }.actions()
    }

    /// By messages: how a member's parts lie is its own affair, so a call of the library that wants
    /// them in one way might not be everyone's.
    fn all_to_all(&self, op: &AllToAll) -> Result<Vec<Action>> {
        let size = op.into.dtype().bytes();
        let place = self.site.members.place;
        let scaled = |range: &Range<usize>| range.start * size..range.end * size;
        let from = |peer: usize| gather::bytes(&op.from, &scaled(&op.send[peer]));
        let into = |peer: usize| -> Result<Tensor> {
            Ok(op.into.as_bytes().flat(scaled(&op.receive[peer]))?)
        };
        let mut actions = vec![Action::Copy(from(place)?, into(place)?)];
        let mut moves = Vec::new();
        for peer in self.site.members.peers() {
            let (from, to) = (from(peer)?, into(peer)?);
            if !from.is_empty() {
                moves.push(Move::Send { from, peer });
            }
            if !to.is_empty() {
                moves.push(Move::Receive { to, peer });
            }
        }
        actions.extend((!moves.is_empty()).then_some(Action::Moves(moves)));
        Ok(actions)
    }

    /// The companion's exchange of the lengths of messages.
    fn pairs(&self, messages: &[P2p]) -> Result<Check> {
        let mut expected = Vec::new();
        let mut step = Vec::new();
        for message in messages {
            let tensor = Tensor::new(self.host.alloc(8, &Placement::Private)?, 0, &[8], DType::U8)?;
            let bytes = message.tensor().bytes() as u64;
            step.push(match message {
                P2p::Send { to, .. } => {
                    store(self.host, &bytes.to_le_bytes(), &tensor)?;
                    P2p::Send { to: *to, tensor }
                }
                P2p::Receive { from, .. } => {
                    expected.push((*from, tensor.clone(), bytes));
                    P2p::Receive { from: *from, tensor }
                }
            });
        }
        Ok(Check::Pairs { step: Box::new(Step::Exchange(step)), expected })
    }

    /// Sums that the library makes itself, where the options leave them to it and it can.
    fn by_the_library(&self, op: &Op) -> Result<Option<Plan>> {
        if self.sum == SumOrder::Ordered {
            return Ok(None);
        }
        let (window, plan) = match op {
            Op::AllReduce { window, plan }
            | Op::AllReduceInto { window, plan, .. }
            | Op::ReduceScatter { window, plan, .. }
            | Op::Reduce { window, plan, .. } => (window, plan),
            _ => return Ok(None),
        };
        let (dtype, redop, range) = (plan.dtype(), plan.redop(), plan.range());
        let gives = match op {
            Op::ReduceScatter { out, .. } => out.dtype() == dtype,
            // Memory that only the root has does not decide, since the others do not know it.
            _ => true,
        };
        if !gives || summed(dtype).is_none() || plan.segments().len() != self.members() {
            return Ok(None);
        }
        window.check(self.site.group)?;
        let (place, world) = (self.site.members.place, self.members());
        let from = values(window, plan, &range)?;
        let (form, moves) = match op {
            Op::ReduceScatter { out, .. } => (1, shares(window, plan, out, place)?),
            Op::Reduce { root, out, .. } => {
                let root = *root;
                if root >= world {
                    return Err(CommError::NoSuchRank { rank: root, world });
                }
                let to = match out {
                    _ if root != place => None,
                    Some(out) if out.dtype() != dtype => {
                        return Err(CommError::SumType { dtype, sum: out.dtype() });
                    }
                    // In memory of its own from the first element on.
                    Some(out) => Some(out.flat(0..range.len())?),
                    None => Some(from.clone()),
                };
                (2 + root, vec![Move::Reduce { from, to, root, redop }])
            }
            Op::AllReduceInto { into, .. } => {
                into.check(self.site.group)?;
                (0, vec![Move::AllReduce { from, to: values(into, plan, &range)?, redop }])
            }
            _ => (0, vec![Move::AllReduce { to: from.clone(), from, redop }]),
        };
        let mut digest = Digest::default();
        digest.add(dtype as usize);
        digest.add(redop as usize);
        digest.add(form);
        digest.add_range(&range);
        let operation = Operation::ReduceScatterOrdered;
        let check = Arc::new(Check::All { operation, digest: digest.value() });
        let actions = match range.is_empty() {
            true => Vec::new(),
            false => vec![Action::Moves(moves)],
        };
        Ok(Some(Plan { operation, check, actions, reductions: Vec::new(), bytes: (0, 0) }))
    }
}

fn values(window: &Window, plan: &EvenPlan, range: &Range<usize>) -> Result<Tensor> {
    Ok(window.tensor(range.start, &[range.len()], plan.dtype())?)
}

/// Each member's share of the sum.
fn shares(window: &Window, plan: &EvenPlan, out: &Tensor, place: usize) -> Result<Vec<Move>> {
    let shares: Vec<&Range<usize>> = plan.segments().iter().flatten().collect();
    let (own, redop) = (out.flat(shares[place].clone())?, plan.redop());
    if shares.iter().all(|share| share.len() == shares[0].len()) {
        let from = values(window, plan, &plan.range())?;
        return Ok(vec![Move::ReduceScatter { from, to: own, redop }]);
    }
    let filled = shares.iter().enumerate().filter(|(_, share)| !share.is_empty());
    let moves = filled.map(|(root, share)| {
        let to = (root == place).then(|| own.clone());
        Ok(Move::Reduce { from: values(window, plan, share)?, to, root, redop })
    });
    moves.collect()
}

fn exchange(messages: Vec<P2p>) -> Option<Action> {
    let filled = messages.into_iter().filter(|message| !message.tensor().is_empty());
    let moves: Vec<Move> = filled
        .map(|message| match message {
            P2p::Send { to, tensor } => Move::Send { from: tensor, peer: to },
            P2p::Receive { from, tensor } => Move::Receive { to: tensor, peer: from },
        })
        .collect();
    (!moves.is_empty()).then_some(Action::Moves(moves))
}

fn lengths(op: &AllToAll) -> Check {
    let size = op.into.dtype().bytes();
    let bytes = |ranges: &[Range<usize>]| -> Vec<u64> {
        ranges.iter().map(|range| (range.len() * size) as u64).collect()
    };
    Check::Lengths { digest: size as u64, send: bytes(&op.send), receive: bytes(&op.receive) }
}

/// Bytes that a call takes from this member to others, and brings to it.
fn traffic(step: &Move, place: usize, members: usize) -> (u64, u64) {
    let others = members as u64 - 1;
    match step {
        Move::Send { from, .. } => (from.bytes() as u64, 0),
        Move::Receive { to, .. } => (0, to.bytes() as u64),
        Move::Broadcast { bytes, root } if *root == place => (bytes.bytes() as u64 * others, 0),
        Move::Broadcast { bytes, .. } => (0, bytes.bytes() as u64),
        Move::AllGather { own, .. } => (own.bytes() as u64 * others, own.bytes() as u64 * others),
        // As the least that a reduction in two rounds moves.
        Move::AllReduce { from, .. } => {
            let bytes = 2 * from.bytes() as u64 * others / members as u64;
            (bytes, bytes)
        }
        Move::ReduceScatter { to, .. } => (to.bytes() as u64 * others, to.bytes() as u64 * others),
        Move::Reduce { from, root, .. } if *root == place => (0, from.bytes() as u64 * others),
        Move::Reduce { from, .. } => (from.bytes() as u64, 0),
    }
}
