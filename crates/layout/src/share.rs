//! Contiguous parts of a number of things, as equal as whole things allow.

use std::ops::Range;

/// Number `index` of `parts` contiguous parts of `count` things, larger parts first.
pub fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    let (each, extra) = (count / parts, count % parts);
    let start = index * each + index.min(extra);
    start..start + each + usize::from(index < extra)
}
