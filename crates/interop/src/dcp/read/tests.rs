//! Metadata of every shape that versions of PyTorch and Megatron write, and contradictory ones.

use std::ops::Range;

use layout::Dtype;

use super::*;
use crate::Elements as _;
use crate::dcp::pickle_out::PickleOut;
use crate::dcp::write::pickled;
use crate::dcp::zip_out::ZipOut;

const METADATA: &str = "torch.distributed.checkpoint.metadata";

/// Properties of a tensor as a version writes them.
#[derive(Clone, Copy)]
enum Properties {
    Five,
    Six,
    Named,
}

type Chunks = &'static [(&'static [usize], &'static [usize])];

struct Entry {
    name: &'static str,
    dtype: &'static str,
    properties: Properties,
    shape: &'static [usize],
    chunks: Chunks,
}

struct Place {
    name: &'static str,
    offset: &'static [usize],
    range: Range<u64>,
    codecs: &'static [&'static str],
}

fn size(out: &mut PickleOut, sizes: &[usize]) {
    out.call("torch", "Size", |out| {
        out.tuple(|out| sizes.iter().for_each(|&size| out.int(size as u64)));
    });
}

fn properties(out: &mut PickleOut, entry: &Entry) {
    let all = |out: &mut PickleOut| {
        out.global("torch", entry.dtype);
        out.call("torch.serialization", "_get_layout", |out| out.word("torch.strided"));
        out.no();
        out.call(METADATA, "_MEM_FORMAT_ENCODING", |out| out.int(0));
        out.no();
    };
    out.object(METADATA, "TensorProperties", |out| match entry.properties {
        Properties::Five => out.tuple(all),
        Properties::Six => out.tuple(|out| {
            all(out);
            out.tuple(|out| out.int(1));
        }),
        Properties::Named => out.dict(|out| {
            out.word("dtype");
            out.global("torch", entry.dtype);
        }),
    });
}

fn metadata(entries: &[Entry], places: &[Place]) -> Vec<u8> {
    let mut out = PickleOut::new();
    let one = |out: &mut PickleOut, entry: &Entry| {
        out.text(entry.name);
        out.object(METADATA, "TensorStorageMetadata", |out| {
            out.dict(|out| {
                out.word("properties");
                properties(out, entry);
                out.word("size");
                size(out, entry.shape);
                out.word("chunks");
                out.list(|out| {
                    for (offsets, sizes) in entry.chunks {
                        out.object(METADATA, "ChunkStorageMetadata", |out| {
                            out.dict(|out| {
                                out.word("offsets");
                                size(out, offsets);
                                out.word("sizes");
                                size(out, sizes);
                            });
                        });
                    }
                });
            });
        });
    };
    let place = |out: &mut PickleOut, place: &Place| {
        out.object(METADATA, "MetadataIndex", |out| {
            out.dict(|out| {
                out.word("fqn");
                out.text(place.name);
                out.word("offset");
                size(out, place.offset);
            });
        });
        out.object("torch.distributed.checkpoint.filesystem", "_StorageInfo", |out| {
            out.dict(|out| {
                out.word("relative_path");
                out.text("data");
                out.word("offset");
                out.int(place.range.start);
                out.word("length");
                out.int(place.range.end - place.range.start);
                out.word("transform_descriptors");
                out.list(|out| place.codecs.iter().for_each(|codec| out.text(codec)));
            });
        });
    };
    out.object(METADATA, "Metadata", |out| {
        out.dict(|out| {
            out.word("state_dict_metadata");
            out.dict(|out| entries.iter().for_each(|entry| one(out, entry)));
            out.word("storage_data");
            out.dict(|out| places.iter().for_each(|at| place(out, at)));
        });
    });
    out.finish()
}

/// Two archives of `[2, 3]` floats, the second's elements from 6 on.
fn data() -> (Vec<u8>, [Range<u64>; 2]) {
    let mut bytes = Vec::new();
    let mut ends = [0; 2];
    for (end, first) in ends.iter_mut().zip([0, 6]) {
        let mut zip = ZipOut::new(&mut bytes);
        zip.entry("archive/data.pkl", &pickled(Dtype::F32, &[2, 3])).unwrap();
        let elements = (first..first + 6).flat_map(|n| (n as f32).to_le_bytes());
        zip.entry("archive/data/0", &elements.collect::<Vec<u8>>()).unwrap();
        zip.finish().unwrap();
        *end = bytes.len() as u64;
    }
    (bytes, [0..ends[0], ends[0]..ends[1]])
}

fn open(entries: &[Entry], places: &[Place]) -> Result<TorchCheckpoint, Error> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data"), data().0).unwrap();
    std::fs::write(dir.path().join(".metadata"), metadata(entries, places)).unwrap();
    let checkpoint = open_dcp(dir.path())?;
    for (name, tensor) in &checkpoint.foreign.tensors {
        let reader = checkpoint.foreign.tensor(name)?;
        let mut bytes = vec![0; 4 * tensor.len()];
        reader.read(0, &mut bytes)?;
        let counted: Vec<u8> = (0..12).flat_map(|n| (n as f32).to_le_bytes()).collect();
        assert_eq!(bytes, counted[..bytes.len()], "{name}");
    }
    Ok(checkpoint)
}

fn whole() -> Entry {
    const CHUNKS: Chunks = &[(&[0, 0], &[2, 3]), (&[2, 0], &[2, 3])];
    let (name, dtype, properties) = ("x", "float32", Properties::Six);
    Entry { name, dtype, properties, shape: &[4, 3], chunks: CHUNKS }
}

fn places(name: &'static str, offsets: [&'static [usize]; 2]) -> Vec<Place> {
    let ranges = data().1;
    let place = |(offset, range)| Place { name, offset, range, codecs: &[] };
    offsets.into_iter().zip(ranges).map(place).collect()
}

#[track_caller]
fn told(entries: &[Entry], places: &[Place], wanted: &str) {
    let told = open(entries, places).unwrap_err().to_string();
    assert!(told.contains(wanted), "{told}");
}

#[test]
fn properties_of_every_version_are_read() {
    for properties in [Properties::Five, Properties::Six, Properties::Named] {
        let entry = Entry { properties, ..whole() };
        let found = open(&[entry], &places("x", [&[0, 0], &[2, 0]])).unwrap();
        assert_eq!(found.foreign.tensors["x"].shape, [4, 3]);
    }
}

#[test]
fn a_replica_counts_once() {
    const CHUNKS: Chunks = &[(&[0, 0], &[2, 3]), (&[2, 0], &[2, 3]), (&[0, 0], &[2, 3])];
    let found =
        open(&[Entry { chunks: CHUNKS, ..whole() }], &places("x", [&[0, 0], &[2, 0]])).unwrap();
    assert_eq!(found.foreign.tensors["x"].pieces.len(), 2);
}

#[test]
fn axes_that_only_offsets_have_come_first() {
    const CHUNKS: Chunks = &[(&[0, 0, 0], &[2, 3]), (&[1, 0, 0], &[2, 3])];
    let entry = Entry { shape: &[2, 2, 3], chunks: CHUNKS, ..whole() };
    let found = open(&[entry], &places("x", [&[0, 0, 0], &[1, 0, 0]])).unwrap();
    let pieces = &found.foreign.tensors["x"].pieces;
    assert_eq!(pieces[1].region, Region::new(&[1, 0, 0], &[1, 2, 3]));
    const FEWER: Chunks = &[(&[0], &[2, 3])];
    told(&[Entry { chunks: FEWER, ..whole() }], &[], "a chunk at [0] has extents [2, 3]");
    const MORE: Chunks = &[(&[0, 0, 0], &[2, 3])];
    told(&[Entry { chunks: MORE, ..whole() }], &[], "is at [0, 0, 0], and the whole is [4, 3]");
}

#[test]
fn types_that_muster_has_not_are_left_out() {
    let entry = Entry { name: "y", dtype: "complex64", ..whole() };
    let mut all = places("x", [&[0, 0], &[2, 0]]);
    all.extend(places("y", [&[0, 0], &[2, 0]]));
    let found = open(&[whole(), entry], &all).unwrap();
    assert_eq!(found.foreign.tensors.len(), 1);
    let left = &found.left_out[0];
    assert!(left.name == "y" && left.reason.contains("its type is torch.complex64"), "{left:?}");
}

#[test]
fn metadata_that_contradict_themselves_or_the_files_are_refused() {
    let at = || places("x", [&[0, 0], &[2, 0]]);
    told(&[whole()], &at()[..1], "has no place for its chunk at [2, 0]");
    told(&[whole()], &places("x", [&[0, 0], &[0, 0]]), "two places of `x` at [0, 0]");
    let mut more = at();
    more.extend(places("x", [&[1, 0], &[3, 0]]));
    told(&[whole()], &more, "which is none of its");
    told(&[], &at(), "a place of `x` and no entry");
    told(&[whole(), whole()], &at(), "entry `x` is there twice");
    const GAP: Chunks = &[(&[0, 0], &[2, 3]), (&[3, 0], &[2, 3])];
    let entry = |chunks, shape| Entry { chunks, shape, ..whole() };
    let shifted = places("x", [&[0, 0], &[3, 0]]);
    told(&[entry(GAP, &[5, 3])], &shifted, "nothing holds its elements");
    const OVERLAP: Chunks = &[(&[0, 0], &[2, 3]), (&[1, 0], &[2, 3])];
    let shifted = places("x", [&[0, 0], &[1, 0]]);
    told(&[entry(OVERLAP, &[3, 3])], &shifted, "overlap");
    told(&[entry(whole().chunks, &[3, 3])], &at(), "is outside of [3, 3]");
    let dtype = Entry { dtype: "int32", ..whole() };
    told(&[dtype], &at(), "it holds F32 [2, 3], and the metadata says I32");
    const OTHER: Chunks = &[(&[0, 0], &[3, 2]), (&[3, 0], &[3, 2])];
    let shifted = places("x", [&[0, 0], &[3, 0]]);
    told(&[entry(OTHER, &[6, 2])], &shifted, "the file is of another save");
}

#[test]
fn bytes_that_went_through_codecs_are_refused() {
    let mut at = places("x", [&[0, 0], &[2, 0]]);
    at[1].codecs = &["stream.zstd"];
    told(&[whole()], &at, "its bytes went through stream.zstd");
}

/// A list of chunks that many entries share would be as long as their product.
#[test]
fn shared_chunks_are_counted() {
    static SHARED: [(&[usize], &[usize]); 1000] = [(&[0, 0], &[2, 3]); 1000];
    let entry = metadata(&[Entry { chunks: &SHARED, ..whole() }], &[]);
    assert!(Metadata::read(&entry).is_ok());
    // The first entry is remembered, and others are it: the marks of its end are ")…b" and "u".
    let storage = entry.windows(12).position(|twelve| twelve == b"storage_data").unwrap();
    let end = entry[..storage].iter().rposition(|&byte| byte == b'u').unwrap();
    let mut bytes = entry[..end].to_vec();
    bytes.extend(b"r\xff\xff\x00\x00");
    for number in 0..1000 {
        bytes.extend([0x8c, 4]);
        bytes.extend(format!("{number:04}j\u{0}").bytes().take(5));
        bytes.extend(b"\xff\xff\x00\x00");
    }
    bytes.extend(&entry[end..]);
    let told = Metadata::read(&bytes).unwrap_err();
    assert!(told.contains("more chunks than it has bytes"), "{told}");
}

#[test]
fn paths_lead_down() {
    for (path, is) in [
        ("__0_0.distcp", true),
        ("a/b", true),
        ("../a", false),
        ("a/../../b", false),
        ("/etc/passwd", false),
        ("", false),
        (".", false),
    ] {
        assert_eq!(is_below(Path::new(path)), is, "{path}");
    }
}
