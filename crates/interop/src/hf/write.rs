//! Safetensors files as transformers writes them: shards of some gigabytes, with an index.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Map, Value, json};

use super::directory::{INDEX, WHOLE};
use crate::{Arriving, Error, Outgoing};

/// Bytes that are read and written at once.
const BLOCK_BYTES: usize = 4 << 20;

/// How to write.
#[derive(Debug, Clone, Copy)]
pub struct SafetensorsOptions {
    /// A file is closed before it would grow beyond this; one larger tensor still gets its own.
    pub max_file_bytes: u64,
    /// Files that are written at once.
    pub threads: usize,
}

impl Default for SafetensorsOptions {
    fn default() -> SafetensorsOptions {
        SafetensorsOptions { max_file_bytes: 5_000_000_000, threads: 1 }
    }
}

/// Files that were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub tensors: usize,
    pub files: usize,
    /// Of the tensors.
    pub bytes: u64,
}

/// Makes tensors, so that each thread has its own.
pub(crate) type Make<'a> = dyn Fn(usize) -> Result<Outgoing<'a>, Error> + Sync + 'a;

/// A tensor's name, type, shape and bytes, as a header has them.
struct Entry {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
}

/// Writes `count` tensors into a directory. `done` is told of bytes as they are written.
///
/// # Errors
/// Two tensors of one name; a full disk, and whatever else hinders.
pub fn write_safetensors(
    into: &Arriving,
    count: usize,
    make: &Make,
    options: SafetensorsOptions,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Written, Error> {
    let mut entries = Vec::with_capacity(count);
    for number in 0..count {
        let Outgoing { name, shape, elements } = make(number)?;
        let dtype = elements.dtype();
        let bytes = (elements.len() * dtype.size_bytes()) as u64;
        entries.push(Entry { name, dtype: dtype.name(), shape, bytes });
    }
    let shards = shards(&entries, options.max_file_bytes);
    let name = |number: usize| match shards.len() {
        1 => WHOLE.to_owned(),
        of => format!("model-{:05}-of-{of:05}.safetensors", number + 1),
    };
    let next = Mutex::new(0..shards.len());
    let write = || -> Result<(), Error> {
        loop {
            let number = next.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).next();
            let Some(number) = number else { return Ok(()) };
            let tensors = shards[number].clone();
            let path = into.path().join(name(number));
            write_file(&path, &entries[tensors.clone()], tensors.start, make, done)?;
        }
    };
    std::thread::scope(|scope| {
        let threads = options.threads.clamp(1, shards.len().max(1));
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(write)).collect();
        let results = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        // All threads end before any result is looked at.
        results.collect::<Vec<_>>().into_iter().collect::<Result<(), Error>>()
    })?;
    let bytes = entries.iter().map(|entry| entry.bytes).sum();
    if shards.len() > 1 {
        let of_shard = |(number, tensors): (usize, &Range<usize>)| {
            let file = name(number);
            entries[tensors.clone()].iter().map(move |e| (e.name.clone(), file.clone()))
        };
        let map: BTreeMap<String, String> = shards.iter().enumerate().flat_map(of_shard).collect();
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": map });
        into.write(INDEX, format!("{index:#}\n").as_bytes())?;
    }
    Ok(Written { tensors: entries.len(), files: shards.len(), bytes })
}

/// Runs of tensors of at most so many bytes.
fn shards(entries: &[Entry], most: u64) -> Vec<Range<usize>> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (number, entry) in entries.iter().enumerate() {
        if number > start && bytes + entry.bytes > most {
            shards.push(start..number);
            (start, bytes) = (number, 0);
        }
        bytes += entry.bytes;
    }
    shards.push(start..entries.len());
    shards
}

fn write_file(
    path: &Path,
    entries: &[Entry],
    first: usize,
    make: &Make,
    done: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    let header = header(entries)?;
    let io = || Error::io("write", path);
    let mut file = File::create_new(path).map_err(io())?;
    file.write_all(&header).map_err(io())?;
    let mut block = vec![0; BLOCK_BYTES];
    for number in first..first + entries.len() {
        let Outgoing { elements, .. } = make(number)?;
        let size = elements.dtype().size_bytes();
        let step = BLOCK_BYTES / size;
        for start in (0..elements.len()).step_by(step) {
            let bytes = (elements.len() - start).min(step) * size;
            elements.read(start, &mut block[..bytes])?;
            file.write_all(&block[..bytes]).map_err(io())?;
            done(bytes as u64);
        }
    }
    file.sync_all().map_err(Error::io("fsync", path))
}

/// The header of a file whose tensors follow one another in this order.
fn header(entries: &[Entry]) -> Result<Vec<u8>, Error> {
    let mut map = Map::new();
    map.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut at = 0;
    for Entry { name, dtype, shape, bytes } in entries {
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes] });
        if map.insert(name.clone(), entry).is_some() {
            let reason = "would be written twice".to_owned();
            return Err(Error::Tensor { name: name.clone(), reason });
        }
        at += bytes;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes(), &text[..]].concat())
}
