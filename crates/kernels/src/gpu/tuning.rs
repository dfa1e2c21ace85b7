//! A measured table of what decides speed alone; where it is silent, a cost model decides.
//!
//! ```text
//! # arch   class  group_rows
//! sm_90a   256    12
//! # arch   chain  whether stages that follow each other are one launch
//! sm_90a   chain  off
//! ```
//!
//! The environment variable `MUSTER_TUNING` names the file. No entry changes a bit of any result.

use std::path::Path;

use device::Arch;

use super::arch::Class;
use super::schedule;
use crate::KernelError;

/// Entries of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tuning {
    group_rows: Vec<(Arch, Class, u32)>,
    chains: Vec<(Arch, bool)>,
}

impl Tuning {
    /// The file that `MUSTER_TUNING` names, or no entries.
    ///
    /// # Errors
    /// The file cannot be read, or has a line that is no entry.
    pub fn from_environment() -> Result<Tuning, KernelError> {
        let Some(path) = std::env::var_os("MUSTER_TUNING") else { return Ok(Tuning::default()) };
        let path = Path::new(&path);
        let refused = |message| {
            let message = format!("{} (MUSTER_TUNING): {message}", path.display());
            KernelError::Argument { kernel: "tuning", message }
        };
        let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
        Tuning::parse(&text).map_err(refused)
    }

    /// # Errors
    /// The first line that is no entry.
    pub fn parse(text: &str) -> Result<Tuning, String> {
        let mut tuning = Tuning::default();
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> =
                line.split('#').next().unwrap_or("").split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let refused = || {
                let number = number + 1;
                format!(
                    "line {number} is `{line}`; use `arch class group_rows`: `sm_90a 256 8`, or \
                     `arch chain on|off`: `sm_90a chain off`"
                )
            };
            match words[..] {
                [arch, "chain", word] => {
                    let arch = arch.parse().map_err(|_| refused())?;
                    let on = ["off", "on"].iter().position(|known| *known == word);
                    tuning.chains.push((arch, on.ok_or_else(refused)? == 1));
                }
                _ => tuning.group_rows.push(entry(&words).ok_or_else(refused)?),
            }
        }
        Ok(tuning)
    }

    /// Whether stages of products that follow each other are one launch, where the kernels can.
    pub(crate) fn chains(&self, arch: Arch) -> bool {
        let measured = self.chains.iter().rev().find(|entry| entry.0 == arch);
        matches!(arch, Arch::Sm90a) && measured.is_none_or(|&(_, on)| on)
    }

    /// Rows of units that are visited together.
    pub fn group_rows(&self, arch: Arch, class: Class, multiprocessors: u32) -> u32 {
        let measured =
            self.group_rows.iter().rev().find(|entry| (entry.0, entry.1) == (arch, class));
        let model = || schedule::group_rows(arch, class, multiprocessors);
        measured.map_or_else(model, |&(_, _, rows)| rows)
    }
}

fn entry(words: &[&str]) -> Option<(Arch, Class, u32)> {
    let [arch, class, rows] = words else { return None };
    let class =
        [Class::Small, Class::Large].into_iter().find(|c| c.side().to_string() == *class)?;
    let rows = rows.parse().ok().filter(|&rows| rows > 0)?;
    Some((arch.parse().ok()?, class, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_override_the_model() {
        let tuning = Tuning::parse("# measured\nsm_90a 256 12 # H200\n\nsm_90a 256 13\n").unwrap();
        assert_eq!(tuning.group_rows(Arch::Sm90a, Class::Large, 132), 13);
        assert_eq!(tuning.group_rows(Arch::Sm90a, Class::Small, 132), 11);
        assert_eq!(Tuning::default().group_rows(Arch::Sm90a, Class::Large, 132), 8);
        assert!(tuning.chains(Arch::Sm90a) && !tuning.chains(Arch::Gfx942));
        let tuning = Tuning::parse("sm_90a chain off\nsm_80 chain on\n").unwrap();
        assert!(!tuning.chains(Arch::Sm90a) && !tuning.chains(Arch::Sm80));
    }

    #[test]
    fn what_is_no_entry_is_named() {
        for line in [
            "sm_90a chain maybe",
            "sm_91 chain on",
            "sm_90a 256",
            "sm_91 256 8",
            "sm_90a 64 8",
            "sm_90a 256 0",
            "sm_90a 256 8 9",
        ] {
            let message = Tuning::parse(&format!("\n{line}")).unwrap_err();
            assert!(message.contains("line 2") && message.contains(line), "{message}");
        }
    }
}
