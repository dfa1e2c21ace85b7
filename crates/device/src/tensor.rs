//! Tensors: a dense part of a buffer with a shape and a type.
//!
//! A tensor lies within its buffer, and its size is one that memory has addresses for: whoever has
//! a tensor need not check again. Views share the buffer, and nothing here reads memory.

use std::ops::Range;

use crate::{Buffer, DType, DeviceError};

/// Most bytes that one slice may have.
const LARGEST: usize = isize::MAX as usize;

/// Up to four extents, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    extents: [usize; 4],
    rank: u8,
}

impl Shape {
    /// # Errors
    /// More than four axes; more elements than memory has addresses.
    pub fn new(extents: &[usize]) -> Result<Shape, DeviceError> {
        if extents.len() > 4 {
            return Err(DeviceError::Rank { got: extents.len() });
        }
        let len = match extents.contains(&0) {
            true => Some(0),
            false => extents.iter().try_fold(1_usize, |len, &extent| len.checked_mul(extent)),
        };
        if len.is_none_or(|len| len > LARGEST) {
            return Err(DeviceError::Size { shape: extents.to_vec(), element_bytes: 1 });
        }
        let mut shape = Shape { extents: [1; 4], rank: extents.len() as u8 };
        shape.extents[..extents.len()].copy_from_slice(extents);
        Ok(shape)
    }

    pub fn dims(&self) -> &[usize] {
        &self.extents[..usize::from(self.rank)]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        // Without overflow: of a shape with an extent of 0 the others may be anything.
        if self.dims().contains(&0) { 0 } else { self.dims().iter().product() }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    ///
    /// # Errors
    /// More than memory has addresses.
    pub fn bytes(&self, dtype: DType) -> Result<usize, DeviceError> {
        let bytes = self.len().checked_mul(dtype.bytes()).filter(|&bytes| bytes <= LARGEST);
        let (shape, element_bytes) = (self.dims(), dtype.bytes());
        bytes.ok_or_else(|| DeviceError::Size { shape: shape.to_vec(), element_bytes })
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// A dense row-major view into a buffer.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) buffer: Buffer,
    offset: usize,
    shape: Shape,
    dtype: DType,
}

impl Tensor {
    /// A view of `buffer` from element `offset` on.
    ///
    /// # Errors
    /// The view does not lie inside the buffer; more than four axes.
    pub fn new(
        buffer: Buffer,
        offset: usize,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor, DeviceError> {
        let shape = Shape::new(shape)?;
        let len = buffer.len() / dtype.bytes();
        if offset.checked_add(shape.len()).is_none_or(|end| end > len) {
            let end = offset.saturating_add(shape.len());
            return Err(DeviceError::Bounds { start: offset, end, len, dtype });
        }
        Ok(Tensor { buffer, offset, shape, dtype })
    }

    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Start in the buffer, in elements.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Where kernels see the first element; 0 in an empty buffer.
    pub fn address(&self) -> u64 {
        match self.buffer.address() {
            0 => 0,
            start => start + (self.offset * self.dtype.bytes()) as u64,
        }
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bytes()
    }

    /// The same memory, byte by byte.
    pub fn as_bytes(&self) -> Tensor {
        let shape = Shape { extents: [self.bytes(), 1, 1, 1], rank: 1 };
        let offset = self.offset * self.dtype.bytes();
        Tensor { buffer: self.buffer.clone(), offset, shape, dtype: DType::U8 }
    }

    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Extent of axis `axis`; 1 beyond the last.
    pub fn dim(&self, axis: usize) -> usize {
        self.dims().get(axis).copied().unwrap_or(1)
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// A shape with another number of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor, DeviceError> {
        let shape = Shape::new(shape)?;
        if shape.len() != self.len() {
            return Err(DeviceError::Elements { got: shape.len(), expected: self.len() });
        }
        Ok(Tensor { shape, ..self.clone() })
    }

    /// Elements `range` of the flattened view, as a vector.
    ///
    /// # Errors
    /// A range outside the view.
    pub fn flat(&self, range: Range<usize>) -> Result<Tensor, DeviceError> {
        if range.end > self.len() || range.start > range.end {
            let Range { start, end } = range;
            let (len, dtype) = (self.len(), self.dtype);
            return Err(DeviceError::Bounds { start, end, len, dtype });
        }
        let shape = Shape::new(&[range.len()])?;
        Ok(Tensor { offset: self.offset + range.start, shape, ..self.clone() })
    }

    /// Indices `rows` of the first axis.
    ///
    /// # Errors
    /// Rows outside the view.
    pub fn rows(&self, rows: Range<usize>) -> Result<Tensor, DeviceError> {
        if rows.end > self.dim(0) || rows.start > rows.end {
            let Range { start, end } = rows;
            return Err(DeviceError::Bounds { start, end, len: self.dim(0), dtype: self.dtype });
        }
        let row = if self.dim(0) == 0 { 0 } else { self.len() / self.dim(0) };
        let part = self.flat(rows.start * row..rows.end * row)?;
        let mut extents = [1; 4];
        extents[..self.dims().len()].copy_from_slice(self.dims());
        extents[0] = rows.len();
        part.reshape(&extents[..self.dims().len().max(1)])
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}@{}", self.dtype, self.shape, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Placement};

    #[test]
    fn shapes_beyond_all_memory_are_refused() {
        let device = Device::cpu(1).unwrap();
        let buffer = device.alloc(64, &Placement::Private).unwrap();
        let huge = [1 << 32, 1 << 32];
        let told = Tensor::new(buffer.clone(), 0, &huge, DType::F32).unwrap_err().to_string();
        assert!(told.contains("[4294967296, 4294967296]"), "{told}");
        let (most, beyond) = ([usize::MAX / 2], [usize::MAX / 2 + 1]);
        assert_eq!(Shape::new(&most).unwrap().len(), usize::MAX / 2);
        assert!(matches!(Shape::new(&beyond), Err(DeviceError::Size { .. })));
        let told = device.zeros(&most, DType::F32).unwrap_err();
        assert!(matches!(told, DeviceError::Size { element_bytes: 4, .. }), "{told}");
        let told = Tensor::new(buffer.clone(), 0, &most, DType::F32).unwrap_err();
        assert!(matches!(told, DeviceError::Bounds { .. }), "{told}");
        let none = Tensor::new(buffer, 0, &[usize::MAX, 0, 3], DType::F32).unwrap();
        assert_eq!((none.len(), none.bytes()), (0, 0));
        assert!(none.reshape(&huge).is_err());
    }

    #[test]
    fn rows_outside_are_refused_without_overflow() {
        let x = Device::cpu(1).unwrap().zeros(&[3, 4], DType::F32).unwrap();
        assert_eq!(x.rows(1..3).unwrap().dims(), [2, 4]);
        // 2^62 rows of 4 elements would be none.
        for rows in [2..4, 1 << 62..(1 << 62) + 1, Range { start: 2, end: 1 }] {
            assert!(matches!(x.rows(rows), Err(DeviceError::Bounds { .. })));
        }
    }
}
