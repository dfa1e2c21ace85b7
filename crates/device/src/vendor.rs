//! The two vendors' numbers behind one set of names.
//!
//! CUDA and HIP agree in most error codes and flags and in hardly any attribute; each is written
//! once, here, in two columns.

/// The kind of failure behind a driver's error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    InvalidValue,
    OutOfMemory,
    NotInitialized,
    NoDevice,
    InvalidDevice,
    InvalidImage,
    InvalidContext,
    NoBinaryForDevice,
    InvalidHandle,
    NotFound,
    NotReady,
    IllegalAddress,
    OutOfResources,
    LaunchFailed,
    Capture,
    OldDriver,
    Other,
}

/// Code, its meaning; where both vendors have it, they agree.
const CODES: &[(i32, Failure)] = &[
    (1, Failure::InvalidValue),
    (2, Failure::OutOfMemory),
    (3, Failure::NotInitialized),
    (35, Failure::OldDriver),
    (100, Failure::NoDevice),
    (101, Failure::InvalidDevice),
    (200, Failure::InvalidImage),
    (201, Failure::InvalidContext),
    (209, Failure::NoBinaryForDevice),
    (218, Failure::InvalidImage),
    (222, Failure::OldDriver),
    (400, Failure::InvalidHandle),
    (500, Failure::NotFound),
    (600, Failure::NotReady),
    (700, Failure::IllegalAddress),
    (701, Failure::OutOfResources),
    (719, Failure::LaunchFailed),
    (803, Failure::OldDriver),
    (900, Failure::Capture),
    (901, Failure::Capture),
    (902, Failure::Capture),
    (903, Failure::Capture),
    (904, Failure::Capture),
    (905, Failure::Capture),
    (906, Failure::Capture),
    (907, Failure::Capture),
    (908, Failure::Capture),
];

impl Failure {
    pub(crate) fn of(code: i32) -> Failure {
        CODES.iter().find(|(known, _)| *known == code).map_or(Failure::Other, |&(_, it)| it)
    }

    /// The device does no more work in this process, as far as a wait can tell.
    pub(crate) const fn is_final(self) -> bool {
        matches!(self, Failure::IllegalAddress | Failure::LaunchFailed | Failure::Other)
    }

    /// Advice, as the end of a message; empty where nothing general can be said.
    pub(crate) const fn advice(self) -> &'static str {
        match self {
            Failure::OutOfMemory => "; device memory is full: lower the batch or the model",
            Failure::NoBinaryForDevice => "; the module holds no code for this device",
            Failure::OldDriver => "; the driver is older than the module: update the driver",
            Failure::IllegalAddress | Failure::LaunchFailed => {
                "; a kernel failed, and the device can do no more work in this process"
            }
            Failure::OutOfResources => "; the kernel needs more registers than a block may have",
            Failure::Capture => "; that cannot be part of a captured graph",
            _ => "",
        }
    }
}

/// Attributes that a device is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    Multiprocessors,
    L2Bytes,
    SharedBytesPerBlock,
    ClockKhz,
}

impl Attribute {
    const fn columns(self) -> (i32, i32) {
        match self {
            //                                      CUDA, HIP
            Attribute::Multiprocessors => (16, 63),
            Attribute::L2Bytes => (38, 19),
            // CUDA: with the opt-in that a function's attribute gives.
            Attribute::SharedBytesPerBlock => (97, 74),
            Attribute::ClockKhz => (13, 5),
        }
    }

    pub(crate) const fn cuda(self) -> i32 {
        self.columns().0
    }

    pub(crate) const fn hip(self) -> i32 {
        self.columns().1
    }
}

/// CUDA's attributes for the compute capability; HIP names its architectures in words.
pub(crate) const COMPUTE_CAPABILITY: [i32; 2] = [75, 76];

/// Flags and function attributes that have the same value at both vendors.
pub(crate) const STREAM_NON_BLOCKING: u32 = 1;
pub(crate) const EVENT_DEFAULT: u32 = 0;
/// The capturing thread may allocate and free; other threads are not concerned.
pub(crate) const CAPTURE_RELAXED: i32 = 2;
pub(crate) const FUNCTION_MAX_THREADS: i32 = 0;
pub(crate) const FUNCTION_MAX_DYNAMIC_SHARED: i32 = 8;

#[cfg(test)]
mod tests {
    use cudarc::driver::sys;

    use super::*;

    /// CUDA's column against the numbers of a binding that is generated from its header.
    #[test]
    fn the_cuda_column_is_that_of_the_header() {
        use sys::CUdevice_attribute_enum as Device;
        use sys::CUfunction_attribute_enum as Function;
        let pairs = [
            (Attribute::Multiprocessors.cuda(), Device::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            (Attribute::L2Bytes.cuda(), Device::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE),
            (
                Attribute::SharedBytesPerBlock.cuda(),
                Device::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            ),
            (Attribute::ClockKhz.cuda(), Device::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
            (COMPUTE_CAPABILITY[0], Device::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            (COMPUTE_CAPABILITY[1], Device::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs as i32, "{theirs:?}");
        }
        let threads = Function::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
        assert_eq!(FUNCTION_MAX_THREADS, threads as i32);
        let shared = Function::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        assert_eq!(FUNCTION_MAX_DYNAMIC_SHARED, shared as i32);
        let relaxed = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        assert_eq!(CAPTURE_RELAXED, relaxed as i32);
        let non_blocking = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING;
        assert_eq!(STREAM_NON_BLOCKING, non_blocking as u32);
    }

    #[test]
    fn codes_mean_what_the_header_says() {
        use sys::cudaError_enum as Code;
        let pairs = [
            (Code::CUDA_ERROR_INVALID_VALUE, Failure::InvalidValue),
            (Code::CUDA_ERROR_OUT_OF_MEMORY, Failure::OutOfMemory),
            (Code::CUDA_ERROR_NO_DEVICE, Failure::NoDevice),
            (Code::CUDA_ERROR_INVALID_IMAGE, Failure::InvalidImage),
            (Code::CUDA_ERROR_INVALID_CONTEXT, Failure::InvalidContext),
            (Code::CUDA_ERROR_NO_BINARY_FOR_GPU, Failure::NoBinaryForDevice),
            (Code::CUDA_ERROR_INVALID_PTX, Failure::InvalidImage),
            (Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION, Failure::OldDriver),
            (Code::CUDA_ERROR_INVALID_HANDLE, Failure::InvalidHandle),
            (Code::CUDA_ERROR_NOT_FOUND, Failure::NotFound),
            (Code::CUDA_ERROR_NOT_READY, Failure::NotReady),
            (Code::CUDA_ERROR_ILLEGAL_ADDRESS, Failure::IllegalAddress),
            (Code::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, Failure::OutOfResources),
            (Code::CUDA_ERROR_LAUNCH_FAILED, Failure::LaunchFailed),
            (Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, Failure::OldDriver),
            (Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, Failure::Capture),
            (Code::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, Failure::Capture),
            (Code::CUDA_ERROR_UNKNOWN, Failure::Other),
        ];
        for (code, expected) in pairs {
            assert_eq!(Failure::of(code as i32), expected, "{code:?}");
        }
    }
}
