//! NVIDIA devices, through the CUDA driver.
//!
//! Of `cudarc` this uses the types and the constants. Its functions are not called: they panic
//! where a symbol is missing, and return enums, which a code of a newer driver is not a value of.

use std::ffi::{c_char, c_void};

use cudarc::driver::sys;
use libloading::Library;

use super::library::Wanted;
use super::table::{CUDA, Common, CudaOnly, OWN, Refusal};
use super::{Gpu, Vendor, properties};
use crate::driver::Properties;
use crate::vendor::{Attribute, COMPUTE_CAPABILITY, FUNCTION_MAX_DYNAMIC_SHARED};
use crate::{Arch, DeviceError, DeviceKind, Grid};

pub(crate) struct Cuda {
    table: CudaOnly,
    device: i32,
    context: u64,
}

fn wanted(ordinal: u32) -> Wanted {
    Wanted {
        device: DeviceKind::Cuda(ordinal),
        library: "the CUDA driver",
        // The driver's own name first: the second may be a toolkit's stub.
        candidates: ["libcuda.so.1", "libcuda.so"].map(str::to_owned).into(),
        install: "install NVIDIA's driver, version 580 or later, which brings it",
    }
}

/// The driver's entry points, and the number that it knows the device by.
fn find(ordinal: u32) -> Result<(Common, CudaOnly, i32), DeviceError> {
    let wanted = wanted(ordinal);
    let (library, name) = wanted.open()?;
    let lacks = |symbol| wanted.lacks(name, symbol);
    // SAFETY: the types are those of cuda.h.
    let common = unsafe { Common::load(&library, CUDA) }.map_err(lacks)?;
    // SAFETY: as above.
    let table = unsafe { CudaOnly::load(&library, OWN) }.map_err(lacks)?;
    // Drivers are not made to be closed again.
    std::mem::forget::<Library>(library);
    let kind = DeviceKind::Cuda(ordinal);
    let name = |code| error_name(&table, code);
    let device =
        super::start(&common, kind, ordinal, "; CUDA_VISIBLE_DEVICES may hide some", name)?;
    Ok((common, table, device))
}

/// As [`Properties::bus`], without a context.
///
/// # Errors
/// The library, a symbol or the device is missing.
pub(crate) fn bus(ordinal: u32) -> Result<String, DeviceError> {
    let (common, table, device) = find(ordinal)?;
    super::bus(&common, device).map_err(|refusal| {
        super::driver_error(DeviceKind::Cuda(ordinal), refusal, |code| error_name(&table, code))
    })
}

/// # Errors
/// The library, a symbol or the device is missing; a device without kernels.
pub(crate) fn open(ordinal: u32) -> Result<Gpu<Cuda>, DeviceError> {
    let (common, table, device) = find(ordinal)?;
    let kind = DeviceKind::Cuda(ordinal);
    let name = |code| error_name(&table, code);
    let properties = properties(&common, kind, device, Attribute::cuda, version, name)?;
    let properties = with_arch(properties, &common, kind, device, name)?;
    let mut context = 0;
    // SAFETY: `context` is written; the device was found.
    let retained = unsafe { table.context_retain(&raw mut context, device) };
    retained.map_err(|refusal| super::driver_error(kind, refusal, name))?;
    Gpu::new(kind, common, Cuda { table, device, context }, properties)
}

fn with_arch(
    mut properties: Properties,
    common: &Common,
    kind: DeviceKind,
    device: i32,
    name: impl Fn(i32) -> String,
) -> Result<Properties, DeviceError> {
    let mut capability = [0; 2];
    for (value, attribute) in capability.iter_mut().zip(COMPUTE_CAPABILITY) {
        // SAFETY: `value` is written.
        let told = unsafe { common.device_attribute(value, attribute, device) };
        told.map_err(|refusal| super::driver_error(kind, refusal, &name))?;
    }
    let [major, minor] = capability;
    properties.arch = Arch::of_compute_capability(major, minor);
    match properties.arch {
        Some(_) => Ok(properties),
        None => Err(DeviceError::NoKernels {
            device: kind,
            name: properties.name,
            found: format!("compute capability {major}.{minor}; 8.0 is the least"),
        }),
    }
}

fn version(version: i32) -> String {
    format!("CUDA {}.{}", version / 1000, version % 1000 / 10)
}

fn error_name(table: &CudaOnly, code: i32) -> String {
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: `name` is set to a constant string, or left alone for an unknown code.
    let known = unsafe { table.error_name(code, &raw mut name) };
    super::constant_text(known.is_ok().then_some(name), "an error that the driver does not name")
}

impl Vendor for Cuda {
    fn enter(&self) -> Result<(), Refusal> {
        // SAFETY: the primary context, retained until `close`.
        unsafe { self.table.context_set(self.context) }
    }

    fn close(&self) {
        // SAFETY: retained once, in `open`.
        let _ = unsafe { self.table.context_release(self.device) };
    }

    fn error_name(&self, code: i32) -> String {
        error_name(&self.table, code)
    }

    fn allow_shared(&self, function: u64, bytes: u32) -> Result<(), Refusal> {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: a function of a loaded module.
        unsafe { self.table.function_set(function, FUNCTION_MAX_DYNAMIC_SHARED, bytes) }
    }

    fn clusters_together(&self, function: u64, grid: &Grid) -> Result<u32, Refusal> {
        let mut attributes = attributes(grid);
        if grid.blocks_per_cluster() == 1 {
            // Without this attribute the driver counts none.
            attributes.push(cluster_attribute(grid));
        }
        let config = config(grid, 0, &mut attributes);
        let config = (&raw const config).cast::<c_void>();
        let mut clusters = 0;
        // SAFETY: the config and what it points to live until the call returns; a function of a
        // loaded module.
        unsafe { self.table.clusters_together(&raw mut clusters, function, config) }?;
        Ok(u32::try_from(clusters).unwrap_or(0))
    }

    unsafe fn launch(
        &self,
        stream: u64,
        function: u64,
        grid: &Grid,
        params: &mut [*mut c_void],
    ) -> Result<(), Refusal> {
        let mut attributes = attributes(grid);
        let config = config(grid, stream, &mut attributes);
        let config = (&raw const config).cast::<c_void>();
        // SAFETY: the config and what it points to live until the call returns; the caller vouches
        // for the rest.
        unsafe { self.table.launch(config, function, params.as_mut_ptr(), std::ptr::null_mut()) }
    }
}

fn config(
    grid: &Grid,
    stream: u64,
    attributes: &mut [sys::CUlaunchAttribute],
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid.grid[0],
        gridDimY: grid.grid[1],
        gridDimZ: grid.grid[2],
        blockDimX: grid.block[0],
        blockDimY: grid.block[1],
        blockDimZ: grid.block[2],
        sharedMemBytes: grid.shared_bytes,
        hStream: stream as sys::CUstream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

type Id = sys::CUlaunchAttributeID;

fn attribute(id: Id, value: sys::CUlaunchAttributeValue) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

fn cluster_attribute(grid: &Grid) -> sys::CUlaunchAttribute {
    let [x, y, z] = grid.cluster;
    let extents = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
    let value = sys::CUlaunchAttributeValue { clusterDim: extents };
    attribute(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, value)
}

/// The attributes of a launch beside its extents.
fn attributes(grid: &Grid) -> Vec<sys::CUlaunchAttribute> {
    let mut attributes = Vec::new();
    if grid.blocks_per_cluster() > 1 {
        attributes.push(cluster_attribute(grid));
    }
    if grid.early {
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        attributes
            .push(attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, value));
    }
    if grid.together {
        let value = sys::CUlaunchAttributeValue { cooperative: 1 };
        attributes.push(attribute(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, value));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_said_as_people_do() {
        assert_eq!(version(13_000), "CUDA 13.0");
        assert_eq!(version(12_080), "CUDA 12.8");
    }
}
