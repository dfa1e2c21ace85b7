//! Which rule updates which parameter: a pure function of schema and config.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use layout::{LogicalTensor, Schema, Treatment};

use crate::config::{OptimizerConfig, Rule};
use crate::update::{Misfit, Unit, Update};
use crate::{OptimError, glob};

/// The update of one parameter, in schema order.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorPlan {
    /// Position in the schema.
    pub tensor: usize,
    /// Position in `optimizer.rules`.
    pub rule: usize,
    pub update: Update,
    /// The true matrices; under an update of elements one part, the whole parameter.
    pub parts: Vec<PartPlan>,
}

/// One true matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct PartPlan {
    /// Its label in a fused parameter; empty for a whole one.
    pub label: String,
    /// Rows of the parameter's first axis.
    pub rows: Range<usize>,
    pub cols: usize,
    /// Factor on the update.
    pub scale: f64,
}

/// Decides the update of every parameter of `schema`.
///
/// # Errors
/// A value out of range; a parameter without a rule; a rule without a parameter; an update of
/// matrices on something else; none of them at all though the config requires one.
pub fn plan(schema: &Schema, config: &OptimizerConfig) -> Result<Vec<TensorPlan>, OptimError> {
    config.check()?;
    let rule_of =
        |tensor: &_| config.rules.iter().position(|rule: &Rule| rule.matches.accepts(tensor));
    let mut plans = Vec::with_capacity(schema.tensors.len());
    for (index, tensor) in schema.tensors.iter().enumerate() {
        let Some(rule) = rule_of(tensor) else {
            return Err(OptimError::Unmatched {
                tensor: tensor.name.clone(),
                role: tensor.role.word(),
                shape: tensor.shape.clone(),
            });
        };
        match tensor_plan(index, tensor, rule, &config.rules[rule]) {
            Ok(plan) => plans.push(plan),
            // Others of the rule may allow less: the value to use is one that fits them all.
            Err(misfit @ OptimError::StateMisfit { .. }) => {
                let others = schema.tensors.iter().filter(|other| rule_of(other) == Some(rule));
                let others = others
                    .filter_map(|other| tensor_plan(index, other, rule, &config.rules[rule]).err());
                return Err(others.min_by_key(most).unwrap_or(misfit));
            }
            Err(error) => return Err(error),
        }
    }
    for rule in 0..config.rules.len() {
        if !plans.iter().any(|plan| plan.rule == rule) {
            let reason = why_unused(schema, config, &plans, rule);
            return Err(OptimError::UnusedRule { rule, reason });
        }
    }
    let any = plans.iter().any(|plan| plan.update.rule().unit() == Unit::Matrix);
    if config.require_muon && !any {
        let has = |word| schema.tensors.iter().any(|tensor| tensor.role.word() == word);
        let suggestion = if !has("matrix") && has("expert") { "expert" } else { "matrix" };
        return Err(OptimError::NoMuon { suggestion });
    }
    Ok(plans)
}

/// The largest value that fits, where that is what is wrong.
fn most(error: &OptimError) -> usize {
    match error {
        OptimError::StateMisfit { most, .. } => *most,
        _ => usize::MAX,
    }
}

fn tensor_plan(
    index: usize,
    tensor: &LogicalTensor,
    rule: usize,
    with: &Rule,
) -> Result<TensorPlan, OptimError> {
    let (cols, update) = (tensor.row_len(), with.update(rule)?);
    let part = |rows: Range<usize>, label: String| {
        let scale = update.rule().scale(rows.len(), cols);
        PartPlan { label, rows, cols, scale }
    };
    let parts = match update.rule().unit() {
        Unit::Element => vec![part(0..tensor.rows(), String::new())],
        Unit::Matrix if tensor.shape.len() != 2 => {
            return Err(OptimError::NotAMatrix {
                rule,
                update: update.name(),
                tensor: tensor.name.clone(),
                role: tensor.role.word(),
                shape: tensor.shape.clone(),
            });
        }
        Unit::Matrix => {
            let labels = tensor.parts.iter().map(|part| part.label.clone());
            let labels = labels.chain(std::iter::repeat(String::new()));
            tensor.row_ranges().into_iter().zip(labels).map(|(r, label)| part(r, label)).collect()
        }
    };
    let parts: Vec<PartPlan> = parts;
    let misfits = parts.iter().filter_map(|part| {
        let misfit = update.rule().fits(part.rows.len(), cols).err()?;
        Some(does_not_fit(tensor, rule, &update, part, misfit))
    });
    if let Some(misfit) = misfits.min_by_key(most) {
        return Err(misfit);
    }
    Ok(TensorPlan { tensor: index, rule, update, parts })
}

fn does_not_fit(
    tensor: &LogicalTensor,
    rule: usize,
    update: &Update,
    part: &PartPlan,
    misfit: Misfit,
) -> OptimError {
    let Misfit { key, got, state, shape: needs, most } = misfit;
    let of = if part.label.is_empty() { String::new() } else { format!("{} of ", part.label) };
    OptimError::StateMisfit {
        at: format!("optimizer.rules[{rule}].{}.{key}", update.word()),
        got,
        matrix: format!("{of}`{}`", tensor.name),
        shape: [part.rows.len(), part.cols],
        state,
        needs,
        most,
    }
}

/// Why rule `rule` decides nothing, and what would help.
fn why_unused(
    schema: &Schema,
    config: &OptimizerConfig,
    plans: &[TensorPlan],
    rule: usize,
) -> String {
    let set = &config.rules[rule].matches;
    let taken = schema.tensors.iter().zip(plans).find(|(tensor, _)| set.accepts(tensor));
    if let Some((tensor, plan)) = taken {
        let (name, earlier) = (&tensor.name, plan.rule);
        return format!(
            "optimizer.rules[{earlier}] comes first and takes all of them (such as `{name}`); \
             move this rule above it or remove it"
        );
    }
    if !schema.tensors.iter().any(|tensor| set.role_accepts(tensor)) {
        let mut roles: Vec<_> = schema.tensors.iter().map(|tensor| tensor.role.word()).collect();
        roles.sort_unstable();
        roles.dedup();
        return format!("no parameter has such a role; the model's roles are {}", roles.join(", "));
    }
    if schema.tensors.iter().any(|tensor| set.name_accepts(tensor)) {
        return "its roles and its names match different parameters; drop one of the two".into();
    }
    match set.names.iter().flatten().next() {
        Some(pattern) => nearest_name(schema, pattern),
        None => "its list of names is empty; drop `names` to match any".into(),
    }
}

fn nearest_name(schema: &Schema, pattern: &str) -> String {
    let core = pattern.trim_matches('*');
    let inside = schema
        .tensors
        .iter()
        .find(|tensor| !core.is_empty() && glob::matches(&format!("*{core}*"), &tensor.name));
    if let Some(tensor) = inside {
        let name = &tensor.name;
        return format!("a pattern covers the whole name: use `*{core}*` to match `{name}`");
    }
    let names = schema.tensors.iter().map(|tensor| glob::generalize(&tensor.name));
    let likeness = |name: &str| strsim::normalized_levenshtein(pattern, name);
    let nearest = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    format!("no name is like `{pattern}`; the nearest is `{}`", nearest.unwrap_or_default())
}

/// Facts about each parameter for ownership.
///
/// # Errors
/// None for the plans of [`plan`], which has checked their updates.
pub fn treatments(plans: &[TensorPlan]) -> Result<Vec<Treatment>, OptimError> {
    // Models have thousands of matrices, of few rules and shapes.
    let mut known: BTreeMap<(usize, usize, usize), f64> = BTreeMap::new();
    let mut treatments = Vec::with_capacity(plans.len());
    for plan in plans {
        let rule = plan.update.rule();
        if rule.unit() == Unit::Element {
            treatments.push(Treatment::Elementwise);
            continue;
        }
        let mut flops = Vec::with_capacity(plan.parts.len());
        for part in &plan.parts {
            let key = (plan.rule, part.rows.len(), part.cols);
            flops.push(match known.get(&key) {
                Some(&flops) => flops,
                None => *known.entry(key).or_insert(rule.flops(part.rows.len(), part.cols)?),
            });
        }
        treatments.push(Treatment::WholeMatrix { flops });
    }
    Ok(treatments)
}

/// The plan for people: one line per kind of parameter, in schema order; layers and experts that
/// differ by number alone share a line. Then a line for each rule whose update promises something:
/// as Newton–Schulz does of singular values.
pub fn table(schema: &Schema, plans: &[TensorPlan]) -> String {
    // Keyed by first appearance, so that lines keep the order of the model.
    let mut lines: Vec<(String, Vec<String>, usize)> = Vec::new();
    let mut index: BTreeMap<String, usize> = BTreeMap::new();
    for plan in plans {
        let tensor = &schema.tensors[plan.tensor];
        let mut name = glob::generalize(&tensor.name);
        for part in &plan.parts {
            let shape = match tensor.shape.len() {
                2 => format!("{}×{}", part.rows.len(), part.cols),
                _ => tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×"),
            };
            if !part.label.is_empty() {
                name = format!("{} [{}]", glob::generalize(&tensor.name), part.label);
            }
            let words = format!("{}  rule {}", plan.update.rule().words(part.scale), plan.rule);
            let cells = vec![shape, name.clone(), words];
            let key = cells.join("\n");
            let at = *index.entry(key.clone()).or_insert_with(|| {
                lines.push((key, cells, 0));
                lines.len() - 1
            });
            lines[at].2 += 1;
        }
    }
    render(&lines) + &promises(plans)
}

/// As `rule 0: Newton–Schulz, 5 steps of …`.
fn promises(plans: &[TensorPlan]) -> String {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for TensorPlan { rule, update, .. } in plans {
        if lines.iter().any(|(earlier, _)| earlier == rule) {
            continue;
        }
        if let Some(promise) = update.rule().promise() {
            lines.push((*rule, format!("rule {rule}: {promise}\n")));
        }
    }
    lines.into_iter().map(|(_, line)| line).collect()
}

fn render(lines: &[(String, Vec<String>, usize)]) -> String {
    let width = |cell: usize| {
        lines.iter().map(|(_, cells, _)| cells[cell].chars().count()).max().unwrap_or(0)
    };
    let (shapes, names) = (width(0), width(1));
    let counts = lines.iter().map(|(_, _, count)| count.to_string().len()).max().unwrap_or(0);
    let mut text = String::new();
    for (_, cells, count) in lines {
        let [shape, name, words] = [&cells[0], &cells[1], &cells[2]];
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{count:>counts$} of {shape:<shapes$}  {name:<names$}  {words}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdamWConfig, Match, RoleWord};
    use layout::{Part, Role};

    fn schema() -> Schema {
        let mut tensors =
            vec![LogicalTensor::new("model.embed.weight", &[100, 8], Role::Embedding)];
        for layer in 0..2 {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
            let mut qkv = LogicalTensor::new(name("attn.qkv"), &[24, 8], Role::Matrix);
            qkv.parts = [("q", 0..8), ("k", 8..16), ("v", 16..24)]
                .map(|(label, rows)| Part { label: label.into(), rows })
                .to_vec();
            tensors.push(qkv);
            tensors.push(LogicalTensor::new(name("norm"), &[8], Role::Vector));
            for index in 0..2 {
                let role = Role::Expert { index, of: 2 };
                let name = name(&format!("experts.{index}.up"));
                tensors.push(LogicalTensor::new(name, &[32, 8], role));
            }
        }
        Schema::new(tensors).unwrap()
    }

    fn with(change: impl Fn(&mut OptimizerConfig)) -> Result<Vec<TensorPlan>, OptimError> {
        let mut config = OptimizerConfig::default();
        change(&mut config);
        plan(&schema(), &config)
    }

    fn adamw(roles: &[RoleWord], names: &[&str]) -> Rule {
        let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
        let matches = Match {
            roles: (!roles.is_empty()).then(|| roles.to_vec()),
            names: (!names.is_empty()).then_some(names),
        };
        Rule { matches, adamw: Some(AdamWConfig::default()), ..Rule::default() }
    }

    #[test]
    fn the_default_gives_matrices_and_experts_to_muon() {
        let plans = with(|_| ()).unwrap();
        assert_eq!(plans[0].rule, 1);
        assert_eq!(plans[1].parts.len(), 3);
        assert!((plans[1].parts[2].scale - 0.2 * 8_f64.sqrt()).abs() < 1e-12);
        assert_eq!(plans[1].parts[2].rows, 16..24);
        let treatments = treatments(&plans).unwrap();
        assert!(matches!(&treatments[1], Treatment::WholeMatrix { flops } if flops.len() == 3));
        assert_eq!(treatments[2], Treatment::Elementwise);
        let table = table(&schema(), &plans);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 7, "{table}");
        assert_eq!(
            lines[6],
            "rule 0: Newton–Schulz, 5 steps of polar_express: singular values of 0.001 to 1 \
             become 0.846 to 1.124, those of 0.01 to 1 become 0.870 to 1.124; algorithm auto in f32"
        );
        assert!(lines[4].starts_with("2 of 8 "), "{table}");
        assert!(lines[5].contains("4 of 32×8   model.layers.*.experts.*.up.weight"), "{table}");
        assert!(lines[5].contains("muon lr 0.003 × 1.131 (rms), 5 steps polar_express"), "{table}");
    }

    #[test]
    fn the_flops_of_a_matrix_are_those_of_the_program_that_runs() {
        let flops = |algorithm: crate::config::Algorithm| {
            let plans = with(|config| {
                config.rules[0].muon.as_mut().unwrap().algorithm = algorithm;
            });
            let treatments = treatments(&plans.unwrap()).unwrap();
            let flops = |tensor: usize| match &treatments[tensor] {
                Treatment::WholeMatrix { flops } => flops.clone(),
                Treatment::Elementwise => Vec::new(),
            };
            (flops(1), flops(3))
        };
        use crate::config::Algorithm;
        // Five quintics with every product in full: 2·5·(2mn² + n³).
        let full = |n: f64, m: f64| 10.0 * (2.0 * m * n * n + n * n * n);
        let standard = flops(Algorithm::Standard);
        assert_eq!(standard, (vec![full(8.0, 8.0); 3], vec![full(8.0, 32.0)]));
        let (symmetric, gram) = (flops(Algorithm::Symmetric), flops(Algorithm::Gram));
        assert!(symmetric.1 < standard.1 && gram.1 < symmetric.1, "{symmetric:?} {gram:?}");
        // Square parts gain nothing from the Gram form, long experts do.
        assert_eq!(flops(Algorithm::Auto), (symmetric.0, gram.1));
        assert_eq!(flops(Algorithm::Svd).1, vec![8.0 * 32.0 * 64.0 + 20.0 * 512.0]);
    }

    #[test]
    fn a_parameter_without_a_rule_is_named() {
        let error = with(|config| config.rules.truncate(1)).unwrap_err().to_string();
        assert!(error.contains("`model.embed.weight` (role embedding, shape [100, 8])"), "{error}");
    }

    #[test]
    fn a_rule_without_a_parameter_says_why() {
        let unused = |rule: Rule, at: usize| {
            with(|config| config.rules.insert(at, rule.clone())).unwrap_err().to_string()
        };
        let shadowed = unused(adamw(&[RoleWord::Expert], &[]), 1);
        assert!(shadowed.contains("rules[1]") && shadowed.contains("rules[0] comes first"));
        let role = unused(adamw(&[RoleWord::Router], &[]), 0);
        assert!(role.contains("roles are embedding, expert, matrix, vector"), "{role}");
        let part = unused(adamw(&[], &["attn"]), 0);
        assert!(part.contains("use `*attn*` to match `model.layers.0.attn.qkv.weight`"), "{part}");
        let slip = unused(adamw(&[], &["model.layers.*.norn.weight"]), 0);
        assert!(slip.contains("nearest is `model.layers.*.norm.weight`"), "{slip}");
        let apart = unused(adamw(&[RoleWord::Vector], &["*embed*"]), 0);
        assert!(apart.contains("match different parameters"), "{apart}");
    }

    #[test]
    fn muon_needs_matrices() {
        let error = with(|config| {
            config.rules[0].matches = Match::default();
            config.rules.truncate(1);
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`model.layers.0.norm.weight`, whose shape is [8]"), "{error}");
        let none = |require_muon| {
            with(|config| {
                config.rules.remove(0);
                config.require_muon = require_muon;
            })
        };
        assert!(none(true).unwrap_err().to_string().contains("role matrix"));
        assert!(none(false).is_ok());
    }
}
