//! The device of the optimizer, where it is not beside the weights (`ranks.optimizer_device`).

use std::ops::Range;

use device::{Device, DeviceError, DeviceKind};
use kernels::KernelError;
use optim::OptimError;
use train::event::Offload;
use train::{Config, RunPlan, TrainError};

use crate::console::{bytes, plural};
use crate::error::CliError;

/// The device that a config names for the optimizer alone, if it does.
///
/// # Errors
/// It is not there, or its driver is not.
pub fn open(config: &Config) -> Result<Option<Device>, CliError> {
    let Some(kind) = config.ranks.optimizer_device.kind() else { return Ok(None) };
    let opened = Device::new(kind, 1).map_err(|error| {
        let nearest = nearest(kind, &error).map(|near| format!("use `{near}`; "));
        let nearest = nearest.unwrap_or_default();
        CliError::peer(format!(
            "ranks.optimizer_device {kind}: {error}; {nearest}`cpu` needs no device"
        ))
    });
    opened.map(Some)
}

/// The last device of the kind, where it is the number that was wrong.
fn nearest(kind: DeviceKind, error: &DeviceError) -> Option<DeviceKind> {
    let DeviceError::NoDevice { count, .. } = error else { return None };
    let last = count.checked_sub(1)?;
    match kind {
        DeviceKind::Cuda(_) => Some(DeviceKind::Cuda(last)),
        DeviceKind::Hip(_) => Some(DeviceKind::Hip(last)),
        _ => None,
    }
}

/// The kind of device that has to be the same on every rank: its architecture and name, without its
/// number.
pub fn kind(device: &Device) -> String {
    let vendor = match device.kind() {
        DeviceKind::Cuda(_) => "cuda:N",
        DeviceKind::Hip(_) => "hip:N",
        kind => return kind.to_string(),
    };
    let properties = device.properties();
    let arch = properties.arch.map(|arch| format!("{arch} ")).unwrap_or_default();
    format!("{vendor} ({arch}{})", properties.name)
}

/// The memory that `ranks` of this host take of the device, of the one that takes most; they share
/// it.
///
/// # Errors
/// A method that the device has no kernels for; a device that is not there, or has too little
/// memory, with the plan.
pub fn plan(
    config: &Config,
    plan: &RunPlan,
    ranks: Range<usize>,
) -> Result<Option<Offload>, CliError> {
    let Some(device) = open(config)? else { return Ok(None) };
    let kind = device.kind();
    let of_rank = |rank| plan.offload(&device, rank);
    let refused = |error: TrainError| match error {
        // A device's own troubles are told as such.
        TrainError::Optimizer(OptimError::Device(error)) => error.into(),
        TrainError::Optimizer(OptimError::Kernel(error @ KernelError::NoDeviceCode { .. })) => {
            CliError::mistake(format!("ranks.optimizer_device: {error}, or another update"))
        }
        TrainError::Optimizer(error) => CliError::mistake(format!(
            "ranks.optimizer_device {kind}: {error}; Muon on devices needs `storage: bf16` (or \
             f16) and an algorithm of products in every rule, or use `cpu`"
        )),
        other => other.into(),
    };
    let plans: Result<Vec<Offload>, TrainError> = ranks.clone().map(of_rank).collect();
    let plans = plans.map_err(refused)?;
    let needed: u64 = plans.iter().map(Offload::bytes).sum();
    let has = device.properties().memory_bytes;
    let largest = plans.into_iter().max_by_key(Offload::bytes);
    if has == 0 || needed <= has {
        return Ok(largest);
    }
    let items = largest.iter().flat_map(|plan| &plan.memory);
    let items: Vec<String> = items.map(|(what, n)| format!("{what} {}", bytes(*n))).collect();
    Err(CliError::mistake(format!(
        "ranks.optimizer_device {kind}: {} of this host {} {} of it, and it has {} (per rank: {}); \
         use more hosts, or `cpu`",
        plural(ranks.len(), "rank"),
        if ranks.len() == 1 { "needs" } else { "need" },
        bytes(needed),
        bytes(has),
        items.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_device_there_is_nearest() {
        let error = |count| {
            let device = DeviceKind::Cuda(9);
            DeviceError::NoDevice { device, count, advice: "" }
        };
        assert_eq!(nearest(DeviceKind::Cuda(9), &error(2)), Some(DeviceKind::Cuda(1)));
        assert_eq!(nearest(DeviceKind::Hip(2), &error(1)), Some(DeviceKind::Hip(0)));
        assert_eq!(nearest(DeviceKind::Cuda(9), &error(0)), None);
    }
}
