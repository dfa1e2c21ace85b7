//! The kernels of a device: modules loaded on first use, kept with the device.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use device::{Arch, Device, DeviceKind, Function, Module};

use super::tuning::Tuning;
use crate::KernelError;
use crate::modules::image;

/// Families of kernels: those of one are compiled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    Gemm,
    NewtonSchulz,
    Memory,
    Optimizer,
    OrderedSum,
}

impl Family {
    pub const fn name(self) -> &'static str {
        match self {
            Family::Gemm => "gemm",
            Family::NewtonSchulz => "newton_schulz",
            Family::Memory => "memory",
            Family::Optimizer => "optimizer",
            Family::OrderedSum => "ordered_sum",
        }
    }
}

/// The kernels of one device; all of a device share what is loaded.
#[derive(Clone)]
pub struct Kernels {
    device: Device,
    arch: Arch,
    multiprocessors: u32,
    tuning: Arc<Tuning>,
    loaded: Arc<Mutex<Loaded>>,
}

#[derive(Default)]
struct Loaded {
    tuning: Option<Arc<Tuning>>,
    modules: HashMap<Family, Module>,
    functions: HashMap<&'static str, Function>,
}

impl Kernels {
    /// # Errors
    /// A host device: its kernels are closures. A tuning table that cannot be read.
    pub fn of(device: &Device) -> Result<Kernels, KernelError> {
        let properties = device.properties();
        let Some(arch) = properties.arch else {
            let message = format!("{} runs no kernels of modules", device.kind());
            return Err(KernelError::Argument { kernel: "modules", message });
        };
        let multiprocessors = properties.multiprocessors.max(1);
        let loaded = device.kept(Mutex::<Loaded>::default);
        let tuning = tuning(&loaded)?;
        Ok(Kernels { device: device.clone(), arch, multiprocessors, tuning, loaded })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn arch(&self) -> Arch {
        self.arch
    }

    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// The measured order of work.
    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The target in the names of the device's images.
    pub fn target(&self) -> String {
        match self.device.kind() {
            DeviceKind::Sim(_) => format!("sim-{}", self.arch),
            DeviceKind::Hip(_) => self.arch.to_string(),
            _ => "cuda".to_owned(),
        }
    }

    /// A kernel; its module is loaded on the first call.
    ///
    /// # Errors
    /// There is no image for the device, or it does not load.
    pub fn function(&self, family: Family, name: &'static str) -> Result<Function, KernelError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = loaded.functions.get(name) {
            return Ok(function.clone());
        }
        let module = match loaded.modules.get(&family) {
            Some(module) => module.clone(),
            None => {
                let image = image(&self.target(), family.name())?;
                let module = self.device.load_module(&image)?;
                loaded.modules.insert(family, module.clone());
                module
            }
        };
        let function = module.function(name)?;
        loaded.functions.insert(name, function.clone());
        Ok(function)
    }
}

/// The tuning table, read once.
fn tuning(loaded: &Mutex<Loaded>) -> Result<Arc<Tuning>, KernelError> {
    let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tuning) = &loaded.tuning {
        return Ok(tuning.clone());
    }
    let tuning = Arc::new(Tuning::from_environment()?);
    Ok(loaded.tuning.insert(tuning).clone())
}
