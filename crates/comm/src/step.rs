//! The steps of a transport: an operation that all members have checked, with the way that it goes.

use crate::hosts::{GatherByHosts, ReduceByHosts};
use crate::one_shot::OneShot;
use crate::ordered::{Reduction, Sums};
use crate::primitives::{AllToAll, Gather, OrderedReduce, P2p};
use crate::site::Site;
use crate::{Operation, Result, Window};

/// Operations of a transport; every [`Op`](crate::Op) is one or two of these.
pub(crate) enum Step {
    Barrier,
    OneShot(OneShot),
    Reduce(Box<Reduction>),
    /// A reduction into a window that all members reach, whose owners write their results to all.
    ReduceToAll(Box<Reduction>, Window),
    Gather(Gather, u64),
    ReduceByHosts(Box<ReduceByHosts>),
    GatherByHosts(Box<GatherByHosts>),
    AllToAll(AllToAll),
    Exchange(Vec<P2p>),
}

impl Step {
    /// Whether it makes sums on another device than the group's.
    pub(crate) fn is_elsewhere(&self) -> bool {
        match self {
            Step::Reduce(reduction) | Step::ReduceToAll(reduction, _) => {
                reduction.sums.is_elsewhere()
            }
            Step::ReduceByHosts(reduction) => reduction.across.sums.is_elsewhere(),
            Step::OneShot(shot) => shot.is_elsewhere(),
            _ => false,
        }
    }

    pub(crate) fn is_by_hosts(&self) -> bool {
        matches!(self, Step::ReduceByHosts(_) | Step::GatherByHosts(_))
    }

    pub(crate) fn operation(&self) -> Operation {
        match self {
            Step::Barrier => Operation::Barrier,
            Step::OneShot(shot) => shot.operation(),
            Step::Reduce(_) | Step::ReduceToAll(..) | Step::ReduceByHosts(_) => {
                Operation::ReduceScatterOrdered
            }
            Step::Gather(..) | Step::GatherByHosts(_) => Operation::AllGatherSegments,
            Step::AllToAll(_) => Operation::AllToAll,
            Step::Exchange(_) => Operation::Exchange,
        }
    }
}

impl OrderedReduce {
    /// By hosts, where that is how the group reduces it.
    pub(crate) fn step(self, site: &Site) -> Result<Step> {
        self.check_all(site)?;
        Ok(match ReduceByHosts::of(&self, site)? {
            Some(reduction) => Step::ReduceByHosts(Box::new(reduction)),
            None => Step::Reduce(self.checked(site)?),
        })
    }

    /// Proves that everything lies where it should, on this member.
    pub(crate) fn check_all(&self, site: &Site) -> Result<()> {
        self.check(site.group, site.members.len())?;
        self.check_places(site.members.place)
    }

    pub(crate) fn checked(self, site: &Site) -> Result<Box<Reduction>> {
        let place = site.members.place;
        self.check_all(site)?;
        let sums = Sums::new(&self, self.inputs(), place, site.lanes)?;
        let digest = self.digest();
        Ok(Box::new(Reduction { op: self, sums, digest }))
    }
}

impl Gather {
    pub(crate) fn step(self, site: &Site) -> Result<Step> {
        let digest = self.check(site.group, site.members.len())?;
        if let Some(shot) = OneShot::gather(&self, digest, site, None)? {
            return Ok(Step::OneShot(shot));
        }
        Ok(match GatherByHosts::of(&self, digest, site) {
            Some(gather) => Step::GatherByHosts(Box::new(gather)),
            None => Step::Gather(self, digest),
        })
    }
}
