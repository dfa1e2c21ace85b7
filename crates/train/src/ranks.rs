//! What a rank has of the others: the control plane's channels, and the group that moves gradients
//! and weights.

use std::ops::Range;
use std::sync::Arc;

use comm::{
    Channel, Control, Gather, Group, Op, OrderedReduce, Pending, Prepared, RedOp, Window, World,
};
use device::{DType, Stream, Tensor};
use optim::Offloaded;

use crate::{RunPlan, TrainError};

pub(crate) struct Ranks {
    pub(crate) world: World,
    /// Votes and all else that the loop agrees on.
    pub(crate) training: Arc<dyn Control>,
    /// What goes with checkpoints.
    pub(crate) saving: Arc<dyn Control>,
    group: Group,
    /// Of each bucket, in the order in which backward completes them; none where a rank has the
    /// sums already.
    reductions: Vec<Prepared>,
    /// None where a rank owns all weights.
    gather: Option<Prepared>,
}

/// Reductions of a step that are on their way.
#[derive(Default)]
pub(crate) struct Submitted {
    buckets: usize,
    last: Option<Pending>,
}

impl Submitted {
    pub(crate) fn buckets(&self) -> usize {
        self.buckets
    }
}

/// The memory that moves.
pub(crate) struct Moving<'a> {
    pub(crate) weights: Window,
    /// Gradient buffers.
    pub(crate) slots: Vec<Window>,
    /// Receives this rank's reduced segments: a gradient buffer, …
    pub(crate) out: &'a Tensor,
    /// … unless its optimizer is elsewhere and has memory for them alone.
    pub(crate) elsewhere: Option<&'a Offloaded>,
}

impl Ranks {
    /// Prepares all that a step exchanges.
    ///
    /// # Errors
    /// A plan that does not fit the memory.
    pub(crate) fn new(
        world: World,
        group: Group,
        plan: &RunPlan,
        moving: Moving,
    ) -> Result<Ranks, TrainError> {
        let (partials, program): (Arc<[_]>, Arc<_>) =
            (plan.partials.as_slice().into(), plan.program.clone().into());
        let slots: Arc<[Window]> = moving.slots.into();
        let elsewhere = moving.elsewhere;
        let out = elsewhere.map_or(moving.out, Offloaded::gradients);
        let places = |segments: &[Vec<Range<usize>>]| -> Option<Arc<[usize]>> {
            let place = |start| elsewhere?.place(start);
            let place = |own: &Range<usize>| place(own.start).expect("it is this rank's own");
            elsewhere.map(|_| segments[world.rank()].iter().map(place).collect())
        };
        let is_alone = world.size() == 1 && plan.program.ops.len() == 1;
        let is_reduced = is_alone && elsewhere.is_none();
        let buckets = plan.flat.buckets.iter().zip(&plan.bucket_segments);
        let reduce = |(bucket, segments): (&layout::Bucket, &Vec<_>)| {
            group.prepare(Op::ReduceScatterOrdered(OrderedReduce {
                slots: Arc::clone(&slots),
                dtype: DType::F32,
                redop: RedOp::Sum,
                partials: Arc::clone(&partials),
                program: Arc::clone(&program),
                range: bucket.range.clone(),
                segments: segments.as_slice().into(),
                out: out.clone(),
                places: places(segments),
            }))
        };
        let reductions = match is_reduced {
            true => Vec::new(),
            false => buckets.map(reduce).collect::<Result<_, _>>()?,
        };
        let gather = Gather {
            window: moving.weights,
            element_bytes: plan.weights.bytes(),
            segments: plan.segments.as_slice().into(),
        };
        let gather = match world.size() {
            1 => None,
            _ => Some(group.prepare(Op::AllGatherSegments(gather))?),
        };
        let [training, saving] =
            [Channel::Training, Channel::Saving].map(|channel| world.control(channel));
        Ok(Ranks { world, training, saving, group, reductions, gather })
    }

    pub(crate) fn rank(&self) -> usize {
        self.world.rank()
    }

    /// Gives every owner the sums of its gradients, after everything on `after`: of the buckets
    /// that are not `submitted`; and waits for all.
    pub(crate) fn reduce(
        &self,
        after: &Stream,
        mut submitted: Submitted,
    ) -> Result<(), TrainError> {
        while submitted.buckets < self.reductions.len() {
            self.submit_next(after, &mut submitted)?;
        }
        Ok(submitted.last.map_or(Ok(()), |last| last.wait())?)
    }

    /// Submits the reduction of the next bucket.
    pub(crate) fn submit_next(
        &self,
        after: &Stream,
        submitted: &mut Submitted,
    ) -> Result<(), TrainError> {
        if let Some(next) = self.reductions.get(submitted.buckets) {
            submitted.last = Some(self.group.submit(after, next)?);
            submitted.buckets += 1;
        }
        Ok(())
    }

    /// Gives everyone the weights of all owners, after everything on `after`; waits.
    pub(crate) fn gather(&self, after: &Stream) -> Result<(), TrainError> {
        let Some(gather) = &self.gather else { return Ok(()) };
        Ok(self.group.submit(after, gather)?.wait()?)
    }
}
