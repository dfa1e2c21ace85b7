//! Which meshes a model and a number of ranks allow, and the nearest ones where one is refused.
//!
//! ```text
//! MeshSpec (as asked, dp may be open) ─┐
//! number of ranks ─────────────────────┼─▶ fill ─▶ Mesh, or what is wrong and the nearest that fit
//! Demands (of schema and leaves) ──────┘
//! ```
//! A mesh that is offered has passed every check that refused the one before it.

use std::collections::BTreeSet;
use std::fmt;

use crate::placement_rules::{Cut, HeadRows, Split, cut, layer};
use crate::{Axis, LayoutError, Mesh, Role, Schema};

/// A mesh as asked for: without `dp` it is what the other axes leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshSpec {
    pub pp: usize,
    pub dp: Option<usize>,
    pub ep: usize,
    pub tp: usize,
}

impl Default for MeshSpec {
    fn default() -> MeshSpec {
        MeshSpec { pp: 1, dp: None, ep: 1, tp: 1 }
    }
}

/// The conditions that a model sets on the axes of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demands {
    layers: usize,
    /// Experts per layer, each number that occurs.
    experts: BTreeSet<usize>,
    /// Counts that tp divides, each kind and number once, with the first tensor that has it.
    cuts: Vec<Counted>,
    /// Matrices that no rule cuts.
    unruled: Option<(String, &'static str)>,
    leaves: Option<usize>,
    /// Only meshes that are parallel over data alone are offered.
    data_alone: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    split: Split,
    count: usize,
    tensor: String,
}

/// Why a mesh is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MeshProblem {
    /// The axes do not fill the ranks of the job.
    Product { spec: MeshSpec, world: usize },
    /// An axis that has to divide something.
    Uneven { axis: Axis, size: usize, count: usize, what: &'static str, tensor: Option<String> },
    /// More ranks along an axis than there is to hold.
    Beyond { axis: Axis, size: usize, count: usize, what: &'static str },
    /// Expert parallelism without experts.
    NoExperts { size: usize },
    /// More ranks with samples of their own than virtual ranks.
    Samples { ranks: usize, leaves: usize },
    /// A tensor that no rule says how to cut.
    NoRule { tensor: String, role: &'static str, size: usize },
}

impl MeshProblem {
    /// The axis at fault, where it is one.
    pub fn axis(&self) -> Option<Axis> {
        match self {
            MeshProblem::Uneven { axis, .. } | MeshProblem::Beyond { axis, .. } => Some(*axis),
            MeshProblem::NoExperts { .. } => Some(Axis::Ep),
            MeshProblem::NoRule { .. } => Some(Axis::Tp),
            MeshProblem::Product { .. } | MeshProblem::Samples { .. } => None,
        }
    }
}

impl fmt::Display for MeshProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MeshProblem::Product { spec: MeshSpec { pp, dp, ep, tp }, world } => {
                let all = [*pp, dp.unwrap_or(1), *ep, *tp];
                let product = all.iter().fold(1_u128, |all, &n| all.saturating_mul(n as u128));
                match dp {
                    Some(dp) => write!(
                        f,
                        "pp {pp} · dp {dp} · ep {ep} · tp {tp} = {product}, but there are {world} \
                         ranks"
                    ),
                    None => write!(
                        f,
                        "pp {pp} · ep {ep} · tp {tp} = {product} does not divide the {world} ranks"
                    ),
                }
            }
            MeshProblem::Uneven { axis, size, count, what, tensor } => {
                write!(f, "{axis} {size} does not divide {count}, the {what}")?;
                tensor.iter().try_for_each(|tensor| write!(f, " of `{tensor}`"))
            }
            MeshProblem::Beyond { axis, size, count, what } => {
                write!(f, "{axis} {size} is more than the {count} {what}")
            }
            MeshProblem::NoExperts { size } => {
                write!(f, "ep {size} divides experts, and the model has none")
            }
            MeshProblem::Samples { ranks, leaves } => write!(
                f,
                "dp · ep = {ranks} ranks compute other samples and cannot share the {leaves} \
                 leaves of the batch"
            ),
            MeshProblem::NoRule { tensor, role, size } => {
                write!(f, "tp {size}: no rule says how to cut `{tensor}`, whose role is {role}")
            }
        }
    }
}

/// The meshes to use instead of one that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearestMeshes {
    pub world: usize,
    /// Meshes of `ranks` ranks that fit, nearest first.
    pub meshes: Vec<Mesh>,
    /// `world`, or where nothing fits it the next lower number of ranks that something does.
    pub ranks: usize,
    /// Others than those parallel over data alone were not looked at.
    pub data_alone: bool,
}

impl fmt::Display for NearestMeshes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NearestMeshes { world, meshes, ranks, data_alone } = self;
        let offer = |m: &Mesh| format!("pp {}, dp {}, ep {}, tp {}", m.pp, m.dp, m.ep, m.tp);
        let offers: Vec<String> = meshes.iter().map(offer).collect();
        let offers = offers.join("; or ");
        match ranks == world {
            true => write!(f, "use {offers}"),
            false => {
                let what = if *data_alone { "can be trained" } else { "fits" };
                write!(f, "no mesh of {world} ranks {what}; with {ranks} ranks use {offers}")
            }
        }
    }
}

/// Something that is divided into parts of two sizes, which is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uneven {
    pub what: &'static str,
    pub count: usize,
    pub axis: &'static str,
    pub parts: usize,
}

impl fmt::Display for Uneven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Uneven { what, count, axis, parts } = self;
        let (more, less) = (count.div_ceil(*parts), count / parts);
        write!(f, "{what} {count} over {axis} {parts}: {more} or {less} each")
    }
}

/// Offers of a message.
const OFFERS: usize = 3;

impl Demands {
    /// Demands of `schema`, whose heads have so many rows.
    pub fn new(schema: &Schema, heads: HeadRows) -> Demands {
        let mut demands = Demands::default();
        for (index, tensor) in schema.tensors.iter().enumerate() {
            if let Some(layer) = layer(&tensor.name) {
                demands.layers = demands.layers.max(layer.saturating_add(1));
            }
            if let Role::Expert { of, .. } = tensor.role {
                demands.experts.insert(of as usize);
            }
            let (axis, split) = match cut(tensor, &heads) {
                Some(Cut::Rows(split)) => (0, split),
                Some(Cut::Columns(split)) => (1, split),
                Some(Cut::Whole) => continue,
                None => {
                    let role = tensor.role.word();
                    demands.unruled.get_or_insert_with(|| (tensor.name.clone(), role));
                    continue;
                }
            };
            for run in schema.runs(index, axis) {
                demands.count(split, run.len() / split.unit(&heads), &tensor.name);
            }
        }
        demands
    }

    /// The leaves of the batch, which the ranks along dp and ep divide.
    pub fn with_leaves(self, leaves: usize) -> Demands {
        Demands { leaves: Some(leaves), ..self }
    }

    /// For whoever runs nothing but parallelism over data: other meshes are not offered.
    pub fn of_data_alone(self) -> Demands {
        Demands { data_alone: true, ..self }
    }

    fn count(&mut self, split: Split, count: usize, tensor: &str) {
        if !self.cuts.iter().any(|known| known.split == split && known.count == count) {
            self.cuts.push(Counted { split, count, tensor: tensor.to_owned() });
        }
    }

    /// The first reason to refuse `mesh`, its product apart; `None` where it fits.
    pub fn problem(&self, mesh: Mesh) -> Option<MeshProblem> {
        let (layers, ranks) = (self.layers, mesh.sample_ranks());
        if mesh.pp > layers.max(1) {
            let (axis, size, what) = (Axis::Pp, mesh.pp, "layers, and a stage needs one");
            return Some(MeshProblem::Beyond { axis, size, count: layers, what });
        }
        if mesh.ep > 1 && self.experts.is_empty() {
            return Some(MeshProblem::NoExperts { size: mesh.ep });
        }
        if let Some(&count) = self.experts.iter().find(|of| !of.is_multiple_of(mesh.ep)) {
            let (axis, size, what) = (Axis::Ep, mesh.ep, "experts of a layer");
            return Some(MeshProblem::Uneven { axis, size, count, what, tensor: None });
        }
        if let Some(leaves) = self.leaves.filter(|&leaves| ranks > leaves) {
            return Some(MeshProblem::Samples { ranks, leaves });
        }
        self.problem_of_tp(mesh.tp)
    }

    fn problem_of_tp(&self, size: usize) -> Option<MeshProblem> {
        if size == 1 {
            return None;
        }
        if let Some((tensor, role)) = self.unruled.clone() {
            return Some(MeshProblem::NoRule { tensor, role, size });
        }
        self.cuts.iter().find_map(|Counted { split, count, tensor }| {
            let (axis, what) = (Axis::Tp, split.word());
            if split.may_be_uneven() {
                let beyond = MeshProblem::Beyond { axis, size, count: *count, what };
                return (size > *count).then_some(beyond);
            }
            let tensor = Some(tensor.clone());
            let uneven = MeshProblem::Uneven { axis, size, count: *count, what, tensor };
            (!count.is_multiple_of(size)).then_some(uneven)
        })
    }

    /// The counts that `mesh` divides unevenly, and may.
    pub fn uneven(&self, mesh: Mesh) -> Vec<Uneven> {
        let of = |what, count: usize, axis, parts| {
            (!count.is_multiple_of(parts)).then_some(Uneven { what, count, axis, parts })
        };
        let cuts = self.cuts.iter().filter(|cut| cut.split.may_be_uneven());
        let mut all: Vec<Uneven> =
            cuts.filter_map(|cut| of(cut.split.word(), cut.count, "tp", mesh.tp)).collect();
        all.extend(of("layers", self.layers, "pp", mesh.pp));
        let leaves = self.leaves;
        all.extend(leaves.and_then(|leaves| of("leaves", leaves, "dp · ep", mesh.sample_ranks())));
        all
    }

    /// The meshes of `world` ranks that fit.
    fn fitting(&self, world: usize) -> Vec<Mesh> {
        let mut meshes = Vec::new();
        for pp in divisors(world) {
            for ep in divisors(world / pp) {
                for tp in divisors(world / pp / ep) {
                    meshes.push(Mesh { pp, dp: world / pp / ep / tp, ep, tp });
                }
            }
        }
        let is_offered = |mesh: Mesh| !self.data_alone || mesh.is_data_parallel();
        meshes.retain(|&mesh| is_offered(mesh) && self.problem(mesh).is_none());
        meshes
    }

    /// The meshes of `world` ranks that fit, or of the next lower number that has some; nearest to
    /// `spec` first.
    pub fn nearest(&self, spec: MeshSpec, world: usize) -> NearestMeshes {
        let mut ranks = world;
        let mut meshes = self.fitting(ranks);
        while ranks > 1 && meshes.is_empty() {
            ranks -= 1;
            meshes = self.fitting(ranks);
        }
        meshes.sort_by_key(|&mesh| (spec.distance(mesh), mesh.pp, mesh.ep, mesh.tp));
        meshes.truncate(OFFERS);
        NearestMeshes { world, meshes, ranks, data_alone: self.data_alone }
    }
}

impl MeshSpec {
    /// The mesh that fills `world` ranks.
    ///
    /// # Errors
    /// Axes whose product is not `world`, or that the model does not allow; with the nearest that
    /// do.
    pub fn fill(self, world: usize, demands: &Demands) -> Result<Mesh, LayoutError> {
        let rest = [self.pp, self.ep, self.tp];
        let rest = rest.iter().try_fold(1_usize, |all, &n| all.checked_mul(n));
        let dp = self.dp.or_else(|| rest.filter(|&n| n > 0).map(|rest| world / rest));
        let mesh = Mesh { pp: self.pp, dp: dp.unwrap_or(0), ep: self.ep, tp: self.tp };
        let problem = match mesh.product() == Some(world) && world > 0 {
            true => demands.problem(mesh),
            false => Some(MeshProblem::Product { spec: self, world }),
        };
        match problem {
            None => Ok(mesh),
            Some(problem) => Err(LayoutError::Mesh { problem, near: demands.nearest(self, world) }),
        }
    }

    /// How far a mesh is from this one, in factors: doubling an axis counts as halving it.
    fn distance(self, mesh: Mesh) -> u64 {
        let apart = |asked: usize, has: usize| {
            let ratio = asked.max(1) as f64 / has.max(1) as f64;
            // In millionths, so that equal factors are equal.
            (ratio.ln().abs() * 1e6).round() as u64
        };
        apart(self.pp, mesh.pp)
            + apart(self.ep, mesh.ep)
            + apart(self.tp, mesh.tp)
            + self.dp.map_or(0, |dp| apart(dp, mesh.dp))
    }
}

fn divisors(n: usize) -> Vec<usize> {
    let small: Vec<usize> =
        (1..).take_while(|d| *d <= n / *d).filter(|d| n.is_multiple_of(*d)).collect();
    let large = small.iter().rev().map(|d| n / d).filter(|d| !small.contains(d));
    let large: Vec<usize> = large.collect();
    [small, large].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::LogicalTensor;

    /// A decoder of four layers with 4 heads of 16, 2 of keys and values, 8 experts of width 96.
    fn demands() -> Demands {
        let mut tensors =
            vec![LogicalTensor::new("model.embed_tokens.weight", &[65, 64], Role::Embedding)];
        for layer in 0..4 {
            let name = |what: &str| format!("model.layers.{layer}.{what}.weight");
            let matrix =
                |what, shape: &[usize]| LogicalTensor::new(name(what), shape, Role::Matrix);
            tensors.push(matrix("self_attn.q_proj", &[64, 64]));
            tensors.push(matrix("self_attn.k_proj", &[32, 64]));
            for index in 0..8 {
                let role = Role::Expert { index, of: 8 };
                let name = name(&format!("mlp.experts.{index}.up_proj"));
                tensors.push(LogicalTensor::new(name, &[96, 64], role));
            }
        }
        Demands::new(&Schema::new(tensors).unwrap(), HeadRows::of(16)).with_leaves(4)
    }

    fn refusal(pp: usize, dp: Option<usize>, ep: usize, tp: usize, world: usize) -> String {
        MeshSpec { pp, dp, ep, tp }.fill(world, &demands()).unwrap_err().to_string()
    }

    #[test]
    fn refusals_name_the_numbers_and_the_nearest_meshes() {
        assert_eq!(
            refusal(2, None, 1, 2, 6),
            "pp 2 · ep 1 · tp 2 = 4 does not divide the 6 ranks; \
             use pp 3, dp 1, ep 1, tp 2; or pp 1, dp 3, ep 1, tp 2; or pp 2, dp 3, ep 1, tp 1"
        );
        assert_eq!(
            refusal(2, Some(3), 1, 2, 8),
            "pp 2 · dp 3 · ep 1 · tp 2 = 12, but there are 8 ranks; \
             use pp 2, dp 2, ep 1, tp 2; or pp 1, dp 4, ep 1, tp 2; or pp 2, dp 4, ep 1, tp 1"
        );
        assert_eq!(
            refusal(1, None, 1, 4, 4),
            "tp 4 does not divide 2, the key/value heads of \
             `model.layers.0.self_attn.k_proj.weight`; \
             use pp 1, dp 2, ep 1, tp 2; or pp 1, dp 4, ep 1, tp 1; or pp 1, dp 1, ep 2, tp 2"
        );
        let text = refusal(8, None, 1, 1, 8);
        assert!(text.starts_with("pp 8 is more than the 4 layers, and a stage needs one; "));
        let text = refusal(1, None, 3, 1, 3);
        assert!(text.starts_with("ep 3 does not divide 8, the experts of a layer; "), "{text}");
        let text = refusal(1, None, 1, 1, 8);
        assert!(text.starts_with("dp · ep = 8 ranks compute other samples and cannot share the 4"));
        let text = refusal(1, Some(usize::MAX), usize::MAX, usize::MAX, 7);
        let offer = "but there are 7 ranks; no mesh of 7 ranks fits; with 6 ranks use pp ";
        assert!(text.contains(offer), "{text}");
        let spec = MeshSpec { tp: 2, dp: Some(3), ..MeshSpec::default() };
        let error = spec.fill(8, &demands().of_data_alone()).unwrap_err().to_string();
        assert_eq!(
            error,
            "pp 1 · dp 3 · ep 1 · tp 2 = 6, but there are 8 ranks; \
             no mesh of 8 ranks can be trained; with 4 ranks use pp 1, dp 4, ep 1, tp 1"
        );
    }

    #[test]
    fn dense_models_have_no_experts_to_divide() {
        let tensor = LogicalTensor::new("model.embed_tokens.weight", &[8, 4], Role::Embedding);
        let schema = Schema::new(vec![tensor]).unwrap();
        let spec = MeshSpec { ep: 2, ..MeshSpec::default() };
        let error = spec.fill(2, &Demands::new(&schema, HeadRows::of(4))).unwrap_err().to_string();
        assert!(error.starts_with("ep 2 divides experts, and the model has none; use "), "{error}");
    }

    #[test]
    fn a_matrix_without_a_rule_is_not_cut_in_silence() {
        let tensor = LogicalTensor::new("mystery.weight", &[8, 4], Role::Matrix);
        let demands = Demands::new(&Schema::new(vec![tensor]).unwrap(), HeadRows::of(4));
        let spec = |tp| MeshSpec { tp, ..MeshSpec::default() };
        assert!(spec(1).fill(2, &demands).is_ok());
        assert_eq!(
            spec(2).fill(2, &demands).unwrap_err().to_string(),
            "tp 2: no rule says how to cut `mystery.weight`, whose role is matrix; \
             use pp 1, dp 2, ep 1, tp 1"
        );
    }

    #[test]
    fn what_is_uneven_and_allowed_is_said() {
        let said = |pp, dp, ep, tp| {
            let uneven = demands().uneven(Mesh { pp, dp, ep, tp });
            uneven.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said(3, 3, 1, 2),
            [
                "vocabulary 65 over tp 2: 33 or 32 each",
                "layers 4 over pp 3: 2 or 1 each",
                "leaves 4 over dp · ep 3: 2 or 1 each",
            ]
        );
        assert!(said(2, 2, 2, 1).is_empty());
    }

    proptest! {
        /// Whatever a message offers is taken, and a mesh that fits is never refused.
        #[test]
        fn offers_are_taken(
            pp in 1_usize..7, dp in prop::option::of(1_usize..7), ep in 1_usize..9,
            tp in 1_usize..9, world in 1_usize..100, data_alone: bool,
        ) {
            let demands = Demands { data_alone, ..demands() };
            match (MeshSpec { pp, dp, ep, tp }).fill(world, &demands) {
                Ok(mesh) => {
                    prop_assert_eq!(mesh.product(), Some(world));
                    prop_assert_eq!((mesh.pp, mesh.ep, mesh.tp), (pp, ep, tp));
                    prop_assert!(dp.is_none_or(|dp| dp == mesh.dp));
                }
                Err(LayoutError::Mesh { near, .. }) => {
                    prop_assert!(!near.meshes.is_empty() && near.ranks <= world);
                    for Mesh { pp, dp, ep, tp } in near.meshes {
                        let spec = MeshSpec { pp, dp: Some(dp), ep, tp };
                        prop_assert!(spec.fill(near.ranks, &demands).is_ok());
                        prop_assert!(!data_alone || (pp, ep, tp) == (1, 1, 1));
                    }
                }
                Err(other) => prop_assert!(false, "{other}"),
            }
        }

        #[test]
        fn divisors_are_all(n in 1_usize..500) {
            let slow: Vec<usize> = (1..=n).filter(|d| n % d == 0).collect();
            prop_assert_eq!(divisors(n), slow);
        }
    }
}
