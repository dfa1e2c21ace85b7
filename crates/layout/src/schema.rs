//! Logical tensors: what a model's parameters are called, shaped and meant for.
//!
//! A logical tensor is the tensor of the published checkpoint (one per expert, `q_proj` apart
//! from `k_proj`), because that is what users name, what optimizer rules match and what a
//! checkpoint stores. Where the engine wants one fused matrix (q, k and v; gate and up; all
//! experts of a layer) the members are declared one after another with `fused`, and the flat
//! layout keeps them adjacent, so that one view spans them all.

use std::collections::HashSet;
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LayoutError;

/// The purpose of a parameter; optimizer rules and checkpoints match on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A hidden weight matrix `[out, in]`.
    Matrix,
    /// A table looked up by index: token or position embedding `[count, width]`.
    Embedding,
    /// The output projection `[vocabulary, width]` when it is not the token embedding.
    Head,
    /// Norm gains, biases: anything of one dimension.
    Vector,
    /// A router matrix `[experts, width]`.
    Router,
    /// One expert's matrix `[out, in]`, number `index` of `of` in its layer.
    Expert { index: u32, of: u32 },
}

impl Role {
    /// The role without the number of an expert.
    pub fn kind(self) -> RoleWord {
        match self {
            Role::Matrix => RoleWord::Matrix,
            Role::Embedding => RoleWord::Embedding,
            Role::Head => RoleWord::Head,
            Role::Vector => RoleWord::Vector,
            Role::Router => RoleWord::Router,
            Role::Expert { .. } => RoleWord::Expert,
        }
    }

    /// The word by which configs and listings call this role.
    pub fn word(self) -> &'static str {
        self.kind().word()
    }
}

/// A role, as configs name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoleWord {
    /// A hidden weight matrix.
    Matrix,
    /// A token or position embedding.
    Embedding,
    /// The output projection, where it is not the token embedding.
    Head,
    /// Norm gains and biases.
    Vector,
    /// The matrix that scores experts.
    Router,
    /// A matrix of one expert.
    Expert,
}

impl RoleWord {
    fn word(self) -> &'static str {
        match self {
            RoleWord::Matrix => "matrix",
            RoleWord::Embedding => "embedding",
            RoleWord::Head => "head",
            RoleWord::Vector => "vector",
            RoleWord::Router => "router",
            RoleWord::Expert => "expert",
        }
    }
}

/// A true matrix inside a tensor that was published fused: rows of its first axis.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    pub label: String,
    pub rows: Range<usize>,
}

/// One named parameter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogicalTensor {
    /// The name in the published checkpoint of the family.
    pub name: String,
    /// Extent per axis, outermost first; a matrix is `[out, in]`.
    pub shape: Vec<usize>,
    pub role: Role,
    /// The true matrices of a tensor published fused, tiling its rows; empty: it is one.
    pub parts: Vec<Part>,
    /// The published file holds the transpose (`[in, out]`, as GPT-2's `Conv1D` does).
    pub published_transposed: bool,
    /// Stored directly after the previous tensor, so that one view spans both.
    pub fused: bool,
}

impl LogicalTensor {
    /// A tensor that is one matrix, table or vector of its own.
    pub fn new(name: impl Into<String>, shape: &[usize], role: Role) -> LogicalTensor {
        LogicalTensor {
            name: name.into(),
            shape: shape.to_vec(),
            role,
            parts: Vec::new(),
            published_transposed: false,
            fused: false,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a tensor of no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Extent of the first axis; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements per index of the first axis.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The row ranges of the true matrices inside: the parts, or everything.
    pub fn row_ranges(&self) -> Vec<Range<usize>> {
        if self.parts.is_empty() {
            return std::iter::once(0..self.rows()).collect();
        }
        self.parts.iter().map(|part| part.rows.clone()).collect()
    }
}

/// All parameters of a model in the order the forward pass meets them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Schema {
    pub tensors: Vec<LogicalTensor>,
}

impl Schema {
    /// Checks names and parts.
    ///
    /// # Errors
    /// Two tensors of one name; parts that do not tile their tensor's rows.
    pub fn new(tensors: Vec<LogicalTensor>) -> Result<Schema, LayoutError> {
        let mut names = HashSet::new();
        for tensor in &tensors {
            if !names.insert(tensor.name.as_str()) {
                return Err(LayoutError::DuplicateName { name: tensor.name.clone() });
            }
            let mut covered = 0;
            for part in &tensor.parts {
                if part.rows.start != covered || part.rows.end <= part.rows.start {
                    break;
                }
                covered = part.rows.end;
            }
            if !tensor.parts.is_empty() && covered != tensor.rows() {
                let (name, rows) = (tensor.name.clone(), tensor.rows());
                return Err(LayoutError::Parts { name, covered, rows });
            }
        }
        Ok(Schema { tensors })
    }

    /// The runs along `axis` of tensor `index` that are cut each on its own: the rows of each true
    /// matrix, else the whole extent. A bias directly after a weight has that one's parts.
    pub fn runs(&self, index: usize, axis: usize) -> Vec<Range<usize>> {
        let tensor = &self.tensors[index];
        let extent = tensor.shape.get(axis).copied().unwrap_or(1);
        if axis > 0 {
            return std::iter::once(0..extent).collect();
        }
        let weight = index.checked_sub(1).map(|before| &self.tensors[before]);
        let weight = weight.filter(|weight| {
            let module = tensor.name.strip_suffix(".bias");
            module.is_some() && module == weight.name.strip_suffix(".weight")
        });
        match weight {
            Some(weight) if tensor.parts.is_empty() && weight.rows() == extent => {
                weight.row_ranges()
            }
            _ => tensor.row_ranges(),
        }
    }

    /// Number of elements of all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().map(LogicalTensor::len).sum()
    }

    /// The position of a tensor by name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensors.iter().position(|tensor| tensor.name == name)
    }

    /// BLAKE3 over names, shapes, roles and splits: equal digests mean interchangeable states.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for tensor in &self.tensors {
            hasher.update(format!("{tensor:?}\n").as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_has_one_word() {
        use RoleWord::{Embedding, Expert, Head, Matrix, Router, Vector};
        for role in [Matrix, Embedding, Head, Vector, Router, Expert] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.word());
        }
        assert_eq!(Role::Expert { index: 1, of: 2 }.word(), "expert");
    }

    #[test]
    fn parts_must_tile_the_rows() {
        let mut tensor = LogicalTensor::new("qkv", &[6, 2], Role::Matrix);
        tensor.parts = vec![Part { label: "q".into(), rows: 0..2 }];
        let error = Schema::new(vec![tensor.clone()]).unwrap_err();
        assert_eq!(error, LayoutError::Parts { name: "qkv".into(), covered: 2, rows: 6 });
        tensor.parts.push(Part { label: "kv".into(), rows: 2..6 });
        assert_eq!(Schema::new(vec![tensor]).unwrap().tensors[0].row_ranges(), vec![0..2, 2..6]);
    }

    #[test]
    fn a_name_is_unique() {
        let tensor = LogicalTensor::new("w", &[2], Role::Vector);
        let error = Schema::new(vec![tensor.clone(), tensor]).unwrap_err();
        assert_eq!(error.to_string(), "tensor `w` is declared twice");
    }
}
