//! Writes a directory that `torch.distributed.checkpoint` loads.
//!
//! ```text
//! tensors ─▶ blocks ─▶ __0_N.distcp, an archive of each ─▶ .metadata ─▶ the directory's name
//! ```
//! Each tensor is one chunk. Its bytes pass once, in blocks; their sum follows them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use layout::Dtype;

use super::pickle_out::PickleOut;
use super::tensor::{dtype_name, storage_class};
use super::zip_out::ZipOut;
use crate::{Arriving, Error, Outgoing};

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const FILESYSTEM: &str = "torch.distributed.checkpoint.filesystem";

/// Bytes of a tensor that are in memory at once.
const BLOCK_BYTES: usize = 4 << 20;

/// No archive has more around its payload, but for tensors of dozens of axes.
const AROUND_BYTES: u64 = 2048;

/// How to write a distributed checkpoint.
#[derive(Debug, Clone)]
pub struct DcpOptions {
    /// A file is closed before it would grow past this, but holds at least one tensor.
    pub max_file_bytes: u64,
}

impl Default for DcpOptions {
    fn default() -> DcpOptions {
        DcpOptions { max_file_bytes: 4 << 30 }
    }
}

/// A directory that was written.
#[derive(Debug)]
pub struct DcpWritten {
    pub path: PathBuf,
    /// Files of data.
    pub files: usize,
    /// Of all files.
    pub bytes: u64,
}

/// Where a tensor was put.
struct Placed {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    file: usize,
    offset: u64,
    length: u64,
}

/// Writes tensors as a distributed checkpoint of one rank, in the directory `target`, which
/// appears when all of it is durable.
///
/// # Errors
/// Something is at `target`; two tensors have one name; a tensor cannot be read; the disk fails.
pub fn write_dcp(
    target: &Path,
    tensors: Vec<Outgoing>,
    options: &DcpOptions,
) -> Result<DcpWritten, Error> {
    check(&tensors)?;
    let arriving = Arriving::new(target)?;
    let (mut placed, mut bytes, mut files) = (Vec::new(), 0, 0);
    let mut open: Option<DataFile> = None;
    for tensor in &tensors {
        let more = tensor.bytes().saturating_add(AROUND_BYTES);
        let is_full = |file: &DataFile| file.at.saturating_add(more) > options.max_file_bytes;
        if let Some(full) = open.take_if(|file| is_full(file)) {
            bytes += full.close()?;
        }
        let file = match open.as_mut() {
            Some(file) => file,
            None => {
                files += 1;
                open.insert(DataFile::create(&arriving, files - 1)?)
            }
        };
        let offset = file.at;
        file.tensor(tensor)?;
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        let (dtype, length, file) = (tensor.elements.dtype(), file.at - offset, files - 1);
        placed.push(Placed { name, dtype, shape, file, offset, length });
    }
    if let Some(file) = open {
        bytes += file.close()?;
    }
    let metadata = metadata(&placed);
    arriving.write(".metadata", &metadata)?;
    let path = arriving.finish()?;
    Ok(DcpWritten { path, files, bytes: bytes + metadata.len() as u64 })
}

/// Refuses before anything is written.
fn check(tensors: &[Outgoing]) -> Result<(), Error> {
    let mut names = BTreeSet::new();
    for tensor in tensors {
        let refuse = |reason| Err(Error::Tensor { name: tensor.name.clone(), reason });
        let (shape, elements) = (&tensor.shape, tensor.elements.len());
        if layout::region::elements(shape) != Some(elements) {
            return refuse(format!("shape {shape:?} is not of {elements} elements"));
        }
        if !names.insert(&tensor.name) {
            return refuse("there are two of this name".to_owned());
        }
    }
    Ok(())
}

/// A file of archives.
struct DataFile {
    path: PathBuf,
    out: io::BufWriter<File>,
    at: u64,
}

fn file_name(number: usize) -> String {
    format!("__0_{number}.distcp")
}

impl DataFile {
    fn create(arriving: &Arriving, number: usize) -> Result<DataFile, Error> {
        let path = arriving.path().join(file_name(number));
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        Ok(DataFile { path, out: io::BufWriter::new(file), at: 0 })
    }

    /// Appends the archive of a tensor.
    fn tensor(&mut self, tensor: &Outgoing) -> Result<(), Error> {
        let (path, elements) = (&self.path, &tensor.elements);
        let io = |error| Error::io("write", path)(error);
        let mut zip = ZipOut::new(&mut self.out);
        zip.entry("archive/data.pkl", &pickled(elements.dtype(), &tensor.shape)).map_err(io)?;
        zip.entry("archive/.format_version", b"1").map_err(io)?;
        zip.entry("archive/.storage_alignment", b"64").map_err(io)?;
        zip.entry("archive/byteorder", b"little").map_err(io)?;
        let mut data = zip.begin("archive/data/0", tensor.bytes()).map_err(io)?;
        let size = elements.dtype().size_bytes();
        let (most, mut start) = (BLOCK_BYTES / size, 0);
        let mut block = vec![0; most.min(elements.len()) * size];
        while start < elements.len() {
            let count = most.min(elements.len() - start);
            let block = &mut block[..count * size];
            elements.read(start, block)?;
            data.write(block).map_err(io)?;
            start += count;
        }
        data.end().map_err(io)?;
        zip.entry("archive/version", b"3\n").map_err(io)?;
        self.at += zip.finish().map_err(io)?;
        Ok(())
    }

    /// Makes the file durable; returns its length.
    fn close(mut self) -> Result<u64, Error> {
        let path = &self.path;
        self.out.flush().map_err(Error::io("write", path))?;
        self.out.get_ref().sync_all().map_err(Error::io("fsync", path))?;
        Ok(self.at)
    }
}

/// A tensor as `torch.save` describes it: protocol 2, row-major, on the CPU.
pub(super) fn pickled(dtype: Dtype, shape: &[usize]) -> Vec<u8> {
    let elements = layout::region::elements(shape).unwrap_or(0);
    let mut out = b"\x80\x02ctorch._utils\n_rebuild_tensor_".to_vec();
    let class = storage_class(dtype);
    out.extend(if class.is_some() { &b"v2\n"[..] } else { b"v3\n" });
    out.extend(b"((X\x07\x00\x00\x00storagec");
    let (module, class, count) = match class {
        Some(class) => ("torch", class, elements),
        None => ("torch.storage", "UntypedStorage", elements * dtype.size_bytes()),
    };
    out.extend(format!("{module}\n{class}\n").bytes());
    out.extend(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu");
    int(&mut out, count);
    out.extend(b"tQK\x00");
    let mut strides = vec![1_usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    for sizes in [shape, &strides] {
        out.push(b'(');
        sizes.iter().for_each(|&size| int(&mut out, size));
        out.push(b't');
    }
    out.extend(b"\x89ccollections\nOrderedDict\n)R");
    if storage_class(dtype).is_none() {
        out.extend(format!("ctorch\n{}\n", dtype_name(dtype)).bytes());
    }
    out.extend(b"tR.");
    out
}

/// An integer: nine bytes always, which are few.
fn int(out: &mut Vec<u8>, value: usize) {
    out.extend([0x8a, 9]);
    out.extend((value as u64).to_le_bytes());
    out.push(0);
}

/// The bytes of `.metadata`. Properties are the five that every version reads.
fn metadata(placed: &[Placed]) -> Vec<u8> {
    let mut out = PickleOut::new();
    out.object(METADATA, "Metadata", |out| {
        out.dict(|out| {
            out.word("state_dict_metadata");
            out.dict(|out| {
                for tensor in placed {
                    out.text(&tensor.name);
                    entry(out, tensor);
                }
            });
            out.word("planner_data");
            out.dict(|out| {
                for Placed { name, .. } in placed {
                    out.text(name);
                    out.tuple(|out| out.text(name));
                }
            });
            out.word("storage_data");
            out.dict(|out| placed.iter().for_each(|tensor| place(out, tensor)));
            out.word("storage_meta");
            out.none();
            out.word("version");
            out.text("1.0.0");
        });
    });
    out.finish()
}

fn entry(out: &mut PickleOut, Placed { dtype, shape, .. }: &Placed) {
    out.object(METADATA, "TensorStorageMetadata", |out| {
        out.dict(|out| {
            out.word("properties");
            out.object(METADATA, "TensorProperties", |out| {
                out.tuple(|out| {
                    out.global("torch", dtype_name(*dtype));
                    let layout = |out: &mut PickleOut| out.word("torch.strided");
                    out.call("torch.serialization", "_get_layout", layout);
                    out.no();
                    out.call(METADATA, "_MEM_FORMAT_ENCODING", |out| out.int(0));
                    out.no();
                });
            });
            out.word("size");
            size(out, shape);
            out.word("chunks");
            out.list(|out| {
                out.object(METADATA, "ChunkStorageMetadata", |out| {
                    out.dict(|out| {
                        out.word("offsets");
                        size(out, &vec![0; shape.len()]);
                        out.word("sizes");
                        size(out, shape);
                    });
                });
            });
        });
    });
}

fn place(out: &mut PickleOut, placed: &Placed) {
    let Placed { name, shape, file, offset, length, .. } = placed;
    out.object(METADATA, "MetadataIndex", |out| {
        out.dict(|out| {
            out.word("fqn");
            out.text(name);
            out.word("index");
            out.int(0);
            out.word("offset");
            size(out, &vec![0; shape.len()]);
        });
    });
    out.object(FILESYSTEM, "_StorageInfo", |out| {
        out.dict(|out| {
            out.word("relative_path");
            out.text(&file_name(*file));
            out.word("offset");
            out.int(*offset);
            out.word("length");
            out.int(*length);
        });
    });
}

fn size(out: &mut PickleOut, shape: &[usize]) {
    out.call("torch", "Size", |out| {
        out.tuple(|out| shape.iter().for_each(|&extent| out.int(extent as u64)));
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dcp::pickle::{Globals, Pickle};
    use crate::dcp::tensor::{self, Described};

    proptest! {
        #[test]
        fn a_tensor_is_described_as_the_reader_finds_it(
            dtype in prop::sample::select(Dtype::ALL.to_vec()),
            shape in proptest::collection::vec(0_usize..9, 0..5),
        ) {
            let bytes = pickled(dtype, &shape);
            let pickle = Pickle::read(&bytes, Globals::Only(&tensor::GLOBALS)).unwrap();
            let found = tensor::describe(&pickle, pickle.root()).unwrap();
            let elements = shape.iter().product::<usize>();
            let storage_bytes = (elements * dtype.size_bytes()) as u64;
            let key = "0".to_owned();
            prop_assert_eq!(found, Described { dtype, shape, key, storage_bytes, start: 0 });
        }
    }
}
