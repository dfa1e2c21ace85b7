//! How a tensor of a model is found among those of an origin: by itself, in one that holds several,
//! or by a rule that turns another model's into it.

use std::collections::BTreeMap;

use layout::region::elements;
use layout::{Dtype, LogicalTensor, Role, Schema};

use crate::Error;
use crate::nearest::nearest;
use crate::origin::Origin;
use crate::rules::Rules;
use crate::source::Source;

/// How a model's tensors are called there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Naming {
    /// Words that may stand before a name; the first with which it is there counts.
    pub prefixes: Vec<String>,
    /// Rows and columns that share a factor, of FP8 matrices with factors.
    pub block: Option<[usize; 2]>,
}

/// Matrices that some files hold as one, rows after rows.
const FUSED: [(&str, &[&str]); 2] = [
    ("self_attn.qkv_proj", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
];

/// A matrix that some files hold as several of equal rows, each `[outputs, inputs]`, as matrices of
/// such names are everywhere, however the whole is published.
const APART: (&str, [&str; 3]) = ("attn.c_attn", ["attn.q_proj", "attn.k_proj", "attn.v_proj"]);

/// Matrices of all experts that some files hold as one tensor `[E, rows, columns]`.
const STACKED: [(&str, &[&str]); 4] = [
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("gate_up_proj", &["w1", "w3"]),
    ("down_proj", &["down_proj"]),
    ("down_proj", &["w2"]),
];

/// The expert that a name is of: before its number, the number, and after it.
pub(crate) fn expert_of(name: &str) -> Option<(&str, usize, &str)> {
    let (before, rest) = name.split_once(".experts.")?;
    let (number, after) = rest.split_once('.')?;
    Some((before, number.parse().ok()?, after))
}

/// The search for tensors of one model.
pub(crate) struct Find<'a> {
    pub origin: &'a dyn Origin,
    pub naming: &'a Naming,
    pub rules: &'a Rules,
    /// Of the model.
    pub shapes: BTreeMap<&'a str, &'a [usize]>,
    /// Rows of its tables of tokens.
    pub vocabulary: usize,
}

impl<'a> Find<'a> {
    pub fn new(
        origin: &'a dyn Origin,
        naming: &'a Naming,
        rules: &'a Rules,
        schema: &'a Schema,
    ) -> Find<'a> {
        let shapes = schema.tensors.iter().map(|tensor| (&*tensor.name, &*tensor.shape)).collect();
        let first = schema.tensors.first().and_then(|tensor| tensor.shape.first());
        Find { origin, naming, rules, shapes, vocabulary: first.copied().unwrap_or(0) }
    }

    /// The name under which a tensor is there, with its type and shape.
    pub fn there(&self, name: &str) -> Option<(String, Dtype, &[usize])> {
        let name = self.rules.layer_there(name);
        self.naming.prefixes.iter().map(|prefix| format!("{prefix}{name}")).find_map(|name| {
            let (dtype, shape) = self.origin.find(&name)?;
            Some((name, dtype, shape))
        })
    }

    /// A tensor of the model, as it is there: by itself, or a part of another.
    ///
    /// # Errors
    /// It is there in another shape.
    pub fn tensor(&self, tensor: &LogicalTensor) -> Result<Option<Source>, Error> {
        let LogicalTensor { name, shape, published_transposed, .. } = tensor;
        if self.has_other_experts(tensor) {
            // Equal names mean other experts then.
            return Ok(None);
        }
        if let Some(source) = self.whole(name, shape, *published_transposed)? {
            return Ok(Some(source));
        }
        if let Some(source) = self.fused(name, shape)? {
            return Ok(Some(source));
        }
        match self.joined(name, shape)? {
            Some(source) => Ok(Some(source)),
            None => self.stacked(tensor),
        }
    }

    /// A tensor that is there in parts; all of them, or it is not there.
    fn joined(&self, name: &str, shape: &[usize]) -> Result<Option<Source>, Error> {
        let (whole, members) = APART;
        let rows = shape.first().copied().unwrap_or(0);
        if !name.contains(whole) || !rows.is_multiple_of(members.len()) {
            return Ok(None);
        }
        let mut part = shape.to_vec();
        part[0] /= members.len();
        let of = |member: &&str| self.whole(&name.replacen(whole, member, 1), &part, false);
        let parts: Result<Vec<_>, Error> = members.iter().map(of).collect();
        Ok(parts?.into_iter().collect::<Option<Vec<Source>>>().map(Source::Joined))
    }

    /// Whether there are more or fewer experts of a layer there than here.
    fn has_other_experts(&self, tensor: &LogicalTensor) -> bool {
        let Role::Expert { of, .. } = tensor.role else { return false };
        let Some((before, _, rest)) = expert_of(&tensor.name) else { return false };
        let is_there =
            |number: u32| self.there(&format!("{before}.experts.{number}.{rest}")).is_some();
        is_there(0) && (is_there(of) || !is_there(of.saturating_sub(1)))
    }

    /// A tensor that is there by itself.
    ///
    /// # Errors
    /// It has another shape.
    pub fn whole(
        &self,
        name: &str,
        shape: &[usize],
        is_transposed: bool,
    ) -> Result<Option<Source>, Error> {
        let Some((name, dtype, there)) = self.there(name) else { return Ok(None) };
        let turned: Vec<usize> = shape.iter().rev().copied().collect();
        let wanted = if is_transposed { &turned[..] } else { shape };
        if there != wanted {
            return Err(refused(name, format!("is {there:?} there, and {wanted:?} is wanted")));
        }
        let len = elements(there).unwrap_or(0);
        let source = match self.scales(&name, dtype, there)? {
            Some((scales, block)) => {
                let columns = there.last().copied().unwrap_or(1);
                Source::Scaled { name, scales, columns, block }
            }
            None => Source::whole(name, len),
        };
        Ok(Some(match wanted {
            [rows, columns] if is_transposed => {
                Source::Transposed(Box::new(source), [*rows, *columns])
            }
            _ => source,
        }))
    }

    /// The factors of an FP8 matrix.
    fn scales(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Option<(String, [usize; 2])>, Error> {
        let scales = format!("{name}_scale_inv");
        let Some(block) = self.naming.block else { return Ok(None) };
        let Some((found, found_shape)) = self.origin.find(&scales) else {
            if dtype != Dtype::F8E4M3 {
                return Ok(None);
            }
            let reason = format!("is {dtype}, and its factors `{scales}` are not there");
            return Err(refused(name.to_owned(), reason));
        };
        let wanted = match shape {
            [rows, columns] => vec![rows.div_ceil(block[0]), columns.div_ceil(block[1])],
            _ => Vec::new(),
        };
        if dtype != Dtype::F8E4M3 || found != Dtype::F32 || found_shape != wanted {
            let reason = format!(
                "is {dtype} {shape:?} with factors {found} {found_shape:?}; F8_E4M3 with F32 \
                 {wanted:?} is read"
            );
            return Err(refused(name.to_owned(), reason));
        }
        Ok(Some((scales, block)))
    }

    /// Rows of a tensor that holds several.
    fn fused(&self, name: &str, shape: &[usize]) -> Result<Option<Source>, Error> {
        for (whole, members) in FUSED {
            let Some(member) = members.iter().find(|member| name.contains(**member)) else {
                continue;
            };
            let Some(there) = self.there(&name.replacen(member, whole, 1)) else { continue };
            let of = |other: &&str| {
                let shape = self.shapes.get(&*name.replacen(member, other, 1));
                shape.and_then(|shape| elements(shape)).unwrap_or(0)
            };
            let first = members.iter().take_while(|other| other != &member).map(of).sum();
            let all: usize = members.iter().map(of).sum();
            return part(there, first, shape, all).map(Some);
        }
        Ok(None)
    }

    /// An expert's matrix of a tensor that holds those of all.
    fn stacked(&self, tensor: &LogicalTensor) -> Result<Option<Source>, Error> {
        let (name, shape) = (&tensor.name, &tensor.shape);
        let Role::Expert { of, .. } = tensor.role else { return Ok(None) };
        let Some((before, expert, rest)) = expert_of(name) else { return Ok(None) };
        let Some(own) = rest.strip_suffix(".weight") else { return Ok(None) };
        for (whole, members) in STACKED {
            let Some(number) = members.iter().position(|member| *member == own) else { continue };
            let Some(there) = self.there(&format!("{before}.experts.{whole}")) else { continue };
            let experts = there.2.first().copied().unwrap_or(0);
            if experts != of as usize {
                let reason = format!(
                    "holds {experts} experts in one tensor, and the model has {of}; import it with \
                     as many, and make a model with others of that"
                );
                return Err(refused(there.0, reason));
            }
            let size = elements(shape).unwrap_or(0);
            let first = (expert * members.len() + number) * size;
            return part(there, first, shape, experts * members.len() * size).map(Some);
        }
        Ok(None)
    }

    /// That tensors are not there.
    pub fn missing(&self, missing: &[String]) -> Error {
        const TOLD: usize = 4;
        let names = self.origin.names();
        let near = missing
            .first()
            .and_then(|first| nearest(first, names.iter().map(String::as_str)).map(str::to_owned));
        let near = near.map_or_else(String::new, |near| format!("; the nearest is `{near}`"));
        let told = missing.iter().take(TOLD).map(|name| format!("`{name}`"));
        let told = told.collect::<Vec<_>>().join(", ");
        let more = match missing.len().saturating_sub(TOLD) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let reason = format!("the model has {told}{more}, and nothing there is it{near}");
        Error::refused(self.origin.path(), reason)
    }
}

/// Elements of a tensor that has so many in all.
fn part(
    (name, _, there): (String, Dtype, &[usize]),
    first: usize,
    shape: &[usize],
    all: usize,
) -> Result<Source, Error> {
    let len = elements(shape).unwrap_or(0);
    let ends_alike = there.last() == shape.last();
    if elements(there) != Some(all) || first + len > all || !ends_alike {
        return Err(refused(name, format!("is {there:?}, of which {shape:?} is no part")));
    }
    Ok(Source::Stretch { name, first, len })
}

pub(crate) fn refused(name: String, reason: String) -> Error {
    Error::Tensor { name, reason }
}
