//! Sets of parameters, by role and by name.

use layout::{LogicalTensor, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::glob;

/// A set of parameters: those that satisfy every key given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Match {
    /// The parameter has one of these roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<RoleWord>>,
    /// The parameter's name matches one of these patterns: `*` stands for any characters, `?` for
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
}

/// The use of a parameter.
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
    fn accepts(self, role: Role) -> bool {
        matches!(
            (self, role),
            (RoleWord::Matrix, Role::Matrix)
                | (RoleWord::Embedding, Role::Embedding)
                | (RoleWord::Head, Role::Head)
                | (RoleWord::Vector, Role::Vector)
                | (RoleWord::Router, Role::Router)
                | (RoleWord::Expert, Role::Expert { .. })
        )
    }
}

impl Match {
    pub(crate) fn accepts(&self, tensor: &LogicalTensor) -> bool {
        self.role_accepts(tensor) && self.name_accepts(tensor)
    }

    pub(crate) fn role_accepts(&self, tensor: &LogicalTensor) -> bool {
        let has = |roles: &Vec<RoleWord>| roles.iter().any(|role| role.accepts(tensor.role));
        self.roles.as_ref().is_none_or(has)
    }

    pub(crate) fn name_accepts(&self, tensor: &LogicalTensor) -> bool {
        let has = |names: &Vec<String>| names.iter().any(|name| glob::matches(name, &tensor.name));
        self.names.as_ref().is_none_or(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn role_words_are_those_of_the_layout() {
        let all = [
            (RoleWord::Matrix, Role::Matrix),
            (RoleWord::Embedding, Role::Embedding),
            (RoleWord::Head, Role::Head),
            (RoleWord::Vector, Role::Vector),
            (RoleWord::Router, Role::Router),
            (RoleWord::Expert, Role::Expert { index: 1, of: 2 }),
        ];
        assert_eq!(all.map(|(_, role)| role.word()), Role::WORDS);
        for (word, role) in all {
            assert_eq!(serde_json::to_value(word).unwrap(), role.word());
            assert_eq!(all.map(|(_, other)| word.accepts(other)), all.map(|(w, _)| w == word));
        }
    }
}
