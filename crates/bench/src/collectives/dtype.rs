//! Types of elements and reductions, by Muster's names and by those of nccl-tests and rccl-tests.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::BenchError;

/// The type of one element.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ElementType {
    I8,
    U8,
    I32,
    U32,
    I64,
    U64,
    F16,
    F32,
    F64,
    Bf16,
    F8e4m3,
    F8e5m2,
}

impl ElementType {
    pub const ALL: [ElementType; 12] = [
        ElementType::I8,
        ElementType::U8,
        ElementType::I32,
        ElementType::U32,
        ElementType::I64,
        ElementType::U64,
        ElementType::F16,
        ElementType::F32,
        ElementType::F64,
        ElementType::Bf16,
        ElementType::F8e4m3,
        ElementType::F8e5m2,
    ];

    /// Muster's name.
    pub fn word(self) -> &'static str {
        match self {
            ElementType::I8 => "i8",
            ElementType::U8 => "u8",
            ElementType::I32 => "i32",
            ElementType::U32 => "u32",
            ElementType::I64 => "i64",
            ElementType::U64 => "u64",
            ElementType::F16 => "f16",
            ElementType::F32 => "f32",
            ElementType::F64 => "f64",
            ElementType::Bf16 => "bf16",
            ElementType::F8e4m3 => "f8e4m3",
            ElementType::F8e5m2 => "f8e5m2",
        }
    }

    /// The name in the column `type` of nccl-tests.
    pub(crate) fn nccl_word(self) -> &'static str {
        match self {
            ElementType::I8 => "int8",
            ElementType::U8 => "uint8",
            ElementType::I32 => "int32",
            ElementType::U32 => "uint32",
            ElementType::I64 => "int64",
            ElementType::U64 => "uint64",
            ElementType::F16 => "half",
            ElementType::F32 => "float",
            ElementType::F64 => "double",
            ElementType::Bf16 => "bfloat16",
            ElementType::F8e4m3 | ElementType::F8e5m2 => self.word(),
        }
    }

    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            ElementType::I64 | ElementType::U64 | ElementType::F64 => 8,
            ElementType::I32 | ElementType::U32 | ElementType::F32 => 4,
            ElementType::F16 | ElementType::Bf16 => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for ElementType {
    type Err = BenchError;

    /// Muster's name, nccl-tests' or rccl-tests' (`fp8_e4m3`).
    fn from_str(text: &str) -> Result<ElementType, BenchError> {
        let bare = text.replacen("fp8_", "f8", 1);
        let known = |dtype: &ElementType| [dtype.word(), dtype.nccl_word()].contains(&&*bare);
        ElementType::ALL.into_iter().find(known).ok_or_else(|| {
            let all = ElementType::ALL.map(ElementType::word).join(", ");
            BenchError::Argument(format!("no element type `{text}`; use one of {all}"))
        })
    }
}

/// How values of several ranks are combined.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum RedOp {
    Sum,
    Prod,
    Max,
    Min,
    Avg,
    /// Each rank's values times a factor of its own, then summed.
    MulSum,
}

impl RedOp {
    pub const ALL: [RedOp; 6] =
        [RedOp::Sum, RedOp::Prod, RedOp::Max, RedOp::Min, RedOp::Avg, RedOp::MulSum];

    /// The name, which is nccl-tests' as well.
    pub fn word(self) -> &'static str {
        match self {
            RedOp::Sum => "sum",
            RedOp::Prod => "prod",
            RedOp::Max => "max",
            RedOp::Min => "min",
            RedOp::Avg => "avg",
            RedOp::MulSum => "mulsum",
        }
    }
}

impl fmt::Display for RedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for RedOp {
    type Err = BenchError;

    fn from_str(text: &str) -> Result<RedOp, BenchError> {
        RedOp::ALL.into_iter().find(|redop| redop.word() == text).ok_or_else(|| {
            let all = RedOp::ALL.map(RedOp::word).join(", ");
            BenchError::Argument(format!("no reduction `{text}`; use one of {all}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_reductions_go_by_all_their_names() {
        for dtype in ElementType::ALL {
            assert_eq!(dtype.word().parse::<ElementType>().unwrap(), dtype);
            assert_eq!(dtype.nccl_word().parse::<ElementType>().unwrap(), dtype);
            assert_eq!(serde_json::to_value(dtype).unwrap(), dtype.word());
        }
        assert_eq!("fp8_e5m2".parse::<ElementType>().unwrap(), ElementType::F8e5m2);
        assert!("float32".parse::<ElementType>().unwrap_err().to_string().contains("f32"));
        for redop in RedOp::ALL {
            assert_eq!(redop.word().parse::<RedOp>().unwrap(), redop);
            assert_eq!(serde_json::to_value(redop).unwrap(), redop.word());
        }
        assert!("add".parse::<RedOp>().unwrap_err().to_string().contains("sum"));
    }
}
