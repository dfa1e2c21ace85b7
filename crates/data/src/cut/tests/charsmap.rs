//! A small map of characters as SentencePiece compiles it, for tokenizers that normalize by one.
//!
//! The map is the byte length of a trie, the trie, and the replacements, each ended by NUL; in a
//! tokenizer.json it stands in base64. The trie is a double array of 32-bit units (darts-clone): a
//! child by the byte `c` of a node with the base `b` is the unit `b ^ c`, and the place of its
//! replacement the unit `b` itself.

/// Some of what SentencePiece's `nmt_nfkc` maps, and one sequence.
const MAP: [(&str, &str); 9] = [
    ("\t", " "),
    ("\n", " "),
    ("\r", " "),
    ("\u{a0}", " "),
    ("…", "..."),
    ("ｆ", "f"),
    ("＃", "#"),
    ("é", "e\u{301}"),
    ("e\u{301}", "e"),
];

/// A unit's bit for a node at which a key ends.
const HAS_LEAF: u32 = 1 << 8;

/// Lays out the node of all keys that begin with `prefix`; returns its base.
fn lay_out(units: &mut Vec<u32>, prefix: &[u8], leaves: &[(Vec<u8>, u32)]) -> u32 {
    // A block of 256 units to each node: no two can meet.
    let base = units.len() as u32;
    units.resize(units.len() + 256, 0);
    let below: Vec<_> = leaves.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
    let mut bytes: Vec<u8> =
        below.iter().filter_map(|(key, _)| key.get(prefix.len()).copied()).collect();
    bytes.sort_unstable();
    bytes.dedup();
    if let Some((_, place)) = below.iter().find(|(key, _)| key == prefix) {
        units[base as usize] = 1 << 31 | place;
    }
    for byte in bytes {
        let key = [prefix, &[byte]].concat();
        let child = lay_out(units, &key, leaves);
        let at = base ^ u32::from(byte);
        let leaf = if leaves.iter().any(|(other, _)| *other == key) { HAS_LEAF } else { 0 };
        units[at as usize] = (at ^ child) << 10 | leaf | u32::from(byte);
    }
    base
}

fn compiled() -> Vec<u8> {
    let mut replacements = Vec::new();
    let mut leaves = Vec::new();
    for (from, to) in MAP {
        leaves.push((from.as_bytes().to_vec(), replacements.len() as u32));
        replacements.extend_from_slice(to.as_bytes());
        replacements.push(0);
    }
    // The first unit leads to the root.
    let mut units = vec![0; 256];
    let root = lay_out(&mut units, &[], &leaves);
    units[0] = root << 10;
    let trie: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    [&(trie.len() as u32).to_le_bytes()[..], &trie, &replacements].concat()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            out.push(if digit > group.len() { '=' } else { DIGITS[value as usize].into() });
        }
    }
    out
}

/// The map as it stands in a tokenizer.json.
pub fn charsmap() -> String {
    base64(&compiled())
}

#[test]
fn the_map_is_what_the_tokenizers_read() {
    let json = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": charsmap()});
    let normalizer: tokenizers::NormalizerWrapper = serde_json::from_value(json).unwrap();
    let mut text = tokenizers::NormalizedString::from("a\tb…ｆ＃\u{a0}é e\u{301}日");
    tokenizers::Normalizer::normalize(&normalizer, &mut text).unwrap();
    assert_eq!(text.get(), "a b...f# e\u{301} e日");
}
