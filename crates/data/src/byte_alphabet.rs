//! The alphabet in which byte-level tokenizers spell bytes: a character that prints for each, and
//! back.

use std::collections::BTreeMap;

/// GPT-2's printable stand-in of a byte: those that print stand for themselves, the other 68 are
/// numbered from U+0100 (Radford et al. 2019, the released encoder).
pub(crate) fn byte_stand_in(byte: u8) -> char {
    let number = match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => return char::from(byte),
        0..=0x20 => u32::from(byte),
        0x7F..=0xA0 => u32::from(byte) - 0x7F + 0x21,
        0xAD => 67,
    };
    char::from_u32(0x100 + number).expect("below U+0144")
}

/// The byte of each stand-in.
pub(crate) fn byte_alphabet() -> BTreeMap<char, u8> {
    (0..=255).map(|byte| (byte_stand_in(byte), byte)).collect()
}
