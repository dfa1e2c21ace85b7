//! AMD devices, through the HIP runtime's module interface.

use std::ffi::{c_char, c_void};

use libloading::Library;

use super::library::Wanted;
use super::table::{Common, HIP, HipOnly, OWN, Refusal};
use super::{Gpu, Vendor, properties};
use crate::vendor::Attribute;
use crate::{Arch, DeviceError, DeviceKind, Grid};

type ErrorName = unsafe extern "C" fn(i32) -> *const c_char;

pub(crate) struct Hip {
    table: HipOnly,
    error_name: ErrorName,
    device: i32,
}

/// The one symbol that returns no error code.
pub(crate) const ERROR_NAME: &str = "hipGetErrorName";

fn wanted(ordinal: u32) -> Wanted {
    let names = ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"];
    let mut candidates: Vec<String> = names.map(str::to_owned).into();
    if let Ok(rocm) = std::env::var("ROCM_PATH") {
        candidates.push(format!("{rocm}/lib/libamdhip64.so"));
    }
    Wanted {
        device: DeviceKind::Hip(ordinal),
        library: "the HIP runtime",
        candidates,
        install: "install ROCm 6 or 7 (hip-runtime-amd), or set ROCM_PATH",
    }
}

/// The runtime's entry points, and the number that it knows the device by.
fn find(ordinal: u32) -> Result<(Common, HipOnly, ErrorName, i32), DeviceError> {
    let wanted = wanted(ordinal);
    let (library, name) = wanted.open()?;
    let lacks = |symbol| wanted.lacks(name, symbol);
    // SAFETY: the types are those of hip_runtime_api.h.
    let common = unsafe { Common::load(&library, HIP) }.map_err(lacks)?;
    // SAFETY: as above.
    let table = unsafe { HipOnly::load(&library, OWN) }.map_err(lacks)?;
    // SAFETY: as above.
    let error_name = unsafe { library.get::<ErrorName>(ERROR_NAME) }.map(|found| *found);
    let error_name = error_name.map_err(|_| lacks(ERROR_NAME))?;
    // Drivers are not made to be closed again.
    std::mem::forget::<Library>(library);
    let kind = DeviceKind::Hip(ordinal);
    let name = |code| name_of(error_name, code);
    let hidden = "; HIP_VISIBLE_DEVICES and ROCR_VISIBLE_DEVICES may hide some";
    let device = super::start(&common, kind, ordinal, hidden, name)?;
    Ok((common, table, error_name, device))
}

/// As [`crate::driver::Properties::bus`], and nothing is allocated on the device.
///
/// # Errors
/// The library, a symbol or the device is missing.
pub(crate) fn bus(ordinal: u32) -> Result<String, DeviceError> {
    let (common, _, error_name, device) = find(ordinal)?;
    super::bus(&common, device).map_err(|refusal| {
        super::driver_error(DeviceKind::Hip(ordinal), refusal, |code| name_of(error_name, code))
    })
}

/// # Errors
/// The library, a symbol or the device is missing; a device without kernels.
pub(crate) fn open(ordinal: u32) -> Result<Gpu<Hip>, DeviceError> {
    let (common, table, error_name, device) = find(ordinal)?;
    let kind = DeviceKind::Hip(ordinal);
    let name = |code| name_of(error_name, code);
    let mut properties = properties(&common, kind, device, Attribute::hip, version, name)?;
    let found = arch_name(&table, device);
    let found = found.map_err(|refusal| super::driver_error(kind, refusal, name))?;
    properties.arch = found.parse::<Arch>().ok().filter(|arch| !arch.is_nvidia());
    if properties.arch.is_none() {
        let name = properties.name;
        return Err(DeviceError::NoKernels { device: kind, name, found });
    }
    Gpu::new(kind, common, Hip { table, error_name, device }, properties)
}

fn name_of(error_name: ErrorName, code: i32) -> String {
    // SAFETY: takes any code and returns a constant string.
    let name = unsafe { error_name(code) };
    super::constant_text(Some(name), "an error that the runtime does not name")
}

/// `gfx942:sramecc+:xnack-` and the like.
///
/// Where it stands among the properties depends on the version of the struct, whose size is below
/// 2 KiB in all of them; after the device's own name (256 bytes) no other text begins so.
fn arch_name(table: &HipOnly, device: i32) -> Result<String, Refusal> {
    const NAME_BYTES: usize = 256;
    let mut properties = [0_u64; 1024];
    // SAFETY: the struct is smaller than this buffer.
    unsafe { table.device_properties(properties.as_mut_ptr().cast::<c_void>(), device) }?;
    let bytes: &[u8] = bytemuck::cast_slice(&properties);
    Ok(text_from(&bytes[NAME_BYTES..], b"gfx").unwrap_or_else(|| "no architecture".to_owned()))
}

fn text_from(bytes: &[u8], prefix: &[u8]) -> Option<String> {
    let start = bytes.windows(prefix.len()).position(|window| window == prefix)?;
    let text = bytes[start..].split(|&b| b == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn version(version: i32) -> String {
    let (major, minor, patch) = (version / 10_000_000, version / 100_000 % 100, version % 100_000);
    format!("HIP {major}.{minor}.{patch}")
}

impl Vendor for Hip {
    fn enter(&self) -> Result<(), Refusal> {
        // SAFETY: the device was found; this sets a variable of the thread.
        unsafe { self.table.device_set(self.device) }
    }

    fn close(&self) {}

    fn error_name(&self, code: i32) -> String {
        name_of(self.error_name, code)
    }

    fn allow_shared(&self, _function: u64, _bytes: u32) -> Result<(), Refusal> {
        // All of a compute unit's LDS may be asked for at launch.
        Ok(())
    }

    fn clusters_together(&self, _function: u64, _grid: &Grid) -> Result<u32, Refusal> {
        Ok(1)
    }

    unsafe fn launch(
        &self,
        stream: u64,
        function: u64,
        grid: &Grid,
        params: &mut [*mut c_void],
    ) -> Result<(), Refusal> {
        let ([gx, gy, gz], [bx, by, bz]) = (grid.grid, grid.block);
        let (shared, params) = (grid.shared_bytes, params.as_mut_ptr());
        let extra = std::ptr::null_mut();
        // SAFETY: the caller's.
        unsafe {
            self.table.launch(function, gx, gy, gz, bx, by, bz, shared, stream, params, extra)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_said_as_people_do() {
        assert_eq!(version(60_443_484), "HIP 6.4.43484");
    }

    #[test]
    fn the_architecture_is_found_among_other_bytes() {
        let bytes = b"\x01\x02gf\0\0gfx90a:sramecc+\0gfx942\0";
        assert_eq!(text_from(bytes, b"gfx").unwrap(), "gfx90a:sramecc+");
        assert_eq!(text_from(b"none here", b"gfx"), None);
    }
}
