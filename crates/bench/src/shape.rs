//! Shapes as they are typed: `24x768x3072` is a batch of 24 matrices, `768x3072` is one, and
//! `8x768x3072+16x1024x2816` a batch of both; of products, `4096x4096x512` is M×N×K and
//! `8x4096x4096x512` eight of them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::BenchError;

/// The largest extent that is accepted, far above what fits a device.
const LARGEST: usize = 1 << 20;

/// `count` matrices of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matrices {
    pub count: usize,
    pub rows: usize,
    pub cols: usize,
}

/// Matrices that are orthogonalized together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BatchShape(pub Vec<Matrices>);

impl BatchShape {
    /// Number of matrices.
    pub fn matrices(&self) -> usize {
        self.0.iter().map(|part| part.count).sum()
    }

    /// Elements of all matrices.
    pub fn elements(&self) -> usize {
        self.0.iter().map(|part| part.count * part.rows * part.cols).sum()
    }

    /// (rows, columns) of every matrix, in order.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.0.iter().flat_map(|part| std::iter::repeat_n((part.rows, part.cols), part.count))
    }
}

/// `count` products of an `[m, k]` by a `[k, n]` matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProductShape {
    pub count: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl ProductShape {
    /// Multiplications and additions of all products.
    pub fn flops(&self) -> f64 {
        2.0 * self.count as f64 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// The extents of `text`, separated by `x`.
fn extents(whole: &str, text: &str) -> Result<Vec<usize>, BenchError> {
    let refuse = |why: String| BenchError::Shape { text: whole.to_owned(), why };
    let extent = |word: &str| match word.trim().parse() {
        Ok(extent) if (1..=LARGEST).contains(&extent) => Ok(extent),
        Ok(extent) => Err(refuse(format!("{extent} is not between 1 and {LARGEST}"))),
        Err(_) => Err(refuse(format!("`{word}` is not a whole number"))),
    };
    text.split(['x', 'X', '×']).map(extent).collect()
}

impl FromStr for BatchShape {
    type Err = BenchError;

    fn from_str(text: &str) -> Result<BatchShape, BenchError> {
        let part = |part: &str| match extents(text, part)?[..] {
            [rows, cols] => Ok(Matrices { count: 1, rows, cols }),
            [count, rows, cols] => Ok(Matrices { count, rows, cols }),
            _ => {
                let why = "use ROWSxCOLS or COUNTxROWSxCOLS, joined by + for a mixed batch".into();
                Err(BenchError::Shape { text: text.to_owned(), why })
            }
        };
        text.split('+').map(part).collect::<Result<_, _>>().map(BatchShape)
    }
}

impl fmt::Display for BatchShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Matrices { count, rows, cols }) in self.0.iter().enumerate() {
            let plus = if index > 0 { "+" } else { "" };
            match count {
                1 => write!(f, "{plus}{rows}x{cols}")?,
                _ => write!(f, "{plus}{count}x{rows}x{cols}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for ProductShape {
    type Err = BenchError;

    fn from_str(text: &str) -> Result<ProductShape, BenchError> {
        match extents(text, text)?[..] {
            [m, n, k] => Ok(ProductShape { count: 1, m, n, k }),
            [count, m, n, k] => Ok(ProductShape { count, m, n, k }),
            _ => Err(BenchError::Shape {
                text: text.to_owned(),
                why: "use MxNxK or COUNTxMxNxK".to_owned(),
            }),
        }
    }
}

impl fmt::Display for ProductShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ProductShape { count, m, n, k } = self;
        match count {
            1 => write!(f, "{m}x{n}x{k}"),
            _ => write!(f, "{count}x{m}x{n}x{k}"),
        }
    }
}

impl Serialize for BatchShape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for ProductShape {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(
            parts in prop::collection::vec((1_usize..300, 1_usize..9000, 1_usize..9000), 1..4),
        ) {
            let parts = parts.into_iter().map(|(count, rows, cols)| Matrices { count, rows, cols });
            let shape = BatchShape(parts.collect());
            prop_assert_eq!(&shape.to_string().parse::<BatchShape>().unwrap(), &shape);
            let first = shape.0[0];
            let product = ProductShape { count: first.count, m: first.rows, n: first.cols, k: 7 };
            prop_assert_eq!(product.to_string().parse::<ProductShape>().unwrap(), product);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let batch = |text: &str| text.parse::<BatchShape>().unwrap_err().to_string();
        for (text, word) in [
            ("", "`` is not a whole number"),
            ("768", "COUNTxROWSxCOLS"),
            ("1x2x3x4", "COUNTxROWSxCOLS"),
            ("0x3", "0 is not between"),
            ("768xy", "`y`"),
            ("768x3072+", "`` is not"),
        ] {
            assert!(batch(text).contains(word), "{text}: {}", batch(text));
        }
        assert!("8x8".parse::<ProductShape>().unwrap_err().to_string().contains("MxNxK"));
        let mixed: BatchShape = "2x4x8+3x5".parse().unwrap();
        assert_eq!((mixed.matrices(), mixed.elements()), (3, 2 * 32 + 15));
        assert_eq!(mixed.each().collect::<Vec<_>>(), [(4, 8), (4, 8), (3, 5)]);
    }
}
