//! A foreign checkpoint by where its tensors lie, whatever its format.
//!
//! ```text
//! elements start..end ─▶ boxes ∩ pieces ─▶ runs of a piece ─▶ read ahead, summed ─▶ out
//! ```
//! A tensor is read from its first element to its last, so every piece of it is, too: each byte is
//! read once, in blocks, and a sum that the format keeps of a piece is checked as it passes.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest};
use layout::region::{CoverFault, for_each_run, interval, prove_cover};
use layout::{Dtype, Region};

use crate::{Elements, Error};

/// Memory for reading ahead, of all pieces of a tensor; and the least and most of one.
const AHEAD_BYTES: usize = 64 << 20;
const PIECE_BYTES: [usize; 2] = [64 << 10, 4 << 20];

/// The tensors of a foreign checkpoint.
#[derive(Debug)]
pub struct Foreign {
    /// As a person named it.
    pub path: PathBuf,
    /// Files that hold data.
    pub files: Vec<PathBuf>,
    pub tensors: BTreeMap<String, Located>,
}

/// A tensor, and where its elements are.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// They tile it.
    pub pieces: Vec<Piece>,
}

/// A box of a tensor whose elements lie one after another in a file, row-major and little-endian.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    pub region: Region,
    /// Number of the file.
    pub file: usize,
    /// Of the first byte.
    pub start: u64,
    /// CRC-32 (of zip files) of its bytes, where the format keeps one.
    pub crc32: Option<u32>,
}

impl Located {
    /// Number of elements; checked with the rest.
    pub fn len(&self) -> usize {
        layout::region::elements(&self.shape).unwrap_or(0)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Foreign {
    /// Checks that every element of every tensor is held once, within its file.
    ///
    /// # Errors
    /// The first tensor of which it is not so; a file that is missing or too short.
    pub fn new(
        path: &Path,
        files: Vec<PathBuf>,
        tensors: BTreeMap<String, Located>,
    ) -> Result<Foreign, Error> {
        let size = |path: &PathBuf| {
            let found = std::fs::metadata(path).map_err(Error::io("look at", path))?;
            match found.is_file() {
                true => Ok(found.len()),
                false => Err(Error::refused(path, "it is no file")),
            }
        };
        let sizes = files.iter().map(size).collect::<Result<Vec<u64>, Error>>()?;
        let foreign = Foreign { path: path.to_path_buf(), files, tensors };
        for (name, tensor) in &foreign.tensors {
            foreign.check(name, tensor, &sizes)?;
        }
        Ok(foreign)
    }

    fn check(&self, name: &str, tensor: &Located, sizes: &[u64]) -> Result<(), Error> {
        let Located { dtype, shape, pieces } = tensor;
        let refuse = |reason| Err(Error::Tensor { name: name.to_owned(), reason });
        let all = layout::region::elements(shape).and_then(|n| n.checked_mul(dtype.size_bytes()));
        if all.is_none() {
            return refuse(format!("shape {shape:?} is too large"));
        }
        let mut boxes = Vec::with_capacity(pieces.len());
        for Piece { region, file, start, .. } in pieces {
            if !region.fits(shape) || region.shape.contains(&0) {
                return refuse(format!("the box {region} is empty or outside {shape:?}"));
            }
            let bytes = region.elements().unwrap_or(0) as u64 * dtype.size_bytes() as u64;
            let has = sizes.get(*file).copied().unwrap_or(0);
            if start.checked_add(bytes).is_none_or(|end| end > has) {
                let file = self.files.get(*file).map(|file| file.display().to_string());
                let file = file.unwrap_or_default();
                return refuse(format!(
                    "{bytes} bytes at {start} of {file} hold {region}, and it has {has}"
                ));
            }
            boxes.push(region.clone());
        }
        let (path, name) = (self.path.clone(), name.to_owned());
        prove_cover(shape, &boxes).map_err(|fault| match fault {
            CoverFault::Gap(region) => Error::Gap { path, name, region },
            CoverFault::Overlap(a, b) => {
                let (first, second) = (boxes[a].to_string(), boxes[b].to_string());
                Error::Overlap { path, name, first, second }
            }
        })
    }

    /// The elements of a tensor.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn tensor<'a>(&'a self, name: &'a str) -> Result<impl Elements + 'a, Error> {
        let Some(located) = self.tensors.get(name) else {
            let reason = format!("{} has none of this name", self.path.display());
            return Err(Error::Tensor { name: name.to_owned(), reason });
        };
        Ok(Reader { foreign: self, name, located, open: RefCell::default() })
    }
}

/// Reads a tensor from its first element to its last.
struct Reader<'a> {
    foreign: &'a Foreign,
    name: &'a str,
    located: &'a Located,
    /// Of the pieces that have begun and not ended.
    open: RefCell<Open>,
}

#[derive(Default)]
struct Open {
    files: HashMap<usize, Arc<File>>,
    cursors: HashMap<usize, Cursor>,
}

/// A piece that is being read.
struct Cursor {
    file: Arc<File>,
    /// Bytes `start..start + block.len()` of the piece.
    block: Vec<u8>,
    start: usize,
    /// Of all bytes up to the block's end, unless some were passed over.
    digest: Option<Digest>,
}

impl Elements for Reader<'_> {
    fn dtype(&self) -> Dtype {
        self.located.dtype
    }

    fn len(&self) -> usize {
        self.located.len()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let Located { dtype, shape, pieces } = self.located;
        let size = dtype.size_bytes();
        let end = start + out.len() / size;
        let mut open = self.open.borrow_mut();
        let mut rest = out;
        for target in interval(shape, start, end) {
            let bytes = target.elements().unwrap_or(0) * size;
            let (part_out, after) = rest.split_at_mut(bytes);
            rest = after;
            for (number, piece) in pieces.iter().enumerate() {
                let Some(part) = piece.region.intersect(&target) else { continue };
                for_each_run(&part, &piece.region, &target, |from, to, len| {
                    let out = &mut part_out[to * size..(to + len) * size];
                    self.read_piece(&mut open, number, from * size, out)
                })?;
            }
        }
        if end == self.len() {
            *open = Open::default();
        }
        Ok(())
    }
}

impl Reader<'_> {
    fn piece_bytes(&self, number: usize) -> usize {
        let elements = self.located.pieces[number].region.elements().unwrap_or(0);
        elements * self.located.dtype.size_bytes()
    }

    fn path(&self, number: usize) -> &Path {
        &self.foreign.files[self.located.pieces[number].file]
    }

    /// Bytes of a piece.
    fn read_piece(
        &self,
        open: &mut Open,
        number: usize,
        mut at: usize,
        mut out: &mut [u8],
    ) -> Result<(), Error> {
        let all = self.piece_bytes(number);
        while !out.is_empty() {
            let cursor = self.cursor(open, number)?;
            let end = cursor.start + cursor.block.len();
            if at < cursor.start || at >= end {
                self.fill(cursor, number, at)?;
                continue;
            }
            let len = out.len().min(end - at);
            let (now, after) = out.split_at_mut(len);
            now.copy_from_slice(&cursor.block[at - cursor.start..][..len]);
            (at, out) = (at + len, after);
            if at == all {
                open.cursors.remove(&number);
            }
        }
        Ok(())
    }

    fn cursor<'o>(&self, open: &'o mut Open, number: usize) -> Result<&'o mut Cursor, Error> {
        let Open { files, cursors } = open;
        Ok(match cursors.entry(number) {
            std::collections::hash_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                let piece = &self.located.pieces[number];
                let path = self.path(number);
                let file = match files.get(&piece.file) {
                    Some(file) => Arc::clone(file),
                    None => {
                        let file = File::open(path).map_err(Error::io("open", path))?;
                        Arc::clone(files.entry(piece.file).or_insert(Arc::new(file)))
                    }
                };
                let crc = || Digest::new(CrcAlgorithm::Crc32IsoHdlc);
                let digest = piece.crc32.map(|_| crc());
                free.insert(Cursor { file, block: Vec::new(), start: 0, digest })
            }
        })
    }

    /// Reads a block at byte `at` of a piece.
    fn fill(&self, cursor: &mut Cursor, number: usize, at: usize) -> Result<(), Error> {
        let (all, path) = (self.piece_bytes(number), self.path(number));
        let piece = &self.located.pieces[number];
        let [least, most] = PIECE_BYTES;
        let ahead = (AHEAD_BYTES / self.located.pieces.len()).clamp(least, most);
        if at != cursor.start + cursor.block.len() {
            cursor.digest = None;
        }
        cursor.start = at;
        cursor.block.resize(ahead.min(all - at), 0);
        let read = cursor.file.read_exact_at(&mut cursor.block, piece.start + at as u64);
        read.map_err(Error::io("read", path))?;
        let Some(digest) = &mut cursor.digest else { return Ok(()) };
        digest.update(&cursor.block);
        let (actual, expected) = (digest.finalize() as u32, piece.crc32);
        let (start, end) = (piece.start, piece.start + all as u64);
        match expected {
            Some(expected) if at + cursor.block.len() == all && actual != expected => {
                let (path, tensor) = (path.to_path_buf(), format!("`{}`", self.name));
                Err(Error::Sum { path, start, end, tensor, expected, actual })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A tensor of u16 whose elements are their own number, cut along both axes.
    fn cut(dir: &Path, shape: [usize; 2], cuts: [usize; 2]) -> (Foreign, Vec<u8>) {
        let value = |row: usize, column: usize| (row * shape[1] + column) as u16;
        let (mut pieces, mut files) = (Vec::new(), Vec::new());
        let bands = |axis: usize| {
            let cut = cuts[axis] % (shape[axis] + 1);
            [(0, cut), (cut, shape[axis])].into_iter().filter(|(first, end)| first < end)
        };
        for (first_row, end_row) in bands(0) {
            for (first, end) in bands(1) {
                let mut bytes = vec![7; 3];
                for row in first_row..end_row {
                    (first..end).for_each(|c| bytes.extend(value(row, c).to_le_bytes()));
                }
                let path = dir.join(format!("{}", files.len()));
                std::fs::write(&path, &bytes).unwrap();
                let region = Region::new(&[first_row, first], &[end_row - first_row, end - first]);
                let crc = crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, &bytes[3..]) as u32;
                pieces.push(Piece { region, file: files.len(), start: 3, crc32: Some(crc) });
                files.push(path);
            }
        }
        let whole = (0..(shape[0] * shape[1]) as u16).flat_map(u16::to_le_bytes).collect();
        let located = Located { dtype: Dtype::U16, shape: shape.to_vec(), pieces };
        let tensors = BTreeMap::from([("x".to_owned(), located)]);
        (Foreign::new(dir, files, tensors).unwrap(), whole)
    }

    proptest! {
        #[test]
        fn a_tensor_is_read_from_pieces_in_any_steps(
            shape in [1_usize..40, 1_usize..40],
            cuts in [any::<usize>(), any::<usize>()],
            steps in proptest::collection::vec(1_usize..300, 1..5),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (foreign, whole) = cut(dir.path(), shape, cuts);
            let reader = foreign.tensor("x").unwrap();
            let mut found = Vec::new();
            for step in steps.iter().cycle() {
                let start = found.len() / 2;
                let more = (*step).min(reader.len() - start);
                let mut out = vec![0; 2 * more];
                reader.read(start, &mut out).unwrap();
                found.extend(out);
                if found.len() == whole.len() {
                    break;
                }
            }
            prop_assert_eq!(found, whole);
        }
    }

    #[test]
    fn a_flipped_bit_is_found_by_the_sum() {
        let dir = tempfile::tempdir().unwrap();
        let (foreign, whole) = cut(dir.path(), [20, 10], [7, 4]);
        let path = dir.path().join("3");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 8;
        std::fs::write(&path, bytes).unwrap();
        let mut out = vec![0; whole.len()];
        let error = foreign.tensor("x").unwrap().read(0, &mut out).unwrap_err();
        assert!(matches!(error, Error::Sum { .. }), "{error}");
    }

    #[test]
    fn gaps_overlaps_and_short_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (foreign, _) = cut(dir.path(), [6, 4], [2, 1]);
        let changed = |change: fn(&mut Located)| {
            let mut tensors = foreign.tensors.clone();
            tensors.values_mut().for_each(change);
            Foreign::new(dir.path(), foreign.files.clone(), tensors).unwrap_err().to_string()
        };
        let told = [
            changed(|x| drop(x.pieces.pop())),
            changed(|x| x.pieces.push(x.pieces[0].clone())),
            changed(|x| x.pieces[0].start = 1 << 40),
            changed(|x| x.pieces[0].file = 9),
            changed(|x| x.pieces[0].region.offset[0] = 6),
            changed(|x| x.shape = vec![usize::MAX, 4]),
        ];
        let wanted = ["nothing holds", "overlap", "and it has", "and it has", "outside", "large"];
        for (told, wanted) in told.iter().zip(wanted) {
            assert!(told.contains(wanted), "{told}");
        }
    }
}
