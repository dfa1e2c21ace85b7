//! Each operation as the steps of a transport: the one place that knows all of them.

use crate::one_shot::OneShot;
use crate::primitives::{Gather, P2p, check_disjoint};
use crate::rooted;
use crate::site::Site;
use crate::step::Step;
use crate::{CommError, Op, Result};

impl Op {
    /// The steps of this operation for a member.
    pub(crate) fn steps(self, site: &Site) -> Result<Vec<Step>> {
        let (group, members) = (site.group, site.members);
        let (place, world) = (members.place, members.len());
        let gather = |op: Gather| op.step(site);
        Ok(match self {
            Op::Barrier => vec![Step::Barrier],
            Op::ReduceScatterOrdered(op) => {
                check_disjoint("reduce segments", op.segments.iter().flatten())?;
                vec![op.step(site)?]
            }
            Op::AllGatherSegments(op) => vec![gather(op)?],
            Op::AllReduce { window, plan } => rooted::all_reduce(&window, &plan, &window, site)?,
            Op::AllReduceInto { window, plan, into } => {
                rooted::all_reduce(&window, &plan, &into, site)?
            }
            Op::ReduceScatter { window, plan, out } => {
                if let Some(shot) = OneShot::reduce_scatter(&window, &plan, &out, site)? {
                    return Ok(vec![Step::OneShot(shot)]);
                }
                vec![plan.reduce(&window, out).step(site)?]
            }
            Op::Reduce { window, plan, root, out } => {
                vec![rooted::reduce(&window, &plan, root, out, site)?]
            }
            Op::AllGather { window, plan } => vec![gather(plan.gather(window))?],
            Op::AllGatherInto { window, plan, into } => {
                rooted::gather_into(plan.gather(window), &plan.range(), &into, site)?
            }
            Op::Gather { window, plan, root, into } => {
                vec![rooted::gather(window, &plan, root, into, site)?]
            }
            Op::Scatter { window, plan, root, into } => {
                vec![rooted::scatter(window, &plan, root, into, site)?]
            }
            Op::Broadcast { window, root, element_bytes, range } => {
                let segments = rooted::only(root, range, world)?;
                vec![gather(Gather { window, element_bytes, segments })?]
            }
            Op::BroadcastInto { window, root, element_bytes, range, into } => {
                let segments = rooted::only(root, range.clone(), world)?;
                let op = Gather { window, element_bytes, segments };
                rooted::gather_into(op, &range, &into, site)?
            }
            Op::AllToAll(op) => {
                op.check(group, world)?;
                vec![Step::AllToAll(op)]
            }
            Op::Exchange(messages) => {
                let stranger = |message: &&P2p| message.peer() >= world || message.peer() == place;
                if let Some(rank) = messages.iter().find(stranger).map(P2p::peer) {
                    return Err(match rank == place {
                        true => CommError::OwnMessage { rank: members.ranks[place] },
                        false => CommError::NoSuchRank { rank, world },
                    });
                }
                vec![Step::Exchange(messages)]
            }
        })
    }
}
