//! Boxes of a tensor: how they intersect, how a box lies in memory, and whether boxes tile a whole.
//!
//! A [`Region`] is `[offset, offset + shape)` per axis. All data are row-major: the last axis is
//! contiguous. A tensor of no axes (a scalar) has the one region `[] + []`, of one element.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A box of a tensor, in elements.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Region {
    /// First index per axis.
    pub offset: Vec<usize>,
    /// Extent per axis.
    pub shape: Vec<usize>,
}

/// How boxes fail to tile a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CoverFault {
    /// Nothing holds the elements of this box.
    Gap(Region),
    /// Boxes number `.0` and `.1` both hold some element.
    Overlap(usize, usize),
}

impl fmt::Display for Region {
    /// `[offset, …]+[extent, …]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{:?}", self.offset, self.shape)
    }
}

impl Region {
    /// The box at `offset` of extents `shape`.
    pub fn new(offset: &[usize], shape: &[usize]) -> Region {
        Region { offset: offset.to_vec(), shape: shape.to_vec() }
    }

    /// The box that is the whole of a tensor.
    pub fn whole(shape: &[usize]) -> Region {
        Region { offset: vec![0; shape.len()], shape: shape.to_vec() }
    }

    /// Number of elements; `None` where it does not fit.
    pub fn elements(&self) -> Option<usize> {
        elements(&self.shape)
    }

    /// One past the last index of an axis (saturating: the caller has checked bounds or will).
    fn end(&self, axis: usize) -> usize {
        self.offset[axis].saturating_add(self.shape[axis])
    }

    /// True where the box has the tensor's number of axes and does not stick out of it.
    pub fn fits(&self, global_shape: &[usize]) -> bool {
        self.offset.len() == global_shape.len()
            && self.shape.len() == global_shape.len()
            && (0..global_shape.len()).all(|axis| {
                self.offset[axis]
                    .checked_add(self.shape[axis])
                    .is_some_and(|end| end <= global_shape[axis])
            })
    }

    /// The common part of two boxes of one tensor; `None` where it has no element.
    pub fn intersect(&self, other: &Region) -> Option<Region> {
        let mut offset = Vec::with_capacity(self.offset.len());
        let mut shape = Vec::with_capacity(self.offset.len());
        for axis in 0..self.offset.len() {
            let start = self.offset[axis].max(other.offset[axis]);
            let end = self.end(axis).min(other.end(axis));
            if end <= start {
                return None;
            }
            offset.push(start);
            shape.push(end - start);
        }
        Some(Region { offset, shape })
    }
}

/// Number of elements of a shape; `None` where it does not fit a `usize`.
pub fn elements(shape: &[usize]) -> Option<usize> {
    // A zero extent makes the tensor empty however large the others are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent))
}

/// Calls `visit(from, to, len)` for each contiguous run of `part`, in elements: `from` counts in
/// the row-major box `source`, `to` in `target`. `part` lies within both. Runs come in rising
/// order of `from` and of `to`, and are as long as both memories allow.
///
/// # Errors
/// Whatever `visit` returns, at once.
pub fn for_each_run<E>(
    part: &Region,
    source: &Region,
    target: &Region,
    mut visit: impl FnMut(usize, usize, usize) -> Result<(), E>,
) -> Result<(), E> {
    let axes = part.shape.len();
    if part.shape.contains(&0) {
        return Ok(());
    }
    // Axes after `split` are whole in both boxes, so that a run spans them and all of `split`.
    let mut split = axes;
    let mut run = 1;
    while split > 0 {
        split -= 1;
        run *= part.shape[split];
        let extent = part.shape[split];
        if extent != source.shape[split] || extent != target.shape[split] {
            break;
        }
    }
    let mut index = vec![0; split];
    loop {
        let (mut from, mut to) = (0, 0);
        for axis in 0..axes {
            let at = part.offset[axis] + index.get(axis).copied().unwrap_or(0);
            from = from * source.shape[axis] + (at - source.offset[axis]);
            to = to * target.shape[axis] + (at - target.offset[axis]);
        }
        visit(from, to, run)?;
        let Some(axis) = (0..split).rev().find(|&axis| index[axis] + 1 < part.shape[axis]) else {
            return Ok(());
        };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

/// Cuts a tensor into consecutive boxes of at most `max_elements` (at least one) each, in
/// row-major order, so that it can be walked in bounded memory. An empty tensor has no box.
pub fn slabs(shape: &[usize], max_elements: usize) -> Vec<Region> {
    if shape.contains(&0) {
        return Vec::new();
    }
    let mut cut = 0;
    while cut < shape.len() && elements(&shape[cut..]).is_none_or(|count| count > max_elements) {
        cut += 1;
    }
    // Axes from `cut` on are whole; the axis before is cut in steps; those before it one by one.
    let Some(axis) = cut.checked_sub(1) else { return vec![Region::whole(shape)] };
    let step = (max_elements / elements(&shape[cut..]).unwrap_or(1)).max(1);
    let mut slabs = Vec::new();
    let mut offset = vec![0; shape.len()];
    loop {
        let mut extents = vec![1; shape.len()];
        extents[cut..].copy_from_slice(&shape[cut..]);
        extents[axis] = step.min(shape[axis] - offset[axis]);
        slabs.push(Region { offset: offset.clone(), shape: extents });
        offset[axis] += step;
        if offset[axis] < shape[axis] {
            continue;
        }
        offset[axis] = 0;
        let Some(carry) = (0..axis).rev().find(|&a| offset[a] + 1 < shape[a]) else {
            return slabs;
        };
        offset[carry] += 1;
        offset[carry + 1..axis].fill(0);
    }
}

/// Proves that boxes of at least one element, each within `shape`, tile it: every element is
/// held exactly once. O(n log n) for a grid of boxes.
///
/// # Errors
/// The first gap or overlap found.
pub fn prove_cover(shape: &[usize], boxes: &[Region]) -> Result<(), CoverFault> {
    if let Some((first, second)) = find_overlap(shape.len(), boxes) {
        return Err(CoverFault::Overlap(first, second));
    }
    // Disjoint boxes inside the whole hold at most its elements, so the sum fits where it does.
    let held: usize = boxes.iter().filter_map(Region::elements).sum();
    if elements(shape) == Some(held) {
        return Ok(());
    }
    let all: Vec<&Region> = boxes.iter().collect();
    let mut gap = Region::whole(shape);
    let found = narrow_gap(&all, 0, &mut gap);
    debug_assert!(found, "disjoint boxes of too small a volume leave a gap");
    Err(CoverFault::Gap(gap))
}

/// Two boxes with a common element. Sweeps the axis along which the boxes start at the most
/// different places, so that few are open at a time.
fn find_overlap(axes: usize, boxes: &[Region]) -> Option<(usize, usize)> {
    let Some(sweep) = sweep_axis(axes, boxes.iter().map(|b| &b.offset[..])) else {
        // A scalar: any two boxes are the same element.
        return (boxes.len() > 1).then_some((0, 1));
    };
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by_key(|&number| boxes[number].offset[sweep]);
    let mut open: Vec<usize> = Vec::new();
    for number in order {
        let start = boxes[number].offset[sweep];
        open.retain(|&other| boxes[other].end(sweep) > start);
        let clash = open.iter().find(|&&other| boxes[other].intersect(&boxes[number]).is_some());
        if let Some(&other) = clash {
            return Some((other.min(number), other.max(number)));
        }
        open.push(number);
    }
    None
}

/// The boxes of a tensor that are its elements `start..end` in row-major order, in that order: at
/// most two for each axis but the first, and one.
pub fn interval(shape: &[usize], start: usize, end: usize) -> Vec<Region> {
    let mut boxes = Vec::new();
    add_interval(shape, &mut Vec::new(), start, end, &mut boxes);
    boxes
}

/// Adds the boxes of an interval of what lies at `prefix`, whose further axes are `shape`.
fn add_interval(
    shape: &[usize],
    prefix: &mut Vec<usize>,
    start: usize,
    end: usize,
    boxes: &mut Vec<Region>,
) {
    if start >= end {
        return;
    }
    let Some((_, inner)) = shape.split_first() else {
        boxes.push(Region { offset: prefix.clone(), shape: vec![1; prefix.len()] });
        return;
    };
    let row = inner.iter().product::<usize>().max(1);
    let (first, last) = (start.div_ceil(row), end / row);
    if first > last {
        // Within one row.
        return add_row(inner, prefix, last, (start - last * row, end - last * row), boxes);
    }
    if start < first * row {
        add_row(inner, prefix, first - 1, (start - (first - 1) * row, row), boxes);
    }
    if first < last {
        let ones = prefix.iter().map(|_| 1);
        boxes.push(Region {
            offset: prefix.iter().copied().chain([first]).chain(inner.iter().map(|_| 0)).collect(),
            shape: ones.chain([last - first]).chain(inner.iter().copied()).collect(),
        });
    }
    add_row(inner, prefix, last, (0, end - last * row), boxes);
}

/// Adds the boxes of an interval of row `number`.
fn add_row(
    inner: &[usize],
    prefix: &mut Vec<usize>,
    number: usize,
    (start, end): (usize, usize),
    boxes: &mut Vec<Region>,
) {
    prefix.push(number);
    add_interval(inner, prefix, start, end, boxes);
    prefix.pop();
}

/// The axis along which boxes begin at the most different places; `None` for a scalar's.
pub fn sweep_axis<'a>(
    axes: usize,
    offsets: impl Iterator<Item = &'a [usize]> + Clone,
) -> Option<usize> {
    let starts = |axis: usize| {
        let mut starts: Vec<usize> = offsets.clone().map(|offset| offset[axis]).collect();
        starts.sort_unstable();
        starts.dedup();
        starts.len()
    };
    (0..axes).max_by_key(|&axis| starts(axis))
}

/// Narrows `gap` (whole along `axis` and later ones) to a box that no box of `boxes` touches.
fn narrow_gap(boxes: &[&Region], axis: usize, gap: &mut Region) -> bool {
    if boxes.is_empty() {
        return true;
    }
    if axis == gap.shape.len() {
        return false;
    }
    let (start, end) = (gap.offset[axis], gap.end(axis));
    let mut cuts: Vec<usize> = boxes.iter().flat_map(|b| [b.offset[axis], b.end(axis)]).collect();
    cuts.extend([start, end]);
    cuts.sort_unstable();
    cuts.dedup();
    for pair in cuts.windows(2).filter(|pair| pair[0] >= start && pair[1] <= end) {
        let inside: Vec<&Region> = boxes
            .iter()
            .filter(|b| b.offset[axis] <= pair[0] && b.end(axis) >= pair[1])
            .copied()
            .collect();
        (gap.offset[axis], gap.shape[axis]) = (pair[0], pair[1] - pair[0]);
        if narrow_gap(&inside, axis + 1, gap) {
            return true;
        }
    }
    (gap.offset[axis], gap.shape[axis]) = (start, end - start);
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_interval_is_its_boxes_in_order(
            shape in proptest::collection::vec(1_usize..5, 0..4),
            cuts in (0_usize..700, 0_usize..700),
        ) {
            let all: usize = shape.iter().product();
            let (a, b) = (cuts.0 % (all + 1), cuts.1 % (all + 1));
            let (start, end) = (a.min(b), a.max(b));
            let boxes = interval(&shape, start, end);
            prop_assert!(boxes.len() <= 2 * shape.len().max(1));
            let whole = Region::whole(&shape);
            let mut elements = Vec::new();
            for part in &boxes {
                prop_assert!(part.fits(&shape));
                for_each_run::<()>(part, &whole, part, |from, _, len| {
                    elements.extend(from..from + len);
                    Ok(())
                }).unwrap();
            }
            prop_assert_eq!(elements, (start..end).collect::<Vec<_>>());
        }
    }

    /// How often each element of `shape` is held.
    fn counts(shape: &[usize], boxes: &[Region]) -> Vec<(Vec<usize>, Vec<usize>)> {
        let held_by = |place: &[usize]| {
            let inside = |b: &Region| {
                (0..shape.len())
                    .all(|a| (b.offset[a]..b.offset[a] + b.shape[a]).contains(&place[a]))
            };
            (0..boxes.len()).filter(|&number| inside(&boxes[number])).collect()
        };
        slabs(shape, 1)
            .into_iter()
            .map(|slab| (slab.offset.clone(), held_by(&slab.offset)))
            .collect()
    }

    fn shape_and_boxes() -> impl Strategy<Value = (Vec<usize>, Vec<Region>)> {
        proptest::collection::vec(1_usize..5, 0..4).prop_flat_map(|shape| {
            let axis =
                |&extent: &usize| (0..extent).prop_flat_map(move |o| (Just(o), 1..=extent - o));
            let axes: Vec<_> = shape.iter().map(axis).collect();
            let region = axes.prop_map(|axes| {
                let (offset, shape) = axes.into_iter().unzip();
                Region { offset, shape }
            });
            (Just(shape), proptest::collection::vec(region, 0..5))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn the_proof_agrees_with_counting((shape, boxes) in shape_and_boxes()) {
            let counts = counts(&shape, &boxes);
            match prove_cover(&shape, &boxes) {
                Ok(()) => prop_assert!(counts.iter().all(|(_, held)| held.len() == 1)),
                Err(CoverFault::Overlap(a, b)) => {
                    let both = |held: &Vec<usize>| held.contains(&a) && held.contains(&b);
                    prop_assert!(a != b && counts.iter().any(|(_, held)| both(held)));
                }
                Err(CoverFault::Gap(gap)) => {
                    prop_assert!(gap.fits(&shape) && gap.elements() > Some(0));
                    for (place, held) in counts {
                        let here = Region { shape: vec![1; shape.len()], offset: place };
                        prop_assert!(here.intersect(&gap).is_none() || held.is_empty());
                    }
                }
            }
        }
    }

    #[test]
    fn a_grid_is_covered_and_a_hole_in_it_is_found() {
        let mut boxes: Vec<Region> =
            (0..64).map(|n| Region::new(&[n / 8 * 3, n % 8 * 5], &[3, 5])).collect();
        assert_eq!(prove_cover(&[24, 40], &boxes), Ok(()));
        let hole = boxes.remove(27);
        assert_eq!(prove_cover(&[24, 40], &boxes), Err(CoverFault::Gap(hole)));
    }

    #[test]
    fn runs_are_as_long_as_both_memories_allow() {
        let runs = |part: &Region, source: &Region, target: &Region| {
            let mut runs = Vec::new();
            for_each_run(part, source, target, |from, to, len| {
                runs.push((from, to, len));
                Ok::<(), ()>(())
            })
            .unwrap();
            runs
        };
        let whole = Region::whole(&[4, 6]);
        assert_eq!(runs(&whole, &whole, &whole), [(0, 0, 24)]);
        let rows = Region::new(&[1, 0], &[2, 6]);
        assert_eq!(runs(&rows, &whole, &rows), [(6, 0, 12)]);
        let columns = Region::new(&[1, 2], &[2, 3]);
        assert_eq!(runs(&columns, &whole, &columns), [(8, 0, 3), (14, 3, 3)]);
        let scalar = Region::whole(&[]);
        assert_eq!(runs(&scalar, &scalar, &scalar), [(0, 0, 1)]);
    }

    #[test]
    fn shapes_too_large_to_count_are_no_panic() {
        assert_eq!(elements(&[usize::MAX, 2]), None);
        assert_eq!(elements(&[usize::MAX, 2, 0]), Some(0));
        assert!(!Region::new(&[usize::MAX], &[2]).fits(&[usize::MAX]));
    }
}
