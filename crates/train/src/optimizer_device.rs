//! `ranks.optimizer_device`: where the optimizer is, and what was probably meant by other words.

use device::{Arch, DeviceError, DeviceKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A device for the optimizer alone, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct OptimizerDevice(Option<DeviceKind>);

impl OptimizerDevice {
    /// The device; none where the optimizer is beside the weights.
    pub fn kind(self) -> Option<DeviceKind> {
        self.0
    }

    pub(crate) fn is_beside(&self) -> bool {
        self.0.is_none()
    }
}

impl TryFrom<String> for OptimizerDevice {
    type Error = String;

    fn try_from(word: String) -> Result<OptimizerDevice, String> {
        match word.parse() {
            Ok(DeviceKind::Cpu) => Ok(OptimizerDevice(None)),
            Ok(kind @ (DeviceKind::Sim(_) | DeviceKind::Cuda(_) | DeviceKind::Hip(_))) => {
                Ok(OptimizerDevice(Some(kind)))
            }
            Ok(kind) => {
                Err(refusal(&word, &format!("`{kind}` is no device for the optimizer alone")))
            }
            Err(DeviceError::UnknownArch { got }) if got.is_empty() => {
                Err(refusal(&word, &format!("`{word}` names no architecture")))
            }
            Err(_) => Err(refusal(&word, &format!("`{word}` is unknown"))),
        }
    }
}

/// The message of a refused word: what is wrong, the nearest device, and the choice.
fn refusal(word: &str, what: &str) -> String {
    let archs = Arch::ALL.map(Arch::name).join(", ");
    format!(
        "{what}; use `{}` (there are `cpu`, `cuda:N`, `hip:N` and `sim:ARCH`, ARCH being one of \
         {archs})",
        nearest(word)
    )
}

/// Words for devices, the vendors' own among them.
const WORDS: [(&str, DeviceKind); 7] = [
    ("cpu", DeviceKind::Cpu),
    ("cuda", DeviceKind::Cuda(0)),
    ("hip", DeviceKind::Hip(0)),
    ("sim", DeviceKind::Sim(Arch::Sm90a)),
    ("nvidia", DeviceKind::Cuda(0)),
    ("amd", DeviceKind::Hip(0)),
    ("rocm", DeviceKind::Hip(0)),
];

/// The device that was probably meant: the same in small letters, else by what the words begin
/// with.
fn nearest(word: &str) -> DeviceKind {
    let word = word.trim().to_ascii_lowercase();
    if let Ok(kind) = word.parse()
        && kind != DeviceKind::Guarded
    {
        return kind;
    }
    let (name, detail) = word.split_once(':').unwrap_or((&word, ""));
    let in_common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    // The earlier of two that fit as well.
    let best = |text: &str, of: &[&str]| {
        let fit = |&at: &usize| (in_common(text, of[at]), usize::MAX - at);
        let at = (0..of.len()).max_by_key(fit)?;
        (in_common(text, of[at]) > 0).then_some(at)
    };
    let archs = Arch::ALL.map(Arch::name);
    let arch = |text: &str| best(text, &archs).map(|at| DeviceKind::Sim(Arch::ALL[at]));
    match best(name, &WORDS.map(|(word, _)| word)).map(|at| WORDS[at].1) {
        _ if ["sm_", "gfx"].iter().any(|start| name.starts_with(start)) => {
            arch(name).unwrap_or(DeviceKind::Cpu)
        }
        Some(kind @ DeviceKind::Sim(_)) => arch(detail).unwrap_or(kind),
        Some(kind) => kind,
        None => DeviceKind::Cpu,
    }
}

impl From<OptimizerDevice> for String {
    fn from(device: OptimizerDevice) -> String {
        device.0.unwrap_or(DeviceKind::Cpu).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_names_the_nearest_first() {
        for (word, meant) in [
            ("CPU", "cpu"),
            ("cpu:0", "cpu"),
            ("guarded", "cpu"),
            ("", "cpu"),
            ("gpu", "cpu"),
            ("cuda:x", "cuda:0"),
            ("CUDA:3", "cuda:3"),
            ("cuda:99999999999", "cuda:0"),
            ("nvidia", "cuda:0"),
            ("hip:-1", "hip:0"),
            ("rocm:0", "hip:0"),
            ("sim:", "sim:sm_90a"),
            ("sim:sm_90A", "sim:sm_90a"),
            ("sim:sm_90", "sim:sm_90a"),
            ("sim:sm_12", "sim:sm_100a"),
            ("sim:gfx95", "sim:gfx950"),
            ("sim:hopper", "sim:sm_90a"),
            ("gfx942", "sim:gfx942"),
        ] {
            let refused = OptimizerDevice::try_from(word.to_owned()).unwrap_err();
            assert!(refused.contains(&format!("; use `{meant}` (")), "{word}: {refused}");
            assert!(OptimizerDevice::try_from(meant.to_owned()).is_ok(), "{meant}");
        }
    }
}
