//! The collectives that one member is apart in, and those that leave their input as it is, as
//! steps that there are: a reduction that the root alone owns, a personalized exchange of which
//! most parts are empty.
//!
//! ```text
//! reduce    reduction     the root owns all, the others nothing
//! gather    all-to-all    each gives its share to the root
//! scatter   all-to-all    the root gives each its share
//! into      all-to-all    each gives what it has to all, itself among them; by hosts a gather
//! ```
//!
//! Where the results go over the input, what is the member's own is left out: it is there already.

use std::ops::Range;

use device::{DType, DeviceError, Tensor};

use crate::hosts::GatherByHosts;
use crate::one_shot::OneShot;
use crate::primitives::{AllToAll, Gather, OrderedReduce};
use crate::site::Site;
use crate::step::Step;
use crate::{CommError, EvenPlan, Result, Segments, Window};

/// Segments of `world` members, of which `root` has all.
///
/// # Errors
/// No such member.
pub(crate) fn only(root: usize, range: Range<usize>, world: usize) -> Result<Segments> {
    let mut segments = vec![Vec::new(); world];
    let ranges = segments.get_mut(root);
    ranges.ok_or(CommError::NoSuchRank { rank: root, world })?.push(range);
    Ok(segments.into())
}

/// The result of all windows in every member's `into`, which may be the same window.
///
/// # Errors
/// Those of a reduction; a window of another group, or one that is too small.
pub(crate) fn all_reduce(
    window: &Window,
    plan: &EvenPlan,
    into: &Window,
    site: &Site,
) -> Result<Vec<Step>> {
    into.check(site.group)?;
    window.check(site.group)?;
    let (range, dtype) = (plan.range(), plan.dtype());
    let len = into.bytes() / dtype.bytes();
    if len < range.end {
        return Err(short("into", len, range.end, site));
    }
    if range.end > window.bytes() / dtype.bytes() {
        let (Range { start, end }, len) = (range, window.bytes() / dtype.bytes());
        return Err(CommError::Range { what: "bucket", start, end, len });
    }
    let out = into.tensor(range.start, &[range.len()], dtype)?;
    if let Some(shot) = OneShot::reduce_whole(window, plan, &out, |_| true, site)? {
        return Ok(vec![Step::OneShot(shot)]);
    }
    let reduce = plan.reduce(window, into.tensor(0, &[len], dtype)?);
    if site.boxes.is_some() && into.is_mapped() {
        let mut reduce = reduce.checked(site)?;
        // Another window than the inputs': who has it in place does something else.
        reduce.digest = reduce.digest.rotate_left(8) ^ into.number() as u64;
        return Ok(vec![Step::ReduceToAll(reduce, into.clone())]);
    }
    let reduce = reduce.step(site)?;
    Ok(vec![reduce, plan.gather(into.clone()).step(site)?])
}

/// The result of all windows, for the root.
///
/// # Errors
/// Those of a reduction; no such root; memory that is too small or of another type.
pub(crate) fn reduce(
    window: &Window,
    plan: &EvenPlan,
    root: usize,
    out: Option<Tensor>,
    site: &Site,
) -> Result<Step> {
    let (range, dtype, place) = (plan.range(), plan.dtype(), site.members.place);
    let segments = only(root, range.clone(), site.members.len())?;
    let out = out.filter(|_| root == place);
    if let Some(out) = &out {
        check_len("out", out.len(), range.len(), site)?;
    }
    let len = window.bytes() / dtype.bytes();
    let at_window = out.is_none();
    let out = match out {
        Some(out) => out,
        None => window.tensor(0, &[len], dtype)?,
    };
    let places = (!at_window).then(|| [0].into());
    let op = OrderedReduce { segments, places, ..plan.reduce(window, out) };
    // Before the way is chosen: what is refused must not depend on sizes.
    op.check_all(site)?;
    let start = if at_window { range.start } else { 0 };
    let part = op.out.flat(start..start + range.len())?;
    if let Some(shot) = OneShot::reduce_whole(window, plan, &part, |member| member == root, site)? {
        return Ok(Step::OneShot(shot));
    }
    op.step(site)
}

/// Gathers into other memory instead of windows: elements `range` of a window from its first
/// element on.
///
/// # Errors
/// Those of a gather; memory that is too small, or is no memory apart.
pub(crate) fn gather_into(
    op: Gather,
    range: &Range<usize>,
    into: &Tensor,
    site: &Site,
) -> Result<Vec<Step>> {
    let digest = op.check(site.group, site.members.len())?;
    let size = op.element_bytes;
    check_apart("into", into, &op.window, site)?;
    check_len("into", into.bytes() / size.max(1), range.len(), site)?;
    let bytes = into.as_bytes();
    let part = |at: Range<usize>| -> Result<Tensor> {
        let start = range.start * size;
        Ok(bytes.flat(at.start - start..at.end - start)?)
    };
    if let Some(shot) = OneShot::gather(&op, digest, site, Some(&part))? {
        return Ok(vec![Step::OneShot(shot)]);
    }
    let to = (range.start * size, &bytes);
    if let Some(rounds) = GatherByHosts::rounds(&op, digest, to, site) {
        return Ok(rounds.into_iter().map(|round| Step::GatherByHosts(Box::new(round))).collect());
    }
    let given = |member: usize| op.segments[member].first().cloned().unwrap_or(0..0);
    let (own, members) = (given(site.members.place), 0..site.members.len());
    let send = members.clone().map(|_| own.clone());
    let receive = members.map(given).map(|given| from_start(&given, range.start));
    let receive = receive.collect();
    Ok(vec![moved(&op.window, size, send.collect(), into.as_bytes(), receive, site)?])
}

/// Every member's share, at the root.
///
/// # Errors
/// As [`gather_into`]; no such root.
pub(crate) fn gather(
    window: Window,
    plan: &EvenPlan,
    root: usize,
    into: Option<Tensor>,
    site: &Site,
) -> Result<Step> {
    let shares = shares(plan, root, site)?;
    let (world, place, start) = (shares.len(), site.members.place, plan.range().start);
    let mut send = vec![0..0; world];
    if place != root {
        send[root] = shares[place].clone();
        return moved(
            &window,
            plan.dtype().bytes(),
            send,
            nothing(&window)?,
            vec![0..0; world],
            site,
        );
    }
    let (into, receive) = match into {
        None => (at(&window)?, (0..world).map(|m| except(m == root, &shares[m])).collect()),
        Some(into) => {
            check_memory("into", &into, &window, (plan.dtype(), plan.range().len()), site)?;
            send[root] = shares[root].clone();
            (into.as_bytes(), shares.iter().map(|share| from_start(share, start)).collect())
        }
    };
    moved(&window, plan.dtype().bytes(), send, into, receive, site)
}

/// The root's shares, one for each member.
///
/// # Errors
/// As [`gather_into`]; no such root.
pub(crate) fn scatter(
    window: Window,
    plan: &EvenPlan,
    root: usize,
    into: Option<Tensor>,
    site: &Site,
) -> Result<Step> {
    let shares = shares(plan, root, site)?;
    let (world, place) = (shares.len(), site.members.place);
    let (mut receive, own) = (vec![0..0; world], shares[place].clone());
    let is_apart = into.is_some();
    let send = match place == root {
        true => (0..world).map(|m| except(m == root && !is_apart, &shares[m])).collect(),
        false => vec![0..0; world],
    };
    let into = match into {
        None if place == root => nothing(&window)?,
        None => {
            receive[root] = own;
            at(&window)?
        }
        Some(into) => {
            check_memory("into", &into, &window, (plan.dtype(), own.len()), site)?;
            receive[root] = 0..own.len();
            into.as_bytes()
        }
    };
    moved(&window, plan.dtype().bytes(), send, into, receive, site)
}

/// Of every member: its share.
fn shares(plan: &EvenPlan, root: usize, site: &Site) -> Result<Vec<Range<usize>>> {
    let (world, segments) = (site.members.len(), plan.segments());
    if root >= world {
        return Err(CommError::NoSuchRank { rank: root, world });
    }
    if segments.len() != world {
        let (what, got) = ("shares", segments.len());
        return Err(CommError::PerRank { what, got, expected: world });
    }
    Ok(segments.iter().map(|share| share.first().cloned().unwrap_or(0..0)).collect())
}

/// Ranges of elements of `size` bytes each, as bytes: whatever their type, they are moved alike.
fn moved(
    window: &Window,
    size: usize,
    send: Vec<Range<usize>>,
    into: Tensor,
    receive: Vec<Range<usize>>,
    site: &Site,
) -> Result<Step> {
    let bytes = |ranges: Vec<Range<usize>>| {
        ranges.into_iter().map(|range| range.start * size..range.end * size).collect()
    };
    let (send, receive) = (bytes(send), bytes(receive));
    let op = AllToAll { from: window.clone(), send, into, receive };
    op.check(site.group, site.members.len())?;
    Ok(Step::AllToAll(op))
}

fn from_start(range: &Range<usize>, start: usize) -> Range<usize> {
    match range.is_empty() {
        true => 0..0,
        false => range.start - start..range.end - start,
    }
}

fn except(is_left_out: bool, range: &Range<usize>) -> Range<usize> {
    if is_left_out { 0..0 } else { range.clone() }
}

/// All bytes of this member's window.
fn at(window: &Window) -> Result<Tensor> {
    Ok(window.tensor(0, &[window.bytes()], DType::U8)?)
}

fn nothing(window: &Window) -> Result<Tensor> {
    Ok(window.tensor(0, &[0], DType::U8)?)
}

fn short(what: &'static str, got: usize, expected: usize, site: &Site) -> CommError {
    CommError::Short { rank: site.members.ranks[site.members.place], what, got, expected }
}

fn check_len(what: &'static str, got: usize, expected: usize, site: &Site) -> Result<()> {
    if got < expected { Err(short(what, got, expected, site)) } else { Ok(()) }
}

/// Refuses memory of another device, and that of the window.
fn check_apart(what: &'static str, tensor: &Tensor, window: &Window, site: &Site) -> Result<()> {
    let (got, expected) = (tensor.buffer(), window.buffer());
    if !got.device().is_same(expected.device()) {
        let rank = site.members.ranks[site.members.place];
        let (got, expected) = (got.device().kind(), expected.device().kind());
        return Err(CommError::OtherDevice { rank, what, got, expected });
    }
    match !tensor.is_empty() && got.address() == expected.address() {
        true => Err(DeviceError::Overlap { kernel: what }.into()),
        false => Ok(()),
    }
}

/// Refuses what is not apart from the window, of this type and this length.
fn check_memory(
    what: &'static str,
    tensor: &Tensor,
    window: &Window,
    (dtype, len): (DType, usize),
    site: &Site,
) -> Result<()> {
    check_apart(what, tensor, window, site)?;
    if tensor.dtype() != dtype {
        let (rank, got) = (site.members.ranks[site.members.place], tensor.dtype());
        return Err(CommError::OtherType { rank, what, got, expected: dtype });
    }
    check_len(what, tensor.len(), len, site)
}
