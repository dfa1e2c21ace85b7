//! A rank's connections to the others: the control plane's channels, and the group that moves
//! gradients and weights.

use std::collections::VecDeque;
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
    /// Messages about saving and loading checkpoints.
    pub(crate) saving: Arc<dyn Control>,
    group: Group,
    /// Of each bucket, in the order in which backward completes them; none where a rank has the
    /// sums already.
    reductions: Vec<Prepared>,
    /// The last reduction that was submitted.
    reducing: Option<Pending>,
    /// Of each bucket, in the order in which forward reads them: its first element, and the
    /// exchange of its weights. None where a rank owns all weights.
    gathers: Vec<(usize, Prepared)>,
    /// Weights on their way, of which nobody may read what begins there.
    coming: VecDeque<(usize, Pending)>,
}

/// The memory that moves.
pub(crate) struct Moving<'a> {
    pub(crate) weights: Window,
    /// Gradient buffers.
    pub(crate) buffers: Vec<Window>,
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
        let buffers: Arc<[Window]> = moving.buffers.into();
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
                buffers: Arc::clone(&buffers),
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
            false => buckets.clone().map(reduce).collect::<Result<_, _>>()?,
        };
        let gather = |(bucket, segments): (&layout::Bucket, &Vec<_>)| {
            let gather = Gather {
                window: moving.weights.clone(),
                element_bytes: plan.weights.bytes(),
                segments: segments.as_slice().into(),
            };
            Ok((bucket.range.start, group.prepare(Op::AllGatherSegments(gather))?))
        };
        let gathers: Vec<_> = match world.size() {
            1 => Vec::new(),
            _ => buckets.rev().map(gather).collect::<Result<_, TrainError>>()?,
        };
        let [training, saving] =
            [Channel::Training, Channel::Saving].map(|channel| world.control(channel));
        let coming = VecDeque::with_capacity(gathers.len());
        let reducing = None;
        Ok(Ranks { world, training, saving, group, reductions, reducing, gathers, coming })
    }

    pub(crate) fn rank(&self) -> usize {
        self.world.rank()
    }

    /// Submits the reduction of a bucket, after everything on `after`: its owners get the sums.
    /// All ranks submit buckets in their order.
    pub(crate) fn reduce(&mut self, after: &Stream, bucket: usize) -> Result<(), TrainError> {
        if let Some(reduction) = self.reductions.get(bucket) {
            self.reducing = Some(self.group.submit(after, reduction)?);
        }
        Ok(())
    }

    /// Waits until all that was submitted is reduced.
    pub(crate) fn reduced(&mut self) -> Result<(), TrainError> {
        Ok(self.reducing.take().map_or(Ok(()), |last| last.wait())?)
    }

    /// Submits the exchange of all weights, after everything on `after`, bucket by bucket in the
    /// order in which the next step reads them: everyone gets those of all owners.
    pub(crate) fn gather(&mut self, after: &Stream) -> Result<(), TrainError> {
        for (start, gather) in &self.gathers {
            self.coming.push_back((*start, self.group.submit(after, gather)?));
        }
        Ok(())
    }

    /// Whether weights before element `until` are still on their way.
    pub(crate) fn are_coming(&self, until: usize) -> bool {
        self.coming.front().is_some_and(|(start, _)| *start < until)
    }

    /// Waits for all weights before element `until`.
    ///
    /// # Errors
    /// A lost peer: the weights are then neither those before the step nor those after it.
    pub(crate) fn await_weights(&mut self, until: usize) -> Result<(), TrainError> {
        while self.are_coming(until) {
            self.coming.pop_front().map_or(Ok(()), |(_, gather)| gather.wait())?;
        }
        Ok(())
    }

    /// Waits for all weights.
    ///
    /// # Errors
    /// As [`Ranks::await_weights`].
    pub(crate) fn settle(&mut self) -> Result<(), TrainError> {
        self.await_weights(usize::MAX)
    }
}
