//! `.metadata` of a distributed checkpoint: which tensors there are, and which file holds a chunk.
//!
//! ```text
//! Metadata.state_dict_metadata   name ─▶ type, size, chunks (offsets, sizes); or bytes
//! Metadata.storage_data          (name, offsets) ─▶ file, range
//! ```
//! The file has no sum. What is proved of it is that it agrees with itself, and, by whoever opens
//! the chunks, with the files.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use layout::Dtype;

use super::pickle::{Globals, Id, Node, Pickle};
use super::plain::LeftOut;
use super::tensor::{self, name_of, sizes};

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const FILESYSTEM: &str = "torch.distributed.checkpoint.filesystem";
const PLANNER: &str = "torch.distributed.checkpoint.planner";

/// Megatron-Core's own class of metadata, and of plans that it caches there.
const MEGATRON: &str = "megatron.core.dist_checkpointing.strategies.torch";

/// Fields that an object may have; all of these classes have fewer.
const FIELDS: usize = 64;

/// Globals of `.metadata` beside those of tensors.
const GLOBALS: [(&str, &str); 38] = [
    (METADATA, "Metadata"),
    (METADATA, "TensorStorageMetadata"),
    (METADATA, "TensorProperties"),
    (METADATA, "_MEM_FORMAT_ENCODING"),
    (METADATA, "ChunkStorageMetadata"),
    (METADATA, "BytesStorageMetadata"),
    (METADATA, "MetadataIndex"),
    (METADATA, "StorageMeta"),
    (FILESYSTEM, "_StorageInfo"),
    (FILESYSTEM, "_StoragePrefix"),
    (PLANNER, "SavePlan"),
    (PLANNER, "WriteItem"),
    (PLANNER, "WriteItemType"),
    (PLANNER, "TensorWriteData"),
    (PLANNER, "BytesIOWriteData"),
    (MEGATRON, "MCoreMetadata"),
    (MEGATRON, "MCoreSavePlan"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("pathlib._local", "Path"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "PurePosixPath"),
    // Types that Muster has not: such tensors are left out.
    ("torch", "complex32"),
    ("torch", "complex64"),
    ("torch", "complex128"),
    ("torch", "float4_e2m1fn_x2"),
    ("torch", "qint8"),
    ("torch", "qint32"),
    ("torch", "quint8"),
    ("torch", "quint4x2"),
    ("torch", "quint2x4"),
    ("torch", "bits8"),
    ("torch", "bits16"),
    ("torch", "uint1"),
    ("torch", "uint4"),
    ("torch", "int4"),
];

/// A checkpoint as its metadata tells it.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub tensors: BTreeMap<String, Stored>,
    /// Entries that are no tensors.
    pub bytes: Vec<String>,
    pub files: Files,
    pub left_out: Vec<LeftOut>,
}

/// A tensor.
#[derive(Debug, PartialEq)]
pub(super) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub chunks: Vec<Chunk>,
}

/// A box of a tensor. Megatron writes offsets along more axes than extents: the missing ones come
/// first, and are 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Chunk {
    pub offsets: Vec<usize>,
    pub sizes: Vec<usize>,
}

/// Where chunks are, by name and offsets.
pub(super) type Files = BTreeMap<String, Vec<(Option<Vec<usize>>, Stretch)>>;

/// A range of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stretch {
    pub file: String,
    pub range: Range<u64>,
    /// Names of the codecs that its bytes went through.
    pub codecs: Vec<String>,
}

impl Metadata {
    /// Reads the bytes of `.metadata`.
    ///
    /// # Errors
    /// In words, with a place in the pickle.
    pub fn read(bytes: &[u8]) -> Result<Metadata, String> {
        let allowed = [&GLOBALS[..], &tensor::GLOBALS].concat();
        let pickle =
            Pickle::read(bytes, Globals::Only(&allowed)).map_err(|error| error.to_string())?;
        let mut reader = Reader { pickle: &pickle, rest: bytes.len(), found: Metadata::default() };
        reader.whole()?;
        Ok(reader.found)
    }
}

struct Reader<'p, 'a> {
    pickle: &'p Pickle<'a>,
    /// Chunks that may still come. Shared parts can describe far more than the pickle has bytes.
    rest: usize,
    found: Metadata,
}

impl<'p, 'a> Reader<'p, 'a> {
    fn whole(&mut self) -> Result<(), String> {
        let root = self.pickle.root();
        let fields = match self.fields(root, METADATA, "Metadata") {
            Err(_) if self.fields(root, MEGATRON, "MCoreMetadata").is_ok() => {
                self.fields(root, MEGATRON, "MCoreMetadata")?
            }
            fields => fields?,
        };
        let entries = self.field(&fields, root, "state_dict_metadata")?;
        let (reshaped, mut seen) = (self.reshaped(&fields)?, HashSet::new());
        for &(name, entry) in self.dict(entries)? {
            let name = self.text(name)?;
            if !seen.insert(name) {
                return Err(format!("entry `{name}` is there twice"));
            }
            self.entry(name, entry, reshaped.contains(name))
                .map_err(|reason| format!("entry `{name}`: {reason}"))?;
        }
        let places = self.field(&fields, root, "storage_data")?;
        for &(index, info) in self.dict(places)? {
            self.place(index, info)?;
        }
        Ok(())
    }

    /// Tensors that older versions of Megatron-Core stored in another shape than their own.
    fn reshaped(&self, fields: &[(&str, Id)]) -> Result<HashSet<&'a str>, String> {
        let Some(&(_, data)) = fields.iter().find(|(name, _)| *name == "mcore_data") else {
            return Ok(HashSet::new());
        };
        let mut names = HashSet::new();
        if let Node::Dict(pairs) = self.pickle.node(data) {
            for &(name, data) in pairs {
                let is_it = |key: Id| {
                    matches!(self.pickle.node(key), Node::Text(text)
                        if text.starts_with("nd_reformulated"))
                };
                if let Node::Dict(pairs) = self.pickle.node(data)
                    && pairs.iter().take(FIELDS).any(|&(key, _)| is_it(key))
                {
                    names.insert(self.text(name)?);
                }
            }
        }
        Ok(names)
    }

    fn entry(&mut self, name: &str, id: Id, is_reshaped: bool) -> Result<(), String> {
        if self.fields(id, METADATA, "BytesStorageMetadata").is_ok() {
            self.found.bytes.push(name.to_owned());
            return Ok(());
        }
        let fields = self.fields(id, METADATA, "TensorStorageMetadata")?;
        let properties = self.field(&fields, id, "properties")?;
        let size = self.field(&fields, id, "size")?;
        let shape = self.sizes(size)?;
        let chunks = self.chunks(self.field(&fields, id, "chunks")?)?;
        let dtype = match self.dtype(properties)? {
            _ if is_reshaped => Err("an older Megatron-Core stored it flattened over \
                                                  a grid; load and save it with a newer one"
                .to_owned()),
            dtype => dtype,
        };
        match dtype {
            Ok(dtype) => {
                self.found.tensors.insert(name.to_owned(), Stored { dtype, shape, chunks });
            }
            Err(reason) => {
                self.found.left_out.push(LeftOut { name: name.to_owned(), reason });
            }
        }
        Ok(())
    }

    /// The type of a tensor, first of its properties: five or six of them in a tuple, and in a
    /// dictionary where the class had no state of its own. The inner error is a type that Muster
    /// has not.
    fn dtype(&self, id: Id) -> Result<Result<Dtype, String>, String> {
        let Node::Object(object) = self.pickle.node(id) else {
            return Err(self.wrong(id, "TensorProperties"));
        };
        let class = self.pickle.node(object.callable);
        if *class != Node::Global(METADATA, "TensorProperties") {
            return Err(self.wrong(id, "TensorProperties"));
        }
        let dtype = match object.state.map(|state| self.pickle.node(state)) {
            Some(Node::Tuple(parts)) if (5..=6).contains(&parts.len()) => parts[0],
            Some(Node::Dict(pairs)) => {
                let is_it = |key: Id| matches!(self.pickle.node(key), Node::Text("dtype"));
                let found = pairs.iter().take(FIELDS).find(|(key, _)| is_it(*key));
                found.ok_or_else(|| self.wrong(id, "a type among the properties"))?.1
            }
            _ => return Err(self.wrong(id, "five or six properties")),
        };
        match self.pickle.node(dtype) {
            Node::Global("torch", _) => Ok(tensor::dtype(self.pickle, dtype)),
            _ => Err(self.wrong(dtype, "a type")),
        }
    }

    fn chunks(&mut self, id: Id) -> Result<Vec<Chunk>, String> {
        let Node::List(parts) = self.pickle.node(id) else {
            return Err(self.wrong(id, "a list of chunks"));
        };
        let mut chunks = Vec::new();
        for &part in parts {
            self.count()?;
            let fields = self.fields(part, METADATA, "ChunkStorageMetadata")?;
            let offsets = self.sizes(self.field(&fields, part, "offsets")?)?;
            let sizes = self.sizes(self.field(&fields, part, "sizes")?)?;
            chunks.push(Chunk { offsets, sizes });
        }
        Ok(chunks)
    }

    fn place(&mut self, index: Id, info: Id) -> Result<(), String> {
        self.count()?;
        let fields = self.fields(index, METADATA, "MetadataIndex")?;
        let name = self.text(self.field(&fields, index, "fqn")?)?;
        let offset = match fields.iter().find(|(name, _)| *name == "offset") {
            Some(&(_, offset)) if *self.pickle.node(offset) != Node::None => {
                Some(self.sizes(offset)?)
            }
            _ => None,
        };
        let fields = self.fields(info, FILESYSTEM, "_StorageInfo")?;
        let file = self.text(self.field(&fields, info, "relative_path")?)?.to_owned();
        let offset_in_file = self.integer(self.field(&fields, info, "offset")?)?;
        let length = self.integer(self.field(&fields, info, "length")?)?;
        let codecs = match fields.iter().find(|(name, _)| *name == "transform_descriptors") {
            Some(&(_, codecs)) => self.texts(codecs)?,
            None => Vec::new(),
        };
        let Some(end) = offset_in_file.checked_add(length) else {
            return Err(self.wrong(info, "a range of a file"));
        };
        let stretch = Stretch { file, range: offset_in_file..end, codecs };
        self.found.files.entry(name.to_owned()).or_default().push((offset, stretch));
        Ok(())
    }

    fn count(&mut self) -> Result<(), String> {
        match self.rest.checked_sub(1) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err("it describes more chunks than it has bytes".to_owned()),
        }
    }

    /// The state of an object of a class.
    fn fields(&self, id: Id, module: &str, name: &str) -> Result<Vec<(&'a str, Id)>, String> {
        let wanted = || format!("a {module}.{name}");
        let Node::Object(object) = self.pickle.node(id) else {
            return Err(self.wrong(id, &wanted()));
        };
        match self.pickle.node(object.callable) {
            Node::Global(m, n) if (*m, *n) == (module, name) => {}
            _ => return Err(self.wrong(id, &wanted())),
        }
        let Some(state) = object.state else { return Ok(Vec::new()) };
        let pairs = self.dict(state)?;
        if pairs.len() > FIELDS {
            return Err(self.wrong(id, "an object of few fields"));
        }
        let mut fields = Vec::new();
        for &(key, value) in pairs {
            fields.push((self.text(key)?, value));
        }
        Ok(fields)
    }

    fn field(&self, fields: &[(&str, Id)], of: Id, name: &str) -> Result<Id, String> {
        // The last one is what Python would keep.
        let found = fields.iter().rev().find(|(field, _)| *field == name);
        found.map(|(_, id)| *id).ok_or_else(|| self.wrong(of, &format!("a field `{name}`")))
    }

    fn dict(&self, id: Id) -> Result<&'p [(Id, Id)], String> {
        match self.pickle.node(id) {
            Node::Dict(pairs) => Ok(pairs),
            Node::Object(object) => match self.pickle.node(object.callable) {
                Node::Global("collections", "OrderedDict") => Ok(&object.items),
                _ => Err(self.wrong(id, "a dictionary")),
            },
            _ => Err(self.wrong(id, "a dictionary")),
        }
    }

    fn text(&self, id: Id) -> Result<&'a str, String> {
        match self.pickle.node(id) {
            Node::Text(text) => Ok(text),
            _ => Err(self.wrong(id, "a text")),
        }
    }

    fn texts(&self, id: Id) -> Result<Vec<String>, String> {
        match self.pickle.node(id) {
            Node::None => Ok(Vec::new()),
            Node::List(parts) | Node::Tuple(parts) if parts.len() <= tensor::AXES => {
                parts.iter().map(|&part| self.text(part).map(str::to_owned)).collect()
            }
            _ => Err(self.wrong(id, "a short list of texts")),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>, String> {
        sizes(self.pickle, id).map_err(|reason| self.at(id, &reason))
    }

    fn integer(&self, id: Id) -> Result<u64, String> {
        tensor::integer(self.pickle, id).map_err(|reason| self.at(id, &reason))
    }

    fn wrong(&self, id: Id, wanted: &str) -> String {
        let found = match self.pickle.node(id) {
            Node::Object(object) => {
                format!("an object of {}", name_of(self.pickle.node(object.callable)))
            }
            other => name_of(other),
        };
        self.at(id, &format!("{wanted} is needed, and there is {found}"))
    }

    fn at(&self, id: Id, reason: &str) -> String {
        format!("byte {} of the pickle: {reason}", self.pickle.place(id))
    }
}
