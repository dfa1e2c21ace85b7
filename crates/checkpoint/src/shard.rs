//! The inside of a shard: a valid safetensors file whose large chunks lie at 4 KiB boundaries.
//!
//! ```text
//! 0        8                  8+N, a multiple of 4096
//! │ N (u64) │ JSON, then spaces │ chunks of k·4096 bytes │ the rest, packed │
//! ```
//! safetensors forbids holes between tensors, so alignment comes from order: chunks are sorted by
//! the largest power of two (at most 4096) that divides their length, largest first. Every start
//! is then a sum of multiples of the chunk's own power, so each chunk is aligned to that power:
//! whole pages at page boundaries, and every chunk at least to its element size.

use std::cmp::Reverse;

use serde::Serialize;

use crate::{Dtype, FORMAT_VERSION, Region};

/// Where the data of a shard begins, and the unit to which large chunks are aligned.
pub(crate) const ALIGN_BYTES: u64 = 4096;

/// A header longer than this is not begun (safetensors readers refuse 100 MB).
const MAX_HEADER_BYTES: usize = 16 << 20;

/// Data never begin later: one chunk's entry may come after the limit, and readers of safetensors
/// refuse headers that are longer.
pub(crate) const MAX_DATA_START: u64 = 100_000_000;

/// The description of a chunk that goes into its shard's header.
pub(crate) struct Label<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub region: &'a Region,
    pub bytes: u64,
}

/// One chunk's place in its shard's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the chunk in the list that was planned.
    pub chunk: usize,
    /// First byte, counted from the start of the file.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// One shard to be written.
pub(crate) struct Plan {
    /// Length, JSON and padding: everything before the data.
    pub header: Vec<u8>,
    /// The chunks in file order, without holes.
    pub places: Vec<Place>,
    /// Length of the whole file.
    pub bytes: u64,
}

/// The value of one chunk's key in the header.
#[derive(Serialize)]
struct Entry<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    data_offsets: [u64; 2],
}

/// Orders chunks and cuts them into shards of about `max_shard_bytes`, numbered from `first`; a
/// chunk is never cut, so a larger one makes a larger shard. Chunks hold at least one byte each.
pub(crate) fn plan(
    labels: &[Label],
    (rank, first): (u32, usize),
    max_shard_bytes: u64,
) -> Vec<Plan> {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    let unit = |number: &usize| {
        let bytes = labels[*number].bytes;
        (bytes & bytes.wrapping_neg()).min(ALIGN_BYTES)
    };
    order.sort_by_key(|number| Reverse(unit(number)));

    let mut shards: Vec<Vec<usize>> = Vec::new();
    let (mut bytes, mut header_bytes) = (0_u64, 0);
    for number in order {
        let label = &labels[number];
        // Every character may need six for its escape; punctuation and numbers need the rest.
        let entry_bytes = 6 * label.name.len() + 24 * label.region.shape.len() + 100;
        let full =
            bytes + label.bytes > max_shard_bytes || header_bytes + entry_bytes > MAX_HEADER_BYTES;
        match shards.last_mut() {
            Some(shard) if !full => shard.push(number),
            _ => {
                shards.push(vec![number]);
                (bytes, header_bytes) = (0, 0);
            }
        }
        bytes += label.bytes;
        header_bytes += entry_bytes;
    }
    let numbered = shards.iter().zip(first..);
    numbered.map(|(shard, number)| fill(labels, shard, rank, number)).collect()
}

/// Writes the header of one shard and places its chunks behind it.
fn fill(labels: &[Label], order: &[usize], rank: u32, shard: usize) -> Plan {
    let mut json = format!(
        "{{\"__metadata__\":{{\"muster.format_version\":\"{FORMAT_VERSION}\",\
         \"muster.rank\":\"{rank}\",\"muster.shard\":\"{shard}\"}}"
    )
    .into_bytes();
    let mut places = Vec::with_capacity(order.len());
    let mut at = 0;
    for &chunk in order {
        let label = &labels[chunk];
        let end = at + label.bytes;
        let entry =
            Entry { dtype: label.dtype, shape: &label.region.shape, data_offsets: [at, end] };
        json.push(b',');
        append_json(&mut json, &label.name);
        json.push(b':');
        append_json(&mut json, &entry);
        places.push(Place { chunk, start: at, end });
        at = end;
    }
    json.push(b'}');
    let data_start = (8 + json.len() as u64).next_multiple_of(ALIGN_BYTES);
    let mut header = (data_start - 8).to_le_bytes().to_vec();
    header.append(&mut json);
    header.resize(data_start as usize, b' ');
    for place in &mut places {
        place.start += data_start;
        place.end += data_start;
    }
    Plan { header, places, bytes: data_start + at }
}

fn append_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("strings and integers serialize into memory");
}
