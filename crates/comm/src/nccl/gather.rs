//! How the segments of a gather travel.

use std::ops::Range;

use device::DType;

use super::calls::Move;
use crate::{Gather, Result, Window};

/// The call that fits the segments, which all members see alike.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// One part of each member, equally long and one after another from this byte on.
    Even { start: usize, part: usize },
    /// One member has all of them.
    Root { root: usize },
    /// Anything else: each member's to each other.
    Messages,
}

/// All moves of the member at `place`.
pub(super) fn moves(op: &Gather, place: usize) -> Result<Vec<Move>> {
    let runs: Vec<Vec<Range<usize>>> =
        op.segments.iter().map(|segments| runs(segments, op.element_bytes)).collect();
    let part = |range: &Range<usize>| bytes(&op.window, range);
    match form(&runs) {
        Form::Even { start, part: len } => {
            let own = start + place * len..start + (place + 1) * len;
            let all = start..start + runs.len() * len;
            Ok(vec![Move::AllGather { own: part(&own)?, all: part(&all)? }])
        }
        Form::Root { root } => {
            let each = runs[root].iter().map(|run| Ok(Move::Broadcast { bytes: part(run)?, root }));
            each.collect()
        }
        Form::Messages => {
            let mut moves = Vec::new();
            for peer in (0..runs.len()).filter(|&peer| peer != place) {
                for run in &runs[place] {
                    moves.push(Move::Send { from: part(run)?, peer });
                }
                for run in &runs[peer] {
                    moves.push(Move::Receive { to: part(run)?, peer });
                }
            }
            Ok(moves)
        }
    }
}

/// Bytes of a window of this member.
pub(super) fn bytes(window: &Window, range: &Range<usize>) -> Result<device::Tensor> {
    Ok(window.tensor(range.start, &[range.len()], DType::U8)?)
}

/// Segments as bytes, in order; those that touch are one.
fn runs(segments: &[Range<usize>], size: usize) -> Vec<Range<usize>> {
    let filled = segments.iter().filter(|segment| !segment.is_empty());
    let mut sorted: Vec<_> =
        filled.map(|segment| segment.start * size..segment.end * size).collect();
    sorted.sort_unstable_by_key(|run| run.start);
    let mut runs: Vec<Range<usize>> = Vec::new();
    for run in sorted {
        match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        }
    }
    runs
}

fn form(runs: &[Vec<Range<usize>>]) -> Form {
    if runs.len() == 1 {
        return Form::Messages;
    }
    if let [first] = &runs[0][..] {
        let (start, part) = (first.start, first.len());
        let at = |place: usize| start + place * part..start + (place + 1) * part;
        if runs.iter().enumerate().all(|(place, own)| own[..] == [at(place)]) {
            return Form::Even { start, part };
        }
    }
    let mut with_some = runs.iter().enumerate().filter(|(_, own)| !own.is_empty());
    match (with_some.next(), with_some.next()) {
        (Some((root, _)), None) => Form::Root { root },
        _ => Form::Messages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_that_touch_travel_as_one() {
        assert_eq!(runs(&[8..10, 0..3, 3..3, 3..5], 4), [0..20, 32..40]);
    }

    /// Runs of every member, by where they begin and end.
    fn form_of(members: &[&[(usize, usize)]]) -> Form {
        let ranges = |own: &&[(usize, usize)]| own.iter().map(|&(a, b)| a..b).collect();
        form(&members.iter().map(ranges).collect::<Vec<_>>())
    }

    #[test]
    fn the_call_fits_the_segments() {
        let even = form_of(&[&[(8, 12)], &[(12, 16)], &[(16, 20)]]);
        assert_eq!(even, Form::Even { start: 8, part: 4 });
        assert_eq!(form_of(&[&[], &[(0, 4), (8, 9)], &[]]), Form::Root { root: 1 });
        // Of other lengths, in another order, with gaps, of several parts, or of one member.
        let others: [&[&[(usize, usize)]]; 6] = [
            &[&[(8, 12)], &[(12, 15)]],
            &[&[(12, 16)], &[(8, 12)]],
            &[&[(8, 12)], &[(13, 17)]],
            &[&[(0, 4), (8, 12)], &[(4, 8), (12, 16)]],
            &[&[(0, 4)]],
            &[&[], &[]],
        ];
        for other in others {
            assert_eq!(form_of(other), Form::Messages, "{other:?}");
        }
    }
}
