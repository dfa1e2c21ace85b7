//! The plan of a mesh, for people.

use std::fmt::Write as _;

use comm::BackendWord;
use layout::{Axes, Mesh};
use train::config::Config;
use train::mesh_plan::{Holding, MeshPlan, TensorKind, span};

use super::offload;
use super::place::Place;
use crate::config::Loaded;
use crate::console::{bytes, count, plural};
use crate::error::{CliError, Exit};
use crate::launch_env::Hosts;

/// Shows the plan of a mesh that divides the model, which cannot be run yet.
///
/// # Errors
/// Where it is to be run; what also a plan without a mesh refuses: hosts that ranks do not divide
/// over, an optimizer's device that is not there.
pub fn plan_only(hosts: &Hosts, loaded: &Loaded, dry_run: bool) -> Result<Exit, CliError> {
    let (config, mesh) = (&loaded.config, loaded.resolved.mesh);
    if !dry_run {
        let (ranks, leaves) = (config.ranks.count, config.batch.leaves);
        let at_most = if ranks > leaves { "at most" } else { "the" };
        return Err(CliError::mistake(format!(
            "ranks.mesh asks for {mesh}: training is parallel over data alone for now; \
             `--dry-run` plans this mesh, and without ranks.mesh {at_most} {} train",
            plural(ranks.min(leaves), "rank")
        )));
    }
    Place::new(hosts, config.ranks.count, config.ranks.backend == BackendWord::Shm)?;
    offload::open(config)?;
    let plan = MeshPlan::new(config, loaded.resolved.tokenizer.vocab_size())?;
    crate::output::show(&render(&plan, config))?;
    Ok(Exit::Ok)
}

/// The mesh in a line of the header.
pub fn line(mesh: Mesh) -> String {
    let order = match mesh.is_data_parallel() {
        true => "",
        false => ": ranks count along tp first, then ep, dp and pp",
    };
    row("mesh", &format!("{mesh} = {}{order}", plural(mesh.ranks(), "rank")))
}

fn row(name: &str, text: &str) -> String {
    format!("  {name:<10} {text}")
}

fn render(plan: &MeshPlan, config: &Config) -> String {
    let (mesh, batch) = (plan.mesh, &config.batch);
    let version = env!("CARGO_PKG_VERSION");
    let mut lines = vec![format!("muster {version}: the plan of a mesh, which cannot run yet")];
    lines.push(row("model", &format!("{} parameters", count(plan.schema.parameters() as u64))));
    lines.push(line(mesh));
    let leaves = plural(batch.leaves, "virtual rank");
    let samples = plural(mesh.sample_ranks(), "rank");
    lines.push(row("samples", &format!("{samples} (dp · ep) share {leaves}")));
    let uneven: Vec<String> = plan.uneven.iter().map(ToString::to_string).collect();
    if !uneven.is_empty() {
        lines.push(row("uneven", &format!("{}; this is allowed", uneven.join("; "))));
    }
    let axes = [
        ("pp", Axes::PP),
        ("dp", Axes::DP),
        ("ep", Axes::EP),
        ("tp", Axes::TP),
        ("dp · ep", Axes::SAMPLES),
    ];
    let groups = axes.iter().filter(|(_, axes)| mesh.size(*axes) > 1);
    for (i, (name, axes)) in groups.enumerate() {
        lines.push(row(if i == 0 { "groups" } else { "" }, &group_line(mesh, name, *axes)));
    }
    let balance = plan.balance() * 100.0;
    lines.push(row("owners", &format!("balanced to {balance:.0} % where it is worst")));
    lines.push(String::new());
    lines.extend(holdings(plan));
    lines.push(String::new());
    lines.extend(table(&TENSOR_COLUMNS, plan.kinds.iter().map(tensor_cells).collect()));
    lines.join("\n")
}

/// Groups shown of each kind, and members of each.
const SHOWN: usize = 4;

/// `tp         8 groups of 2: {0 1} {2 3} {4 5} {6 7}`.
fn group_line(mesh: Mesh, name: &str, axes: Axes) -> String {
    let groups = mesh.groups(axes);
    let mut out = format!(
        "{name:<8} {} of {}:",
        plural(groups.len(), "group"),
        plural(mesh.size(axes), "rank")
    );
    for group in groups.iter().take(SHOWN) {
        let ranks: Vec<String> = group.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = if group.len() > SHOWN { " …" } else { "" };
        let _ = write!(out, " {{{}{more}}}", ranks.join(" "));
    }
    if groups.len() > SHOWN {
        out.push_str(" …");
    }
    out
}

const HOLDING_COLUMNS: [&str; 9] = [
    "stage",
    "layers",
    "ep",
    "tp",
    "parameters",
    "in experts",
    "weights",
    "gradients",
    "updates at most",
];

/// The tensors that a rank holds, by coordinate, as lines.
fn holdings(plan: &MeshPlan) -> Vec<String> {
    let cells = |holding: &Holding| {
        [
            holding.stage.to_string(),
            span(holding.layers.clone()),
            span(holding.ep.clone()),
            span(holding.tp.clone()),
            count(holding.parameters as u64),
            count(holding.in_experts as u64),
            bytes(holding.weight_bytes),
            bytes(holding.gradient_bytes),
            count(holding.owned as u64),
        ]
    };
    let mut lines = table(&HOLDING_COLUMNS, plan.holdings.iter().map(cells).collect());
    lines.insert(
        0,
        "  each rank holds, besides activations and the state of what it updates".into(),
    );
    lines
}

const TENSOR_COLUMNS: [&str; 6] = ["tensors", "", "shape", "pp", "ep", "tp"];

fn tensor_cells(kind: &TensorKind) -> [String; 6] {
    let times = if kind.count > 1 { format!("× {}", kind.count) } else { String::new() };
    let [pp, ep, tp] = kind.along.clone();
    [kind.name.clone(), times, format!("{:?}", kind.shape), pp, ep, tp]
}

/// Columns of equal width under their titles.
fn table<const N: usize>(titles: &[&str; N], rows: Vec<[String; N]>) -> Vec<String> {
    let titles = titles.map(str::to_owned);
    let all: Vec<[String; N]> = std::iter::once(titles).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    all.iter().map(line).collect()
}
