//! The expression of a state in tensors of an origin: decided before anything is read.

use std::ops::Range;

use crate::convert::{Columns, Joined, Mean, Normal, Part, Transposed, Types, Zeros, cast};
use crate::fp8::BlockScaled;
use crate::origin::Origin;
use crate::{Elements, Error};

/// Elements of a state.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    /// `len` elements of a tensor from `first` on.
    Stretch {
        name: String,
        first: usize,
        len: usize,
    },
    /// An FP8 matrix of `columns` columns times a factor for each block.
    Scaled {
        name: String,
        scales: String,
        columns: usize,
        block: [usize; 2],
    },
    /// One after another.
    Joined(Vec<Source>),
    /// The transpose of a matrix of so many rows and columns.
    Transposed(Box<Source>, [usize; 2]),
    /// Some columns of a matrix that has `of_columns`.
    Columns {
        of: Box<Source>,
        of_columns: usize,
        columns: Range<usize>,
    },
    /// The mean of as many elements each.
    Mean(Vec<Source>),
    Zeros(usize),
    /// Normal deviates, a function of key and element.
    Normal {
        key: u64,
        std: f64,
        len: usize,
    },
}

impl Source {
    /// A whole tensor of an origin.
    pub fn whole(name: String, len: usize) -> Source {
        Source::Stretch { name, first: 0, len }
    }

    /// The tensors that it is made of, factors among them.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Source::Stretch { name, .. } => vec![name],
            Source::Scaled { name, scales, .. } => vec![name, scales],
            Source::Joined(parts) | Source::Mean(parts) => {
                parts.iter().flat_map(Source::names).collect()
            }
            Source::Transposed(of, _) | Source::Columns { of, .. } => of.names(),
            Source::Zeros(_) | Source::Normal { .. } => Vec::new(),
        }
    }

    /// The elements, of the wanted type.
    ///
    /// # Errors
    /// A type that is not turned into that one.
    pub fn elements<'a>(
        &'a self,
        origin: &'a dyn Origin,
        types: Types,
    ) -> Result<Box<dyn Elements + 'a>, Error> {
        let all = |parts: &'a [Source]| -> Result<Vec<Box<dyn Elements + 'a>>, Error> {
            parts.iter().map(|part| part.elements(origin, types)).collect()
        };
        Ok(match self {
            Source::Stretch { name, first, len } => {
                let of = origin.elements(name)?;
                let of = match (*first, *len) == (0, of.len()) {
                    true => of,
                    false => Box::new(Part { of, first: *first, len: *len }),
                };
                cast(name, of, types)?
            }
            Source::Scaled { name, scales, columns, block } => {
                let (of, scales) = (origin.elements(name)?, origin.elements(scales)?);
                cast(name, Box::new(BlockScaled::new(of, scales, *columns, *block)), types)?
            }
            Source::Joined(parts) => Box::new(Joined { dtype: types.dtype, parts: all(parts)? }),
            Source::Transposed(of, shape) => {
                Box::new(Transposed::new(of.elements(origin, types)?, *shape))
            }
            Source::Columns { of, of_columns, columns } => {
                let of = of.elements(origin, types)?;
                Box::new(Columns::new(of, *of_columns, columns.clone()))
            }
            Source::Mean(parts) => Box::new(Mean { dtype: types.dtype, parts: all(parts)? }),
            Source::Zeros(len) => Box::new(Zeros { dtype: types.dtype, len: *len }),
            Source::Normal { key, std, len } => {
                let normal = Normal { key: *key, std: *std, len: *len };
                cast("", Box::new(normal), Types { may_round: true, ..types })?
            }
        })
    }
}
