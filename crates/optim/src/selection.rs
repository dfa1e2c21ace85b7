//! Sets of parameters, by role and by name.

use layout::LogicalTensor;
pub use layout::RoleWord;
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

impl Match {
    pub(crate) fn accepts(&self, tensor: &LogicalTensor) -> bool {
        self.role_accepts(tensor) && self.name_accepts(tensor)
    }

    pub(crate) fn role_accepts(&self, tensor: &LogicalTensor) -> bool {
        let has = |roles: &Vec<RoleWord>| roles.iter().any(|role| *role == tensor.role.kind());
        self.roles.as_ref().is_none_or(has)
    }

    pub(crate) fn name_accepts(&self, tensor: &LogicalTensor) -> bool {
        let has = |names: &Vec<String>| names.iter().any(|name| glob::matches(name, &tensor.name));
        self.names.as_ref().is_none_or(has)
    }
}
