//! A pickled tensor: its type and shape, and which bytes of an archive are its elements.

use layout::Dtype;

use super::pickle::{Id, Node, Pickle};

/// Globals of pickled tensors, and of parameters, which are tensors for our purpose.
pub(crate) const GLOBALS: [(&str, &str); 40] = [
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.nn.parameter", "Buffer"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("torch.storage", "UntypedStorage"),
    ("torch", "BFloat16Storage"),
    ("torch", "BoolStorage"),
    ("torch", "ByteStorage"),
    ("torch", "CharStorage"),
    ("torch", "DoubleStorage"),
    ("torch", "FloatStorage"),
    ("torch", "HalfStorage"),
    ("torch", "IntStorage"),
    ("torch", "LongStorage"),
    ("torch", "ShortStorage"),
    ("torch", "bfloat16"),
    ("torch", "bool"),
    ("torch", "float16"),
    ("torch", "float32"),
    ("torch", "float64"),
    ("torch", "float8_e4m3fn"),
    ("torch", "float8_e4m3fnuz"),
    ("torch", "float8_e5m2"),
    ("torch", "float8_e5m2fnuz"),
    ("torch", "float8_e8m0fnu"),
    ("torch", "int16"),
    ("torch", "int32"),
    ("torch", "int64"),
    ("torch", "int8"),
    ("torch", "uint16"),
    ("torch", "uint32"),
    ("torch", "uint64"),
    ("torch", "uint8"),
    // Of tensors that a model's class was not told apart from.
    ("torch._tensor", "Tensor"),
];

/// Axes that a tensor may have; PyTorch has fewer.
pub(crate) const AXES: usize = 64;

/// A tensor as its pickle tells it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Described {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Name of the archive's entry that has its storage, below `data/`.
    pub key: String,
    pub storage_bytes: u64,
    /// Of its first element in the storage.
    pub start: u64,
}

/// By the name that PyTorch has for it.
pub(crate) fn dtype_named(name: &str) -> Option<Dtype> {
    Some(match name {
        "bool" => Dtype::Bool,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "float8_e4m3fn" => Dtype::F8E4M3,
        "float8_e5m2" => Dtype::F8E5M2,
        "float8_e4m3fnuz" => Dtype::F8E4M3Fnuz,
        "float8_e5m2fnuz" => Dtype::F8E5M2Fnuz,
        "float8_e8m0fnu" => Dtype::F8E8M0,
        "uint16" => Dtype::U16,
        "int16" => Dtype::I16,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "uint32" => Dtype::U32,
        "int32" => Dtype::I32,
        "float32" => Dtype::F32,
        "uint64" => Dtype::U64,
        "int64" => Dtype::I64,
        "float64" => Dtype::F64,
        _ => return None,
    })
}

/// The name that PyTorch has for a type.
pub(crate) fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bool => "bool",
        Dtype::U8 => "uint8",
        Dtype::I8 => "int8",
        Dtype::F8E4M3 => "float8_e4m3fn",
        Dtype::F8E5M2 => "float8_e5m2",
        Dtype::F8E4M3Fnuz => "float8_e4m3fnuz",
        Dtype::F8E5M2Fnuz => "float8_e5m2fnuz",
        Dtype::F8E8M0 => "float8_e8m0fnu",
        Dtype::U16 => "uint16",
        Dtype::I16 => "int16",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        Dtype::U32 => "uint32",
        Dtype::I32 => "int32",
        Dtype::F32 => "float32",
        Dtype::U64 => "uint64",
        Dtype::I64 => "int64",
        Dtype::F64 => "float64",
    }
}

/// The class of a typed storage of this type, where PyTorch has one.
pub(crate) fn storage_class(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::Bf16 => "BFloat16Storage",
        Dtype::Bool => "BoolStorage",
        Dtype::U8 => "ByteStorage",
        Dtype::I8 => "CharStorage",
        Dtype::F64 => "DoubleStorage",
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::I32 => "IntStorage",
        Dtype::I64 => "LongStorage",
        Dtype::I16 => "ShortStorage",
        _ => return None,
    })
}

fn dtype_of_class(name: &str) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|&dtype| storage_class(dtype) == Some(name))
}

/// Reads a pickled tensor.
///
/// # Errors
/// In words: it is no tensor, or one whose elements do not lie one after another.
pub(crate) fn describe(pickle: &Pickle, id: Id) -> Result<Described, String> {
    let mut id = id;
    // A parameter around a type around a tensor; deeper than that is nobody's.
    for _ in 0..4 {
        let Node::Object(object) = pickle.node(id) else {
            return Err(format!("it is {}, not a tensor", pickle.node(id).kind()));
        };
        let (callable, arguments) =
            (pickle.node(object.callable), tuple(pickle, object.arguments)?);
        match (callable, arguments) {
            (Node::Global("torch._utils", "_rebuild_tensor_v2"), [storage, start, rest @ ..]) => {
                return rebuild(pickle, *storage, *start, rest, false);
            }
            (Node::Global("torch._utils", "_rebuild_tensor_v3"), [storage, start, rest @ ..]) => {
                return rebuild(pickle, *storage, *start, rest, true);
            }
            (
                Node::Global(
                    "torch._utils",
                    "_rebuild_parameter" | "_rebuild_parameter_with_state",
                ),
                [tensor, ..],
            ) => id = *tensor,
            (
                Node::Global("torch._tensor", "_rebuild_from_type_v2"),
                [function, _, arguments, ..],
            ) => match (pickle.node(*function), tuple(pickle, *arguments)?) {
                (
                    Node::Global("torch._utils", "_rebuild_tensor_v2"),
                    [storage, start, rest @ ..],
                ) => return rebuild(pickle, *storage, *start, rest, false),
                (
                    Node::Global("torch._utils", "_rebuild_tensor_v3"),
                    [storage, start, rest @ ..],
                ) => return rebuild(pickle, *storage, *start, rest, true),
                (Node::Global("torch._utils", "_rebuild_parameter"), [tensor, ..]) => id = *tensor,
                (other, _) => return Err(format!("it is rebuilt by {}", name_of(other))),
            },
            (other, _) => return Err(format!("it is rebuilt by {}", name_of(other))),
        }
    }
    Err("it is a tensor in too many others".to_owned())
}

/// The arguments from the size on; the type stands in them, or is the storage's.
fn rebuild(
    pickle: &Pickle,
    storage: Id,
    start: Id,
    rest: &[Id],
    has_type: bool,
) -> Result<Described, String> {
    let (&[size, strides, _, _], more) = rest.split_first_chunk::<4>().ok_or("arguments lack")?;
    let (own, more) = match (has_type, more) {
        (true, [own, more @ ..]) => (Some(dtype(pickle, *own)?), more),
        (true, []) => return Err("its type lacks".to_owned()),
        (false, more) => (None, more),
    };
    if let [bits, ..] = more
        && !matches!(pickle.node(*bits), Node::Dict(pairs) if pairs.is_empty())
        && *pickle.node(*bits) != Node::None
    {
        return Err("it is a conjugate or negative view; save a copy of it instead".to_owned());
    }
    let (key, of_class, elements) = storage_of(pickle, storage)?;
    let dtype = own.or(of_class).ok_or("it has no type")?;
    let shape = sizes(pickle, size)?;
    let strides = sizes(pickle, strides)?;
    let start = integer(pickle, start)?;
    let len = layout::region::elements(&shape).ok_or("its shape is too large")?;
    if !is_contiguous(&shape, &strides) {
        return Err(format!(
            "its elements do not lie one after another (shape {shape:?}, strides {strides:?}); \
             save `tensor.contiguous()` instead"
        ));
    }
    let size = dtype.size_bytes() as u64;
    let storage_bytes = elements.checked_mul(of_class.map_or(1, |class| class.size_bytes() as u64));
    let bytes = |elements: u64| elements.checked_mul(size);
    let all = (|| Some((storage_bytes?, bytes(start)?, bytes(len as u64)?)))();
    let (storage_bytes, start, bytes) = all.ok_or("its storage is too large")?;
    if bytes > 0 && start.checked_add(bytes).is_none_or(|end| end > storage_bytes) {
        return Err(format!("{bytes} bytes at {start} are not in its storage of {storage_bytes}"));
    }
    Ok(Described { dtype, shape, key, storage_bytes, start })
}

/// `("storage", class, key, location, elements)`; of untyped ones the elements are bytes.
fn storage_of(pickle: &Pickle, id: Id) -> Result<(String, Option<Dtype>, u64), String> {
    let Node::Persistent(id) = pickle.node(id) else {
        return Err(format!("its storage is {}", pickle.node(id).kind()));
    };
    let &[kind, class, key, _, elements] = tuple(pickle, *id)? else {
        return Err("its storage has other than five parts".to_owned());
    };
    let (Node::Text("storage"), Node::Text(key)) = (pickle.node(kind), pickle.node(key)) else {
        return Err("its storage is named otherwise than by a text".to_owned());
    };
    let dtype = match pickle.node(class) {
        Node::Global("torch.storage", "UntypedStorage") => None,
        Node::Global("torch", class) => {
            Some(dtype_of_class(class).ok_or_else(|| format!("its storage is a torch.{class}"))?)
        }
        other => return Err(format!("its storage is of {}", name_of(other))),
    };
    Ok(((*key).to_owned(), dtype, integer(pickle, elements)?))
}

/// A type, as a global of module `torch`.
pub(crate) fn dtype(pickle: &Pickle, id: Id) -> Result<Dtype, String> {
    match pickle.node(id) {
        Node::Global("torch", name) => dtype_named(name).ok_or_else(|| {
            let all: Vec<&str> = Dtype::ALL.into_iter().map(dtype_name).collect();
            format!("its type is torch.{name}; the types that can be read are {}", all.join(", "))
        }),
        other => Err(format!("its type is {}", name_of(other))),
    }
}

/// A tuple of sizes, or a `torch.Size` of one.
pub(crate) fn sizes(pickle: &Pickle, id: Id) -> Result<Vec<usize>, String> {
    let parts = match pickle.node(id) {
        Node::Object(object) => match (pickle.node(object.callable), pickle.node(object.arguments))
        {
            (Node::Global("torch", "Size"), Node::Tuple(arguments)) if arguments.len() == 1 => {
                tuple(pickle, arguments[0])?
            }
            (Node::Global("torch", "Size"), Node::Tuple(arguments)) if arguments.is_empty() => &[],
            (other, _) => return Err(format!("sizes are of {}", name_of(other))),
        },
        _ => tuple(pickle, id)?,
    };
    if parts.len() > AXES {
        return Err(format!("there are {} axes; at most {AXES} are read", parts.len()));
    }
    let size = |&id: &Id| {
        usize::try_from(integer(pickle, id)?).map_err(|error| format!("a size: {error}"))
    };
    parts.iter().map(size).collect()
}

pub(crate) fn tuple<'p>(pickle: &'p Pickle, id: Id) -> Result<&'p [Id], String> {
    match pickle.node(id) {
        Node::Tuple(parts) | Node::List(parts) => Ok(parts),
        other => Err(format!("there is {} in place of a tuple", other.kind())),
    }
}

pub(crate) fn integer(pickle: &Pickle, id: Id) -> Result<u64, String> {
    match pickle.node(id) {
        Node::Int(value) => {
            u64::try_from(*value).map_err(|_| format!("there is {value} in place of a size"))
        }
        other => Err(format!("there is {} in place of a size", other.kind())),
    }
}

/// For messages.
pub(crate) fn name_of(node: &Node) -> String {
    match node {
        Node::Global(module, name) => format!("`{module}.{name}`"),
        other => other.kind().to_owned(),
    }
}

/// Whether elements lie in row-major order without gaps; strides of axes of one index mean nothing.
fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    if shape.len() != strides.len() {
        return false;
    }
    let mut next = 1_usize;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == next;
            next = next.saturating_mul(extent);
            fits
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcp::pickle::Globals;

    /// As torch.save writes `shape`, `strides` and `start` of a storage of `elements` floats.
    fn pickled(start: u8, shape: [u8; 2], strides: [u8; 2], elements: u8) -> Vec<u8> {
        let mut bytes = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage\
            ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK"
            .to_vec();
        bytes.push(elements);
        bytes.extend(b"tQ");
        let small = |value: u8| [b'K', value];
        bytes.extend(small(start));
        for [first, second] in [shape, strides] {
            bytes.extend([small(first), small(second)].concat());
            bytes.push(0x86);
        }
        bytes.extend(b"\x89ccollections\nOrderedDict\n)RtR.");
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Described, String> {
        let pickle = Pickle::read(bytes, Globals::Only(&GLOBALS)).unwrap();
        describe(&pickle, pickle.root())
    }

    #[test]
    fn contiguous_tensors_are_a_range_of_their_storage() {
        let found = read(&pickled(6, [2, 3], [3, 1], 12)).unwrap();
        let (key, shape) = ("0".to_owned(), vec![2, 3]);
        let wanted = Described { dtype: Dtype::F32, shape, key, storage_bytes: 48, start: 24 };
        assert_eq!(found, wanted);
        for (shape, strides) in [([1, 3], [99, 1]), ([3, 1], [1, 77]), ([0, 3], [7, 7])] {
            assert!(read(&pickled(0, shape, strides, 3)).is_ok(), "{shape:?} {strides:?}");
        }
        for (start, shape, strides, wanted) in [
            (0, [2, 3], [1, 2], "strides [1, 2]"),
            (0, [2, 3], [6, 1], "`tensor.contiguous()`"),
            (7, [2, 3], [3, 1], "24 bytes at 28 are not in its storage of 48"),
            (0, [4, 4], [4, 1], "64 bytes at 0 are not"),
        ] {
            let told = read(&pickled(start, shape, strides, 12)).unwrap_err();
            assert!(told.contains(wanted), "{told}");
        }
    }

    #[test]
    fn names_of_types_lead_back() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype_named(dtype_name(dtype)), Some(dtype));
            assert!(GLOBALS.contains(&("torch", dtype_name(dtype))));
            if let Some(class) = storage_class(dtype) {
                assert_eq!(dtype_of_class(class), Some(dtype));
                assert!(GLOBALS.contains(&("torch", class)));
            }
        }
    }
}
