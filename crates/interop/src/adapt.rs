//! Rules that turn the tensors of one model into those of another: only those that are asked for,
//! each told in words.
//!
//! ```text
//! vocabulary  rows more are zero, rows less are left out
//! tied        a head of its own begins as the embedding; one that is not needed is left out
//! experts     k for each one, or k slices of each one; one for each k, their mean; of a dense MLP
//!             as many as wanted, with routers drawn anew
//! layers      those of a range
//! ```

use layout::normal::mix;
use layout::region::elements;
use layout::{LogicalTensor, Role};

use crate::Error;
use crate::find::{Find, expert_of, refused};
use crate::source::Source;

/// A tensor of the model: as it is there, or made by a rule.
///
/// # Errors
/// It is there in another shape, and no rule that is allowed mends it.
pub(crate) fn found(find: &Find, tensor: &LogicalTensor) -> Result<Option<Found>, Error> {
    let exact = find.tensor(tensor);
    if let Ok(Some(source)) = exact {
        return Ok(Some((source, None)));
    }
    // A misfit that no rule mends is told as it is.
    match adapt(find, tensor)? {
        Some(found) => Ok(Some(found)),
        None => exact.map(|source| source.map(|source| (source, None))),
    }
}

/// A tensor made by a rule; none where no rule is about it.
///
/// # Errors
/// A rule would, and is not allowed; numbers that no rule is about.
fn adapt(find: &Find, tensor: &LogicalTensor) -> Result<Option<Found>, Error> {
    let is_table = tensor.shape.first() == Some(&find.vocabulary);
    match tensor.role {
        Role::Embedding if is_table => vocabulary(find, tensor, &tensor.name),
        Role::Head => match find.there(&tensor.name) {
            Some(_) => vocabulary(find, tensor, &tensor.name),
            None => tied(find, tensor),
        },
        Role::Router => router(find, &tensor.name, &tensor.shape),
        Role::Expert { of, .. } => expert(find, tensor, of as usize),
        _ => Ok(None),
    }
}

/// A tensor, and what a rule did to it, in words.
type Found = (Source, Option<String>);

/// Refuses what a rule would do, unless it may.
fn allow(is_allowed: bool, name: &str, what: String, rule: &str) -> Result<(), Error> {
    if is_allowed {
        return Ok(());
    }
    Err(refused(name.to_owned(), format!("{what}; --allow {rule} would do that")))
}

/// A table of other rows.
fn vocabulary(find: &Find, tensor: &LogicalTensor, from: &str) -> Result<Option<Found>, Error> {
    let Some((name, _, there)) = find.there(from) else { return Ok(None) };
    let ([rows, columns], [rows_there, columns_there]) = (&tensor.shape[..], there) else {
        return Ok(None);
    };
    if columns != columns_there || rows == rows_there {
        return Ok(None);
    }
    let kept = rows.min(rows_there);
    let what = match rows > rows_there {
        true => format!("vocabulary: {} rows more, zero", rows - rows_there),
        false => format!("vocabulary: {} rows left out", rows_there - rows),
    };
    let told = format!("is {there:?} there, and {:?} is wanted ({what})", tensor.shape);
    allow(find.rules.vocabulary, &tensor.name, told, "vocabulary")?;
    let kept = Source::Stretch { name, first: 0, len: kept * columns };
    let source = match rows.saturating_sub(*rows_there) * columns {
        0 => kept,
        more => Source::Joined(vec![kept, Source::Zeros(more)]),
    };
    Ok(Some((source, Some(what))))
}

/// A head that is the embedding there.
fn tied(find: &Find, tensor: &LogicalTensor) -> Result<Option<Found>, Error> {
    let table = find.shapes.iter().find(|(name, shape)| {
        shape.first() == Some(&find.vocabulary)
            && **name != tensor.name
            && find.there(name).is_some()
    });
    let Some((table, _)) = table else { return Ok(None) };
    let what = "tied: the head begins as the embedding".to_owned();
    let told = format!("is not there, where the head is the embedding `{table}`");
    allow(find.rules.tied, &tensor.name, told, "tied")?;
    let found = match find.whole(table, &tensor.shape, false) {
        Ok(source) => source.map(|source| (source, Some(what))),
        Err(_) => vocabulary(find, tensor, table)?,
    };
    Ok(found)
}

/// How experts are made of others.
enum Change {
    /// This many of each one.
    Copies(usize),
    /// This many slices of each one.
    Slices(usize),
    /// One of so many.
    Mean(usize),
}

impl Change {
    fn words(&self) -> String {
        match self {
            Change::Copies(k) => format!(
                "experts: {k} of each one; so that they compute the same, top_k has to be {k} \
                 times what it was"
            ),
            Change::Slices(k) => format!(
                "experts: {k} slices of each one; so that they compute the same, top_k and \
                 route_scale have to be {k} times what they were"
            ),
            Change::Mean(k) => format!("experts: the mean of {k} each"),
        }
    }
}

/// The width F of an expert, which its matrix back has as columns and the others as rows. Of the
/// other kind of matrix it is the model's.
fn width(shape: &[usize], is_down: bool) -> usize {
    shape.get(usize::from(is_down)).copied().unwrap_or(0)
}

fn expert(find: &Find, tensor: &LogicalTensor, of: usize) -> Result<Option<Found>, Error> {
    let Some((before, number, rest)) = expert_of(&tensor.name) else { return Ok(None) };
    let named = |number: usize| format!("{before}.experts.{number}.{rest}");
    let there = (0..).take_while(|&number| find.there(&named(number)).is_some()).count();
    if there == 0 {
        return upcycled(find, tensor, of);
    }
    let is_down = rest.starts_with("down_proj") || rest.starts_with("w2");
    let shape_there = find.there(&named(0)).map_or(Vec::new(), |(_, _, shape)| shape.to_vec());
    let (ours, theirs) = (width(&tensor.shape, is_down), width(&shape_there, is_down));
    if there == of || width(&tensor.shape, !is_down) != width(&shape_there, !is_down) {
        // As many experts, or a model of another width: no rule is about that.
        return Ok(None);
    }
    let change = match (ours == theirs, of.checked_rem(there), there.checked_rem(of)) {
        (true, Some(0), _) => Change::Copies(of / there),
        (true, _, Some(0)) => Change::Mean(there / of),
        (false, Some(0), _) if ours * (of / there) == theirs => Change::Slices(of / there),
        _ => return Ok(None),
    };
    let what = change.words();
    let told = format!("is one of {of} experts, and there are {there} ({what})");
    allow(find.rules.experts, &tensor.name, told, "experts")?;
    let whole = |number: usize| find.whole(&named(number), &shape_there, false);
    let source = match change {
        Change::Copies(k) => whole(number / k)?,
        Change::Slices(k) => {
            let of = whole(number / k)?;
            of.map(|of| slice(of, &shape_there, is_down, ours, number % k))
        }
        Change::Mean(k) => {
            let all: Result<Vec<_>, Error> = (number * k..(number + 1) * k).map(whole).collect();
            all?.into_iter().collect::<Option<Vec<Source>>>().map(Source::Mean)
        }
    };
    Ok(source.map(|source| (source, Some(what))))
}

/// Slice `number` of an expert's matrix, `width` wide.
fn slice(of: Source, shape: &[usize], is_down: bool, width: usize, number: usize) -> Source {
    let columns = shape.last().copied().unwrap_or(1);
    if is_down {
        let (of, columns_of) = (Box::new(of), number * width..(number + 1) * width);
        return Source::Columns { of, of_columns: columns, columns: columns_of };
    }
    match of {
        Source::Stretch { name, first, .. } => {
            let len = width * columns;
            Source::Stretch { name, first: first + number * len, len }
        }
        // FP8: rows of it, by way of its transpose's columns.
        other => {
            let rows = shape.first().copied().unwrap_or(1);
            let turned = Source::Transposed(Box::new(other), [rows, columns]);
            let columns_of = number * width..(number + 1) * width;
            let of = Box::new(turned);
            let some = Source::Columns { of, of_columns: rows, columns: columns_of };
            Source::Transposed(Box::new(some), [columns, width])
        }
    }
}

/// The names of a dense MLP's matrices, for those of an expert.
const DENSE: [(&str, &str); 4] = [
    ("block_sparse_moe", "mlp"),
    ("w1.", "gate_proj."),
    ("w3.", "up_proj."),
    ("w2.", "down_proj."),
];

/// An expert of a layer that is dense there: a copy of its MLP, or a slice of it.
fn upcycled(find: &Find, tensor: &LogicalTensor, of: usize) -> Result<Option<Found>, Error> {
    let Some((before, number, rest)) = expert_of(&tensor.name) else { return Ok(None) };
    let mut name = format!("{before}.{rest}");
    if find.there(&name).is_none() {
        for (expert, dense) in DENSE {
            name = name.replacen(expert, dense, 1);
        }
    }
    let Some((_, _, shape)) = find.there(&name) else { return Ok(None) };
    let shape = shape.to_vec();
    let is_down = name.contains("down_proj");
    let (ours, theirs) = (width(&tensor.shape, is_down), width(&shape, is_down));
    if width(&tensor.shape, !is_down) != width(&shape, !is_down) {
        return Ok(None);
    }
    let slices = theirs.checked_div(ours).filter(|k| k * ours == theirs && of.is_multiple_of(*k));
    let Some(slices) = slices.filter(|k| *k > 0) else { return Ok(None) };
    let what = match slices {
        1 => "experts: each is the dense MLP".to_owned(),
        k => format!("experts: each is one of {k} slices of the dense MLP"),
    };
    let told = format!("is one of {of} experts, and there is a dense MLP `{name}` ({what})");
    allow(find.rules.experts, &tensor.name, told, "experts")?;
    let whole = find.whole(&name, &shape, false)?;
    let source = whole.map(|of| match slices {
        1 => of,
        k => slice(of, &shape, is_down, ours, number % k),
    });
    Ok(source.map(|source| (source, Some(what))))
}

/// Rows of a router, or elements of its bias: one for each expert.
pub(crate) fn router(find: &Find, name: &str, shape: &[usize]) -> Result<Option<Found>, Error> {
    let experts = shape.first().copied().unwrap_or(0);
    let row = elements(&shape[1..]).unwrap_or(1);
    let Some((there, _, shape_there)) = find.there(name) else {
        if !find.rules.experts {
            return Ok(None);
        }
        let word = name.bytes().fold(find.rules.seed, |key, byte| mix(key ^ u64::from(byte)));
        let (key, std, len) = (mix(word), find.rules.init_std, experts * row);
        return Ok(Some((Source::Normal { key, std, len }, Some("routers: drawn".to_owned()))));
    };
    let of = shape_there.first().copied().unwrap_or(0);
    if of == experts || shape_there.get(1..) != shape.get(1..) || of == 0 || experts == 0 {
        return Ok(None);
    }
    let one =
        |number: usize| Source::Stretch { name: there.clone(), first: number * row, len: row };
    let told = format!("is {shape_there:?} there, and {shape:?} is wanted");
    let parts = match (experts % of, of % experts) {
        (0, _) => (0..experts).map(|expert| one(expert / (experts / of))).collect(),
        (_, 0) => {
            let k = of / experts;
            let mean =
                |expert: usize| Source::Mean((expert * k..(expert + 1) * k).map(one).collect());
            (0..experts).map(mean).collect()
        }
        _ => return Ok(None),
    };
    allow(find.rules.experts, name, told, "experts")?;
    Ok(Some((Source::Joined(parts), Some("routers: a row for each expert".to_owned()))))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use layout::{Dtype, Schema};

    use super::*;
    use crate::convert::tests::{f32s, numbers, read};
    use crate::find::Naming;
    use crate::import::{ImportPlan, plan_import};
    use crate::rules::Rules;
    use crate::{Elements, Origin, Types};

    /// Tensors in memory, whose elements count from a number of their own.
    struct Held(BTreeMap<String, Vec<usize>>);

    fn start(name: &str) -> f32 {
        name.bytes().fold(0, |sum, byte| (sum * 31 + u32::from(byte)) % 5003) as f32
    }

    impl Origin for Held {
        fn path(&self) -> &Path {
            Path::new("held")
        }

        fn names(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }

        fn find(&self, name: &str) -> Option<(Dtype, &[usize])> {
            self.0.get(name).map(|shape| (Dtype::F32, &shape[..]))
        }

        fn elements<'a>(&'a self, name: &'a str) -> Result<Box<dyn Elements + 'a>, Error> {
            let len: usize = self.0[name].iter().product();
            Ok(f32s((0..len).map(|i| start(name) + i as f32)))
        }
    }

    fn held(tensors: &[(&str, &[usize])]) -> Held {
        Held(tensors.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect())
    }

    fn plan<'a>(
        origin: &'a Held,
        tensors: Vec<LogicalTensor>,
        rules: &Rules,
    ) -> Result<ImportPlan<'a>, String> {
        let types = Types { dtype: Dtype::F32, may_round: false };
        let schema = Schema::new(tensors).unwrap();
        let naming = Naming { prefixes: vec![String::new()], block: None };
        plan_import(origin, schema, &[], (&naming, rules), types).map_err(|error| error.to_string())
    }

    fn values(plan: &ImportPlan, name: &str) -> Vec<f32> {
        let state = plan.states.iter().find(|state| state.key.name == name).unwrap();
        numbers(&read(&*plan.elements(state).unwrap(), 5))
    }

    fn experts(of: usize, shape: [usize; 2], which: &str) -> Vec<LogicalTensor> {
        let one = |index: usize| {
            let role = Role::Expert { index: index as u32, of: of as u32 };
            LogicalTensor::new(
                format!("m.layers.0.mlp.experts.{index}.{which}.weight"),
                &shape,
                role,
            )
        };
        (0..of).map(one).collect()
    }

    fn allowed() -> Rules {
        Rules { vocabulary: true, tied: true, experts: true, ..Rules::default() }
    }

    #[test]
    fn tables_are_padded_and_cut() {
        let origin = held(&[("e.weight", &[3, 2])]);
        let table = |rows| vec![LogicalTensor::new("e.weight", &[rows, 2], Role::Embedding)];
        let told = plan(&origin, table(5), &Rules::default()).err().unwrap();
        assert!(
            told.contains("2 rows more, zero") && told.contains("--allow vocabulary"),
            "{told}"
        );
        let first = start("e.weight");
        let padded = values(&plan(&origin, table(5), &allowed()).unwrap(), "e.weight");
        assert_eq!(padded[5..], [first + 5.0, 0.0, 0.0, 0.0, 0.0]);
        let cut = values(&plan(&origin, table(1), &allowed()).unwrap(), "e.weight");
        assert_eq!(cut, [first, first + 1.0]);
        // Another width is mended by no rule.
        let wide = vec![LogicalTensor::new("e.weight", &[5, 4], Role::Embedding)];
        assert!(plan(&origin, wide, &allowed()).err().unwrap().contains("[5, 4] is wanted"));
    }

    #[test]
    fn experts_are_slices_and_means() {
        let name =
            |number: usize, which: &str| format!("m.layers.0.mlp.experts.{number}.{which}.weight");
        let tensors: Vec<(String, Vec<usize>)> = (0..2)
            .flat_map(|e| [(name(e, "up_proj"), vec![4, 3]), (name(e, "down_proj"), vec![3, 4])])
            .collect();
        let origin = Held(tensors.into_iter().collect());
        let up = plan(&origin, experts(4, [2, 3], "up_proj"), &allowed()).unwrap();
        let first = start(&name(1, "up_proj"));
        let wanted: Vec<f32> = (6..12).map(|i| first + i as f32).collect();
        assert_eq!(values(&up, &name(3, "up_proj")), wanted);
        let down = plan(&origin, experts(4, [3, 2], "down_proj"), &allowed()).unwrap();
        let first = start(&name(1, "down_proj"));
        let wanted = [2.0, 3.0, 6.0, 7.0, 10.0, 11.0].map(|i| first + i);
        assert_eq!(values(&down, &name(3, "down_proj")), wanted);
        let mean = plan(&origin, experts(1, [4, 3], "up_proj"), &allowed()).unwrap();
        let middle = (start(&name(0, "up_proj")) + start(&name(1, "up_proj"))) / 2.0;
        assert_eq!(values(&mean, &name(0, "up_proj"))[..2], [middle, middle + 1.0]);
        let told = plan(&origin, experts(4, [2, 3], "up_proj"), &Rules::default()).err().unwrap();
        assert!(
            told.contains("2 slices of each one") && told.contains("--allow experts"),
            "{told}"
        );
        assert!(plan(&origin, experts(3, [4, 3], "up_proj"), &allowed()).is_err());
        // A model of another width is told as that, and as many experts are no matter of a rule.
        for (of, which, shape) in [(4, "up_proj", [2, 6]), (1, "down_proj", [6, 4])] {
            let told = plan(&origin, experts(of, shape, which), &allowed()).err().unwrap();
            assert!(told.contains("nothing there is it"), "{told}");
        }
        let told = plan(&origin, experts(2, [4, 6], "up_proj"), &Rules::default()).err().unwrap();
        assert!(told.contains("[4, 6] is wanted") && !told.contains("--allow"), "{told}");
        let dense = held(&[("m.layers.0.mlp.up_proj.weight", &[4, 3])]);
        assert!(plan(&dense, experts(2, [4, 6], "up_proj"), &allowed()).is_err());
        assert!(plan(&dense, experts(2, [4, 3], "up_proj"), &allowed()).is_ok());
    }

    #[test]
    fn stacked_experts_are_as_many_as_the_models() {
        let origin = held(&[("m.layers.0.mlp.experts.down_proj", &[4, 3, 2])]);
        let name = "m.layers.0.mlp.experts.1.down_proj.weight";
        let four = plan(&origin, experts(4, [3, 2], "down_proj"), &allowed()).unwrap();
        let first = start("m.layers.0.mlp.experts.down_proj") + 6.0;
        assert_eq!(values(&four, name)[0], first);
        for of in [2, 8] {
            let told = plan(&origin, experts(of, [3, 2], "down_proj"), &allowed()).err().unwrap();
            assert!(told.contains("holds 4 experts in one tensor"), "{told}");
        }
    }

    #[test]
    fn routers_follow_their_experts() {
        let origin = held(&[("gate.weight", &[2, 2])]);
        let router =
            |experts: usize| vec![LogicalTensor::new("gate.weight", &[experts, 2], Role::Router)];
        let first = start("gate.weight");
        let doubled = values(&plan(&origin, router(4), &allowed()).unwrap(), "gate.weight");
        assert_eq!(doubled, [0.0, 1.0, 0.0, 1.0, 2.0, 3.0, 2.0, 3.0].map(|i| first + i));
        let mean = values(&plan(&origin, router(1), &allowed()).unwrap(), "gate.weight");
        assert_eq!(mean, [first + 1.0, first + 2.0]);
        let none = held(&[]);
        assert!(plan(&none, router(4), &Rules::default()).is_err());
        let rules = Rules { init_std: 0.5, seed: 3, ..allowed() };
        let drawn = values(&plan(&none, router(4), &rules).unwrap(), "gate.weight");
        assert!(
            drawn.iter().any(|value| *value != drawn[0]) && drawn.iter().all(|v| v.abs() < 4.0)
        );
    }
}
