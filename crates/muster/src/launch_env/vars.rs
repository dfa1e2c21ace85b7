//! An environment as text, and what was read of it.

use std::collections::BTreeMap;
use std::fmt;

use super::Launcher;
use super::error::LaunchError;

/// A variable and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Var {
    pub name: &'static str,
    pub value: String,
}

/// Longer values are cut where they are shown.
const SHOWN: usize = 60;

impl fmt::Display for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = self.value.floor_char_boundary(SHOWN);
        let more = if cut < self.value.len() { "…" } else { "" };
        write!(f, "{}={}{more}", self.name, &self.value[..cut])
    }
}

/// Variables in words.
pub fn list(vars: &[Var]) -> String {
    vars.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// An environment. A variable without a value counts as none.
#[derive(Debug, Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// That of this process; what is not text is nobody's.
    pub fn of_this_process() -> Env {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Env(std::env::vars_os().filter_map(text).collect())
    }

    /// The variable of this name.
    pub fn var(&self, name: &'static str) -> Option<Var> {
        let value = self.0.get(name).filter(|value| !value.is_empty())?;
        Some(Var { name, value: value.clone() })
    }

    /// The first of these that is set.
    pub fn first(&self, names: &[&'static str]) -> Option<Var> {
        names.iter().find_map(|name| self.var(name))
    }

    /// The first of these that is set, as a number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(
        &self,
        launcher: Launcher,
        names: &[&'static str],
    ) -> Result<Option<(usize, Var)>, LaunchError> {
        let Some(var) = self.first(names) else { return Ok(None) };
        match var.value.parse() {
            Ok(number) => Ok(Some((number, var))),
            Err(_) => Err(LaunchError::NoNumber { launcher, var }),
        }
    }

    /// Two numbers of which the first counts up to the second: neither, or both.
    ///
    /// # Errors
    /// Only one of them is set; one is no number; the first is not below the second.
    pub fn index(
        &self,
        launcher: Launcher,
        index: &'static str,
        count: &[&'static str],
    ) -> Result<Option<Task>, LaunchError> {
        let half = |set: Var, missing: &'static str| LaunchError::Half {
            launcher,
            set: vec![set],
            missing: vec![missing],
        };
        match (self.number(launcher, &[index])?, self.number(launcher, count)?) {
            (None, None) => Ok(None),
            (Some((_, set)), None) => Err(half(set, count[0])),
            (None, Some((_, set))) => Err(half(set, index)),
            (Some((index, var)), Some((count, of_all))) if index >= count => {
                let _ = index;
                Err(LaunchError::Beyond { launcher, var, of_all })
            }
            (Some((index, var)), Some((count, of_all))) => {
                Ok(Some(Task { index, count, vars: vec![var, of_all] }))
            }
        }
    }
}

/// One of several, and the variables that say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub index: usize,
    pub count: usize,
    pub vars: Vec<Var>,
}

#[cfg(test)]
impl Env {
    /// From `NAME=value` lines.
    pub fn of(lines: &str) -> Env {
        let lines = lines.lines().filter_map(|line| line.trim().split_once('='));
        Env(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}
