//! Each operation's operands, what is refused of them, and which code runs where.

use device::{DType, Tensor};

use super::{AdamWStep, Cast, CopyToMasters, MuonApply, MuonMomentum, RoundFromMasters};
use super::{SumOfSquares, at_least, check_dtype, check_f32, check_factors};
use crate::KernelError;
use crate::error::expect;
use crate::op::{Inside, Op, on_both};

impl Op for SumOfSquares {
    const NAME: &'static str = "sum_of_squares";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let tables = self.ranges.tables.iter();
        let tables =
            tables.flat_map(|tables| [&tables.strips, &tables.long_ranges, &tables.partials]);
        [&self.grads, &self.sums].into_iter().chain(tables)
    }

    fn check(&self) -> Result<(), KernelError> {
        check_dtype("grads", &self.grads, DType::F32)?;
        check_dtype("sums", &self.sums, DType::F64)?;
        at_least("grads", &self.grads, self.ranges.flat_end)?;
        at_least("sums", &self.sums, self.ranges.statistic_end)
    }

    on_both!();
}

impl Op for AdamWStep {
    const NAME: &'static str = "adamw";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let own = [&self.grads, &self.first, &self.second, &self.factors];
        own.into_iter().chain(self.weights.tensors()).chain(&self.spans.table)
    }

    fn check(&self) -> Result<(), KernelError> {
        let AdamWStep { spans, grads, first, second, .. } = self;
        self.weights.check(spans)?;
        let moments = [("first moments", first), ("second moments", second)];
        check_f32(spans, [("grads", grads)], moments)?;
        check_factors(spans, &self.factors)
    }

    on_both!();
}

impl Op for MuonMomentum {
    const NAME: &'static str = "muon_momentum";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        let own = [&self.grads, &self.momentum, &self.update, &self.factors];
        own.into_iter().chain(&self.spans.table)
    }

    fn check(&self) -> Result<(), KernelError> {
        let MuonMomentum { spans, grads, momentum, update, .. } = self;
        let local = [("momentum", momentum), ("update", update)];
        check_f32(spans, [("grads", grads)], local)?;
        check_factors(spans, &self.factors)
    }

    on_both!();
}

impl Op for MuonApply {
    const NAME: &'static str = "muon_apply";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.direction].into_iter().chain(self.weights.tensors()).chain(&self.spans.table)
    }

    fn check(&self) -> Result<(), KernelError> {
        self.weights.check(&self.spans)?;
        check_f32(&self.spans, [], [("direction", &self.direction)])
    }

    on_both!();
}

impl Op for CopyToMasters {
    const NAME: &'static str = "copy_to_masters";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.flat, &self.masters].into_iter().chain(&self.spans.table)
    }

    fn check(&self) -> Result<(), KernelError> {
        let dtype = self.flat.dtype();
        if !matches!(dtype, DType::F32 | DType::Bf16) {
            return Err(KernelError::Dtype { kernel: Self::NAME, dtype });
        }
        self.spans.check_flat("weights", &self.flat)?;
        check_f32(&self.spans, [], [("masters", &self.masters)])
    }

    on_both!();
}

impl Op for RoundFromMasters {
    const NAME: &'static str = "round_from_masters";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.masters, &self.flat].into_iter().chain(&self.spans.table)
    }

    fn check(&self) -> Result<(), KernelError> {
        check_dtype("weights", &self.flat, DType::Bf16)?;
        self.spans.check_flat("weights", &self.flat)?;
        check_f32(&self.spans, [], [("masters", &self.masters)])
    }

    on_both!();
}

impl Op for Cast {
    const NAME: &'static str = "cast";

    fn operands(&self, _: Inside) -> impl Iterator<Item = &Tensor> {
        [&self.from, &self.to].into_iter()
    }

    fn check(&self) -> Result<(), KernelError> {
        check_dtype("elements to cast", &self.from, DType::F32)?;
        let dtype = self.to.dtype();
        if !matches!(dtype, DType::Bf16 | DType::F16) {
            return Err(KernelError::Dtype { kernel: Self::NAME, dtype });
        }
        expect(Self::NAME, "the result", &self.to, self.from.len())
    }

    on_both!();
}
