//! The plan of a mesh, with the shards of each rank: decided without memory and without talking.
//!
//! Training is parallel over data alone for now, so this plan is shown and not run.

use std::ops::Range;

use layout::{
    Along, Axis, Coordinate, CostTable, Demands, GroupPlan, LayoutError, Mesh, MeshSpec,
    Placements, Role, Schema, Tree, Uneven,
};
use model::Architecture;
use optim::glob::generalize;

use crate::TrainError;
use crate::config::{BUCKET_BYTES, Config, RanksConfig, WeightsDtype};

/// The plan of a mesh for a config.
pub struct MeshPlan {
    pub mesh: Mesh,
    pub schema: Schema,
    pub placements: Placements,
    /// The counts that are divided unevenly, and may be.
    pub uneven: Vec<Uneven>,
    /// Of each group along dp and ep.
    pub groups: Vec<GroupPlan>,
    /// Amounts that the ranks hold, those of equal ones together.
    pub holdings: Vec<Holding>,
    /// How tensors lie, those that differ by number alone together.
    pub kinds: Vec<TensorKind>,
    /// Gradient buffers of a rank for dense parameters, and for those of its experts, which get
    /// tokens of the leaves of all ranks along ep.
    pub gradient_buffers: usize,
    pub expert_buffers: usize,
}

/// The amounts that each of the ranks at some coordinates holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    pub stage: usize,
    /// Layers of the stage.
    pub layers: Range<usize>,
    pub ep: Range<usize>,
    pub tp: Range<usize>,
    /// Elements of all parameters, and of experts among them.
    pub parameters: usize,
    pub in_experts: usize,
    /// Bytes of weights and gradients.
    pub weight_bytes: u64,
    pub gradient_bytes: u64,
    /// Elements that a rank updates, at most.
    pub owned: usize,
}

/// A line of the table of tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorKind {
    /// Numbers replaced by `*`.
    pub name: String,
    pub count: usize,
    pub shape: Vec<usize>,
    /// How they lie along pp, ep and tp, and what each number along ep and tp holds of one.
    pub along: [String; 3],
}

/// The mesh as the config asks for it.
pub fn spec(ranks: &RanksConfig) -> MeshSpec {
    match &ranks.mesh {
        None => MeshSpec::default(),
        Some(mesh) => MeshSpec { pp: mesh.pp, dp: mesh.dp, ep: mesh.ep, tp: mesh.tp },
    }
}

/// The purpose of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be planned: any mesh that the model allows.
    Plan,
    /// To be trained with, which is parallel over data alone for now.
    Train,
}

/// The mesh of a config.
///
/// # Errors
/// Axes that do not fill the ranks, or that the model or the batch do not allow; with the nearest
/// meshes for this purpose.
pub fn mesh(
    config: &Config,
    a: &Architecture,
    schema: &Schema,
    purpose: Purpose,
) -> Result<Mesh, LayoutError> {
    let (spec, demands) = (spec(&config.ranks), demands(config, a, schema));
    // Too many ranks for the leaves are told of as such where a rank is nothing else.
    if spec == MeshSpec::default() {
        return Ok(Mesh::data_parallel(config.ranks.count));
    }
    spec.fill(
        config.ranks.count,
        &match purpose {
            Purpose::Plan => demands,
            Purpose::Train => demands.of_data_alone(),
        },
    )
}

fn demands(config: &Config, a: &Architecture, schema: &Schema) -> Demands {
    Demands::new(schema, a.head_rows()).with_leaves(config.batch.leaves)
}

impl MeshPlan {
    /// Plans the mesh of a config.
    ///
    /// # Errors
    /// A model that does not fit together; a mesh that it or the batch does not allow; optimizer
    /// rules that leave a parameter out.
    pub fn new(config: &Config, tokenizer_vocab: usize) -> Result<MeshPlan, TrainError> {
        let architecture = config.model.resolve(tokenizer_vocab, config.batch.seq_len)?;
        let (schema, _) = model::parameters(&architecture)?;
        let mesh = mesh(config, &architecture, &schema, Purpose::Plan)?;
        let placements = Placements::new(&schema, architecture.head_rows(), mesh)?;
        let updates = optim::plan(&schema, &config.optimizer)?;
        let treatments = optim::treatments(&updates)?;
        let bucket_bytes = config.ranks.bucket_bytes.unwrap_or(BUCKET_BYTES);
        let bucket_elements = bucket_bytes.div_ceil(4);
        let cost = &CostTable::CPU;
        let groups = GroupPlan::all(&schema, &placements, &treatments, bucket_elements, cost)?;
        let tree = Tree::with_leaves(&config.batch.radices, config.batch.leaves)?;
        let mut plan = MeshPlan {
            uneven: demands(config, &architecture, &schema).uneven(mesh),
            kinds: kinds(&schema, &placements),
            holdings: Vec::new(),
            mesh,
            schema,
            placements,
            groups,
            gradient_buffers: gradient_buffers(mesh, &tree, Role::Matrix)?,
            expert_buffers: gradient_buffers(mesh, &tree, Role::Expert { index: 0, of: 1 })?,
        };
        let weight = match config.train.weights {
            WeightsDtype::F32 => 4,
            WeightsDtype::Bf16 => 2,
        };
        plan.holdings = plan.holdings(architecture.layers, weight)?;
        Ok(plan)
    }

    /// Mean load over makespan of the group that is balanced worst.
    pub fn balance(&self) -> f64 {
        self.groups.iter().map(|group| group.ownership.balance()).fold(1.0, f64::min)
    }

    fn holdings(&self, layers: usize, weight_bytes: u64) -> Result<Vec<Holding>, TrainError> {
        let mesh = self.mesh;
        let mut all: Vec<Holding> = Vec::new();
        for stage in 0..mesh.pp {
            let mut of_stage: Vec<Holding> = Vec::new();
            for tp in 0..mesh.tp {
                let owned = self.owned(stage, tp);
                for (ep, &owned) in owned.iter().enumerate() {
                    let at = Coordinate { pp: stage, dp: 0, ep, tp };
                    let (parameters, in_experts) = self.elements(at)?;
                    let holding = Holding {
                        stage,
                        layers: layout::share(layers, mesh.pp, stage),
                        ep: ep..ep + 1,
                        tp: tp..tp + 1,
                        parameters,
                        in_experts,
                        weight_bytes: parameters as u64 * weight_bytes,
                        gradient_bytes: self.gradient_elements(parameters, in_experts) * 4,
                        owned,
                    };
                    join(&mut of_stage, holding, |one| &mut one.ep);
                }
            }
            // Rows of one tp number that go on in the next.
            for holding in of_stage {
                join(&mut all, holding, |one| &mut one.tp);
            }
        }
        Ok(all)
    }

    fn gradient_elements(&self, parameters: usize, in_experts: usize) -> u64 {
        let dense = (parameters - in_experts) * self.gradient_buffers;
        (dense + in_experts * self.expert_buffers) as u64
    }

    /// Of each number along ep, the elements that a rank of this stage and tp number owns at most.
    fn owned(&self, stage: usize, tp: usize) -> Vec<usize> {
        let mut most = vec![0; self.mesh.ep];
        let group = &self.groups[stage * self.mesh.tp + tp];
        let mut owned = vec![0; group.members.len()];
        for piece in &group.ownership.pieces {
            owned[piece.owner] += piece.flat.len();
        }
        for (member, owned) in owned.into_iter().enumerate() {
            let most = &mut most[member % self.mesh.ep];
            *most = owned.max(*most);
        }
        most
    }

    /// Elements that the rank at `at` holds, and those of experts among them.
    fn elements(&self, at: Coordinate) -> Result<(usize, usize), TrainError> {
        let (mut all, mut in_experts) = (0, 0);
        for (index, tensor) in self.schema.tensors.iter().enumerate() {
            let elements = self.placements.elements(index, at)?;
            all += elements;
            if matches!(tensor.role, Role::Expert { .. }) {
                in_experts += elements;
            }
        }
        Ok((all, in_experts))
    }
}

/// Buffers that accumulate the gradient of a parameter of `role`: those of the rank that needs
/// most.
fn gradient_buffers(mesh: Mesh, tree: &Tree, role: Role) -> Result<usize, LayoutError> {
    let mut most = 1;
    for sample_rank in 0..mesh.sample_ranks() {
        // The first stage's rank with the first part of every matrix.
        let leaves = mesh.leaves(tree, sample_rank * mesh.tp, role)?;
        most = most.max(tree.accumulation(&leaves).buffers);
    }
    Ok(most)
}

/// Adds `next` to `all`, or makes the range of the last longer where they differ by it alone.
fn join(all: &mut Vec<Holding>, mut next: Holding, range: fn(&mut Holding) -> &mut Range<usize>) {
    if let Some(last) = all.last_mut() {
        let (before, own) = (range(last).clone(), range(&mut next).clone());
        *range(&mut next) = before.clone();
        // Ranks own amounts that differ a little; the largest is told.
        let owned = next.owned.max(last.owned);
        let alike = Holding { owned: last.owned, ..next.clone() } == *last;
        if alike && before.end == own.start {
            *range(last) = before.start..own.end;
            last.owned = owned;
            return;
        }
        *range(&mut next) = own;
    }
    all.push(next);
}

fn kinds(schema: &Schema, placements: &Placements) -> Vec<TensorKind> {
    let mut kinds: Vec<TensorKind> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for (index, (tensor, placement)) in schema.tensors.iter().zip(&placements.tensors).enumerate() {
        let name = generalize(&tensor.name);
        let layered = name != tensor.name;
        let shape = tensor.shape.clone();
        let at = *known.entry((name.clone(), shape.clone())).or_insert_with(|| {
            let words = |axis| words(placement.along(axis), axis, layered);
            let tp = words(Axis::Tp) + &parts(placements, index);
            let ep = words(Axis::Ep) + &experts(tensor.role, placements.mesh);
            kinds.push(TensorKind { name, count: 0, shape, along: [words(Axis::Pp), ep, tp] });
            kinds.len() - 1
        });
        kinds[at].count += 1;
    }
    kinds
}

/// Parts that are written out of each tensor.
const PARTS: usize = 4;

/// `: 0–160 | 161–320`: the indices that each number along tp holds of what it is cut along.
fn parts(placements: &Placements, index: usize) -> String {
    let Along::Sharded { axis, .. } = placements.tensors[index].tp else { return String::new() };
    let placement = &placements.tensors[index];
    let first = |along: &Along| match along {
        Along::Held { at } => at.first().copied().unwrap_or(0),
        _ => 0,
    };
    let (pp, ep) = (first(&placement.pp), first(&placement.ep));
    let part = |tp| {
        let regions = placements.regions(index, Coordinate { pp, dp: 0, ep, tp });
        let ranges = regions.unwrap_or_default().into_iter().map(|region| {
            let start = region.offset[axis];
            span(start..start + region.shape[axis])
        });
        let mut ranges: Vec<String> = ranges.collect();
        ranges.dedup();
        if ranges.is_empty() { "none".into() } else { ranges.join(" and ") }
    };
    list(placements.mesh.tp, part)
}

/// `: 0–3 | 4–7`: the experts of each number along ep.
fn experts(role: Role, mesh: Mesh) -> String {
    let Role::Expert { of, .. } = role else { return String::new() };
    let each = (of as usize / mesh.ep).max(1);
    list(mesh.ep, |ep| span(ep * each..(ep + 1) * each))
}

fn list(count: usize, part: impl Fn(usize) -> String) -> String {
    let parts: Vec<String> = (0..count.min(PARTS)).map(part).collect();
    let more = if count > PARTS { " | …" } else { "" };
    format!(": {}{more}", parts.join(" | "))
}

/// `3`, or `0–3` with both ends.
pub fn span(range: Range<usize>) -> String {
    match range.len() {
        1 => range.start.to_string(),
        _ => format!("{}–{}", range.start, range.end.saturating_sub(1)),
    }
}

fn words(along: &Along, axis: Axis, layered: bool) -> String {
    match along {
        Along::Replicated => "replicated".into(),
        Along::Sharded { axis, split, .. } => {
            let lines = if *axis == 0 { "rows" } else { "columns" };
            format!("{lines} by {}", split.word())
        }
        Along::Held { .. } if axis == Axis::Ep => "by index".into(),
        Along::Held { .. } if layered => "by layer".into(),
        Along::Held { at } => {
            let stages: Vec<String> = at.iter().map(ToString::to_string).collect();
            format!("stage{} {}", if at.len() > 1 { "s" } else { "" }, stages.join(" and "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MeshConfig;
    use model::Preset;

    fn config(preset: Preset, count: usize, mesh: MeshConfig) -> Config {
        let mut config = Config::default();
        config.model.preset = Some(preset);
        (config.ranks.count, config.ranks.mesh) = (count, Some(mesh));
        config.batch.leaves = 8;
        config
    }

    #[test]
    fn every_preset_has_a_rule_for_every_tensor() {
        for preset in Preset::ALL {
            let mesh = MeshConfig { pp: 2, tp: 2, ..MeshConfig::default() };
            let plan = MeshPlan::new(&config(preset, 8, mesh), 257).unwrap();
            // One of each stage and tp number hold the whole between them, and copies of what tp
            // replicates and both stages need.
            let total: usize = plan
                .schema
                .tensors
                .iter()
                .enumerate()
                .map(|(index, tensor)| tensor.len() * plan.placements.copies(index) / plan.mesh.dp)
                .sum();
            let held: usize = plan
                .holdings
                .iter()
                .map(|holding| holding.parameters * holding.ep.len() * holding.tp.len())
                .sum();
            assert_eq!(held, total, "{preset:?}");
            assert!(held < plan.schema.parameters() * 2, "{preset:?}");
        }
    }

    #[test]
    fn without_a_mesh_the_plan_is_the_runs() {
        let plain = Config {
            ranks: RanksConfig { count: 3, ..RanksConfig::default() },
            ..config(Preset::TinyMoe, 3, MeshConfig::default())
        };
        let run = crate::RunPlan::new(&plain, 257, 3, 1).unwrap();
        let plan = MeshPlan::new(&plain, 257).unwrap();
        assert_eq!(plan.mesh, Mesh::data_parallel(3));
        assert_eq!(plan.groups.len(), 1);
        assert_eq!(plan.groups[0].ownership.digest(), run.ownership.digest());
        assert_eq!(plan.gradient_buffers, run.gradient_buffers());
    }

    #[test]
    fn a_config_without_a_mesh_is_written_as_before() {
        let text = serde_json::to_string(&Config::default()).unwrap();
        assert!(!text.contains("mesh"), "{text}");
    }
}
