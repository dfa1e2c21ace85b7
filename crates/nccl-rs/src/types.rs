//! Types of elements, and buffers of them.

use std::fmt;

use crate::Version;

/// Type of elements. The numbers are those of `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum DataType {
    I8 = 0,
    U8 = 1,
    I32 = 2,
    U32 = 3,
    I64 = 4,
    U64 = 5,
    F16 = 6,
    F32 = 7,
    F64 = 8,
    Bf16 = 9,
    /// 4 bits of exponent and 3 of mantissa; from 2.24 on.
    F8E4M3 = 10,
    /// 5 bits of exponent and 2 of mantissa; from 2.24 on.
    F8E5M2 = 11,
}

impl DataType {
    pub const ALL: [DataType; 12] = [
        DataType::I8,
        DataType::U8,
        DataType::I32,
        DataType::U32,
        DataType::I64,
        DataType::U64,
        DataType::F16,
        DataType::F32,
        DataType::F64,
        DataType::Bf16,
        DataType::F8E4M3,
        DataType::F8E5M2,
    ];

    /// Size of an element, which is also its alignment.
    pub const fn bytes(self) -> usize {
        match self {
            DataType::I8 | DataType::U8 | DataType::F8E4M3 | DataType::F8E5M2 => 1,
            DataType::F16 | DataType::Bf16 => 2,
            DataType::I32 | DataType::U32 | DataType::F32 => 4,
            DataType::I64 | DataType::U64 | DataType::F64 => 8,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            DataType::I8 => "i8",
            DataType::U8 => "u8",
            DataType::I32 => "i32",
            DataType::U32 => "u32",
            DataType::I64 => "i64",
            DataType::U64 => "u64",
            DataType::F16 => "f16",
            DataType::F32 => "f32",
            DataType::F64 => "f64",
            DataType::Bf16 => "bf16",
            DataType::F8E4M3 => "f8e4m3",
            DataType::F8E5M2 => "f8e5m2",
        }
    }

    /// The first version that has it.
    pub const fn since(self) -> Version {
        match self {
            DataType::F8E4M3 | DataType::F8E5M2 => Version::new(2, 24, 0),
            _ => Version::BASELINE,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Elements in the memory of a device, as whoever owns them says.
///
/// It is a claim, and no owner: the operations that take it are `unsafe`, because the memory must
/// exist, and stay, until the operation is over in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Address in the device's memory.
    pub address: u64,
    /// Number of elements.
    pub len: usize,
    pub dtype: DataType,
}

impl Buffer {
    pub const fn new(address: u64, len: usize, dtype: DataType) -> Buffer {
        Buffer { address, len, dtype }
    }

    /// Part `index` of `parts` equal ones, at least one, each of `len / parts` elements.
    pub(crate) const fn part(self, index: u32, parts: u32) -> Buffer {
        let len = self.len / parts as usize;
        let address = self.address + (index as usize * len * self.dtype.bytes()) as u64;
        Buffer { address, len, dtype: self.dtype }
    }

    /// Size in bytes; `None` if no address space has it.
    pub fn bytes(self) -> Option<u64> {
        let bytes = (self.len as u64).checked_mul(self.dtype.bytes() as u64)?;
        self.address.checked_add(bytes).map(|_| bytes)
    }
}

/// A stream of the vendor's driver: a `CUstream` or `hipStream_t`, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stream(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        for (number, dtype) in DataType::ALL.into_iter().enumerate() {
            assert_eq!(dtype as usize, number, "{dtype}");
        }
    }

    #[test]
    fn parts_lie_one_after_another() {
        let whole = Buffer::new(0x1000, 12, DataType::F64);
        let parts: Vec<u64> = (0..3).map(|index| whole.part(index, 3).address).collect();
        assert_eq!(parts, [0x1000, 0x1020, 0x1040]);
        assert_eq!(whole.part(1, 3).len, 4);
    }

    #[test]
    fn a_buffer_beyond_the_address_space_has_no_size() {
        assert_eq!(Buffer::new(0x1000, usize::MAX, DataType::F64).bytes(), None);
        assert_eq!(Buffer::new(u64::MAX - 3, 1, DataType::F32).bytes(), None);
        assert_eq!(Buffer::new(0x1000, 3, DataType::F32).bytes(), Some(12));
    }
}
