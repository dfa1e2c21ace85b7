//! Memory and streams of the look-alike's GPU, by the vendor's own entry points.

use std::cell::RefCell;
use std::ffi::c_void;

use half::{bf16, f16};
use libloading::Library;
use nccl_rs::{Buffer, DataType, Stream, Vendor};

/// A GPU, current in the thread that opened it; what was allocated is freed with it.
pub struct Gpu {
    library: Library,
    vendor: Vendor,
    memory: RefCell<Vec<u64>>,
    streams: RefCell<Vec<Stream>>,
}

macro_rules! call {
    ($gpu:expr, $cuda:literal | $hip:literal ($($type:ty: $arg:expr),*)) => {{
        let name = if $gpu.vendor == Vendor::Nvidia { $cuda } else { $hip };
        // SAFETY: the types are those of the entry point; pointers are to locals.
        unsafe {
            let function =
                $gpu.library.get::<unsafe extern "C" fn($($type),*) -> i32>(name).unwrap();
            function($($arg),*)
        }
    }};
}

impl Gpu {
    pub fn open(vendor: Vendor) -> Gpu {
        let path = std::env::var("CHILD_DRIVER").unwrap();
        // SAFETY: the library is ours.
        let library = unsafe { Library::new(path) }.unwrap();
        let gpu = Gpu { library, vendor, memory: RefCell::default(), streams: RefCell::default() };
        assert_eq!(call!(gpu, "cuInit" | "hipInit"(u32: 0)), 0);
        if vendor == Vendor::Nvidia {
            let mut context = 0_u64;
            let place = &raw mut context;
            assert_eq!(call!(gpu, "cuDevicePrimaryCtxRetain" | "" (*mut u64: place, i32: 0)), 0);
            assert_eq!(call!(gpu, "cuCtxSetCurrent" | "" (u64: context)), 0);
        }
        gpu
    }

    pub fn stream(&self) -> Stream {
        let mut stream = 0_u64;
        let place = &raw mut stream;
        let code = call!(self, "cuStreamCreate" | "hipStreamCreateWithFlags"
            (*mut u64: place, u32: 1));
        assert_eq!(code, 0);
        self.streams.borrow_mut().push(Stream(stream));
        Stream(stream)
    }

    pub fn alloc(&self, len: usize, dtype: DataType) -> Buffer {
        let mut address = 0_u64;
        let (place, bytes) = (&raw mut address, (len * dtype.bytes()).max(1));
        let code = call!(self, "cuMemAlloc_v2" | "hipMalloc" (*mut u64: place, usize: bytes));
        assert_eq!(code, 0);
        self.memory.borrow_mut().push(address);
        Buffer::new(address, len, dtype)
    }

    pub fn write(&self, to: Buffer, bytes: &[u8], stream: Stream) {
        assert_eq!(to.bytes(), Some(bytes.len() as u64));
        let from = bytes.as_ptr().cast::<c_void>();
        let code = call!(self, "cuMemcpyHtoDAsync_v2" | "hipMemcpyHtoDAsync"
            (u64: to.address, *const c_void: from, usize: bytes.len(), u64: stream.0));
        assert_eq!(code, 0);
    }

    /// Waits for the stream first.
    pub fn read(&self, from: Buffer, stream: Stream) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(from.bytes().unwrap()).unwrap()];
        let to = bytes.as_mut_ptr().cast::<c_void>();
        let code = call!(self, "cuMemcpyDtoHAsync_v2" | "hipMemcpyDtoHAsync"
            (*mut c_void: to, u64: from.address, usize: bytes.len(), u64: stream.0));
        assert_eq!(code, 0);
        bytes
    }

    pub fn is_done(&self, stream: Stream) -> bool {
        const NOT_READY: i32 = 600;
        match call!(self, "cuStreamQuery" | "hipStreamQuery" (u64: stream.0)) {
            0 => true,
            code => {
                assert_eq!(code, NOT_READY);
                false
            }
        }
    }

    pub fn synchronize(&self, stream: Stream) {
        let code = call!(self, "cuStreamSynchronize" | "hipStreamSynchronize" (u64: stream.0));
        assert_eq!(code, 0);
    }

    /// A buffer of small numbers.
    pub fn filled(&self, dtype: DataType, values: &[i64], stream: Stream) -> Buffer {
        let buffer = self.alloc(values.len(), dtype);
        self.write(buffer, &encode(dtype, values), stream);
        buffer
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for stream in self.streams.take() {
            assert_eq!(call!(self, "cuStreamDestroy_v2" | "hipStreamDestroy" (u64: stream.0)), 0);
        }
        for address in self.memory.take() {
            assert_eq!(call!(self, "cuMemFree_v2" | "hipFree" (u64: address)), 0);
        }
        if self.vendor == Vendor::Nvidia {
            assert_eq!(call!(self, "cuDevicePrimaryCtxRelease_v2" | "" (i32: 0)), 0);
        }
    }
}

/// Small whole numbers, at least 1, as elements of a type; all of them are exact there.
pub fn encode(dtype: DataType, values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|&value| element(dtype, value)).collect()
}

fn element(dtype: DataType, value: i64) -> Vec<u8> {
    match dtype {
        DataType::I8 | DataType::U8 => vec![value as u8],
        DataType::I32 | DataType::U32 => (value as i32).to_ne_bytes().into(),
        DataType::I64 | DataType::U64 => value.to_ne_bytes().into(),
        DataType::F16 => f16::from_f64(value as f64).to_ne_bytes().into(),
        DataType::Bf16 => bf16::from_f64(value as f64).to_ne_bytes().into(),
        DataType::F32 => (value as f32).to_ne_bytes().into(),
        DataType::F64 => (value as f64).to_ne_bytes().into(),
        DataType::F8E4M3 => vec![f8(value, 3, 7)],
        DataType::F8E5M2 => vec![f8(value, 2, 15)],
    }
}

/// Exponent and fraction, as they are written side by side.
fn f8(value: i64, mantissa_bits: u32, bias: u32) -> u8 {
    let power = value.ilog2();
    let fraction = (value << mantissa_bits >> power) - (1 << mantissa_bits);
    assert_eq!(value << mantissa_bits, ((1 << mantissa_bits) + fraction) << power, "not exact");
    u8::try_from(i64::from((power + bias) << mantissa_bits) + fraction).unwrap()
}
