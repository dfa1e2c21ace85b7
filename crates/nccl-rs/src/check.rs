//! Checks of an operation's buffers against each other. The library trusts its caller; a wrong
//! length there is memory overwritten, or a hang on the other ranks.

use crate::{Buffer, Error};

fn refuse(call: &'static str, what: String) -> Result<(), Error> {
    Err(Error::Argument { call, what })
}

/// A buffer that can be one: an address, aligned, with an end.
///
/// # Errors
/// It cannot.
pub(crate) fn one(call: &'static str, name: &str, buffer: Buffer) -> Result<(), Error> {
    let Buffer { address, len, dtype } = buffer;
    if len > 0 && address == 0 {
        return refuse(call, format!("the buffer {name} is null and has {len} elements"));
    }
    if !address.is_multiple_of(dtype.bytes() as u64) {
        let what = format!("the buffer {name} is at {address:#x}, which {dtype} is not aligned to");
        return refuse(call, what);
    }
    match buffer.bytes() {
        Some(_) => Ok(()),
        None => refuse(call, format!("the buffer {name} has {len} {dtype}, beyond all addresses")),
    }
}

/// A buffer to read and one to write.
pub(crate) struct Pair {
    pub(crate) from: Buffer,
    pub(crate) to: Buffer,
    /// Where in `to` an operation in place has `from`, in elements of `to`; negative where `to`
    /// lies inside `from`. `None`: it cannot be done in place.
    pub(crate) in_place_at: Option<i128>,
}

/// Compares the two buffers of an operation that reads `from_parts` and writes `to_parts` equally
/// long parts; one of the two numbers is 1.
///
/// # Errors
/// Types or lengths that do not fit, or buffers that overlap without being in place.
pub(crate) fn pair(
    call: &'static str,
    pair: &Pair,
    (from_parts, to_parts): (usize, usize),
) -> Result<(), Error> {
    let Pair { from, to, in_place_at } = *pair;
    one(call, "to read", from)?;
    one(call, "to write", to)?;
    if from.dtype != to.dtype {
        return refuse(call, format!("it reads {} and writes {}", from.dtype, to.dtype));
    }
    let (whole, parts, small) = match from_parts >= to_parts {
        true => (from.len, from_parts / to_parts.max(1), to.len),
        false => (to.len, to_parts / from_parts.max(1), from.len),
    };
    if small.checked_mul(parts) != Some(whole) {
        let what = format!("it reads {} elements and writes {}", from.len, to.len);
        let per_rank = format!(" ({from_parts} to {to_parts})");
        return refuse(call, if parts > 1 { what + &per_rank } else { what });
    }
    let bytes = |buffer: Buffer| i128::from(buffer.bytes().unwrap_or(0));
    let (start, other) = (i128::from(from.address), i128::from(to.address));
    let is_apart = start + bytes(from) <= other || other + bytes(to) <= start;
    let in_place = in_place_at.map(|offset| other + offset * to.dtype.bytes() as i128);
    if is_apart || in_place == Some(start) || bytes(from) == 0 {
        return Ok(());
    }
    let why = match in_place {
        Some(at) => format!(" without being in place, where that would be at {at:#x}"),
        None => ", and it cannot be done in place: give it another one".to_owned(),
    };
    refuse(call, format!("the buffers overlap{why}"))
}

/// # Errors
/// The buffer does not divide into one part for each rank.
pub(crate) fn divided(call: &'static str, buffer: Buffer, ranks: u32) -> Result<(), Error> {
    match buffer.len % ranks as usize {
        0 => Ok(()),
        _ => refuse(call, format!("{} elements do not divide among {ranks} ranks", buffer.len)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DataType;

    fn buffer(address: u64, len: usize) -> Buffer {
        Buffer::new(address, len, DataType::F32)
    }

    fn told(from: Buffer, to: Buffer, in_place_at: i128, parts: (usize, usize)) -> String {
        let checked = pair("op", &Pair { from, to, in_place_at: Some(in_place_at) }, parts);
        checked.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn equal_lengths_apart_or_the_same_are_fine() {
        assert_eq!(told(buffer(0x1000, 4), buffer(0x2000, 4), 0, (1, 1)), "");
        assert_eq!(told(buffer(0x1000, 4), buffer(0x1000, 4), 0, (1, 1)), "");
        assert_eq!(told(buffer(0x1000, 4), buffer(0x1010, 4), 0, (1, 1)), "", "side by side");
        assert_eq!(told(buffer(0, 0), buffer(0, 0), 0, (1, 1)), "", "nothing at all");
    }

    #[test]
    fn overlaps_lengths_types_and_alignment_are_refused() {
        let overlap = told(buffer(0x1000, 4), buffer(0x1004, 4), 0, (1, 1));
        assert!(overlap.contains("overlap"), "{overlap}");
        let lengths = told(buffer(0x1000, 4), buffer(0x2000, 5), 0, (1, 1));
        assert_eq!(lengths, "op: it reads 4 elements and writes 5");
        let other = Buffer::new(0x2000, 4, DataType::I32);
        assert!(told(buffer(0x1000, 4), other, 0, (1, 1)).contains("reads f32 and writes i32"));
        assert!(told(buffer(0x1002, 4), buffer(0x2000, 4), 0, (1, 1)).contains("aligned"));
        assert!(told(buffer(0, 4), buffer(0x2000, 4), 0, (1, 1)).contains("null"));
        let huge = buffer(0x1000, usize::MAX / 2);
        assert!(told(huge, huge, 0, (1, 1)).contains("beyond"));
    }

    #[test]
    fn one_part_per_rank_and_in_place_at_the_own_part() {
        // Gathering from 3 ranks, of which this is rank 1.
        assert_eq!(told(buffer(0x1000, 4), buffer(0x2000, 12), 4, (1, 3)), "");
        assert_eq!(told(buffer(0x2010, 4), buffer(0x2000, 12), 4, (1, 3)), "");
        assert!(told(buffer(0x2000, 4), buffer(0x2000, 12), 4, (1, 3)).contains("at 0x2010"));
        assert!(told(buffer(0x1000, 4), buffer(0x2000, 8), 4, (1, 3)).contains("(1 to 3)"));
        // Scattering, with what is written inside what is read.
        assert_eq!(told(buffer(0x2000, 12), buffer(0x2010, 4), -4, (3, 1)), "");
        assert!(told(buffer(0x2000, 12), buffer(0x2020, 4), -4, (3, 1)).contains("overlap"));
        assert!(told(buffer(0x2000, 8), buffer(0x3000, 4), -4, (3, 1)).contains("(3 to 1)"));
        assert!(divided("op", buffer(0, 7), 3).is_err());
    }
}
