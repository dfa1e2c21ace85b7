//! Formats that are not text, by the bytes with which they begin.

/// Why a file is not read as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As in "x.txt is …".
    pub what: String,
    /// Advice, with `FILE` where the path stands.
    pub remedy: String,
}

impl Refusal {
    pub(crate) fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// A format's name, where its signature stands, the signature, and what to do.
type Signature = (&'static str, usize, &'static [u8], &'static str);

const UNPACK: &str = "unpack it, and name the text files in it";
const CONVERT: &str = "convert its text to a .txt, .jsonl or .parquet file";
const NO_TEXT: &str = "name a file of text";

/// Of bytes that no text has, or not there.
const SIGNATURES: [Signature; 31] = [
    ("compressed by bzip2", 4, b"1AY&SY", "decompress it first: `bzip2 -dk FILE`"),
    ("compressed by xz", 0, b"\xFD7zXZ\0", "decompress it first: `xz -dk FILE`"),
    ("compressed by lz4", 0, b"\x04\x22\x4D\x18", "decompress it first: `lz4 -d FILE`"),
    ("compressed by lz4", 0, b"\x02\x21\x4C\x18", "decompress it first: `lz4 -d FILE`"),
    ("compressed by lzma", 0, b"\x5D\0\0", "decompress it first: `xz -dk FILE`"),
    ("compressed by `compress`", 0, b"\x1F\x9D", "decompress it first: `uncompress FILE`"),
    ("compressed by snappy", 0, b"\xFF\x06\0\0sNaPpY", "decompress it first"),
    ("a zip archive (or what is packed as one: .docx, .npz, .pt)", 0, b"PK\x03\x04", UNPACK),
    ("a zip archive without files", 0, b"PK\x05\x06", UNPACK),
    ("a 7-Zip archive", 0, b"7z\xBC\xAF\x27\x1C", UNPACK),
    ("a RAR archive", 0, b"Rar!\x1A\x07", UNPACK),
    ("a tar archive", 257, b"ustar", "unpack it (`tar -xf FILE`), and name the text files in it"),
    ("an Arrow file", 0, b"ARROW1\0\0", CONVERT),
    ("an Arrow stream", 0, b"\xFF\xFF\xFF\xFF", CONVERT),
    ("an HDF5 file", 0, b"\x89HDF\r\n\x1A\n", CONVERT),
    ("a NumPy array", 0, b"\x93NUMPY", CONVERT),
    ("a Python pickle", 0, b"\x80\x02", CONVERT),
    ("a Python pickle", 0, b"\x80\x03", CONVERT),
    ("a Python pickle", 0, b"\x80\x04", CONVERT),
    ("a Python pickle", 0, b"\x80\x05", CONVERT),
    ("an Avro file", 0, b"Obj\x01", CONVERT),
    ("an SQLite database", 0, b"SQLite format 3\0", CONVERT),
    ("a PDF document", 0, b"%PDF-", "extract its text: `pdftotext FILE`"),
    ("a Microsoft Office document", 0, b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1", CONVERT),
    ("a program (ELF)", 0, b"\x7FELF", NO_TEXT),
    ("a PNG image", 0, b"\x89PNG\r\n\x1A\n", NO_TEXT),
    ("a JPEG image", 0, b"\xFF\xD8\xFF", NO_TEXT),
    ("a Megatron index", 0, b"MMIDIDX\0", "give it a name that ends in .idx, beside its .bin"),
    ("a TIFF image", 0, b"II*\0", NO_TEXT),
    ("an Ogg file", 0, b"OggS\0", NO_TEXT),
    ("a compiled Python module", 2, b"\r\r\n\0", NO_TEXT),
];

/// Of letters, with which a text might begin; control characters must give the format away.
const SIGNATURES_OF_LETTERS: [Signature; 8] = [
    ("compressed by bzip2 (and empty)", 0, b"BZh", NO_TEXT),
    ("a parquet file", 0, b"PAR1", "give it a name that ends in .parquet"),
    ("an encrypted parquet file", 0, b"PARE", CONVERT),
    ("a Feather file", 0, b"FEA1", CONVERT),
    ("an ORC file", 0, b"ORC", CONVERT),
    ("a GGUF model", 0, b"GGUF", NO_TEXT),
    ("a GIF image", 0, b"GIF8", NO_TEXT),
    ("a RIFF file (sound, video or WebP)", 0, b"RIFF", NO_TEXT),
];

/// Passes what may be text.
///
/// # Errors
/// The format that begins like this, and what to do.
pub(crate) fn refuse(start: &[u8]) -> Result<(), Refusal> {
    let signed = |(_, at, bytes, _): &&Signature| {
        start.get(*at..).is_some_and(|rest| rest.starts_with(bytes))
    };
    let found = SIGNATURES.iter().find(signed);
    let found =
        found.or_else(|| SIGNATURES_OF_LETTERS.iter().find(signed).filter(|_| has_controls(start)));
    if let Some((what, _, _, remedy)) = found {
        return Err(Refusal::new(*what, *remedy));
    }
    if is_safetensors(start) {
        return Err(Refusal::new("a safetensors file", NO_TEXT));
    }
    match wide_encoding(start) {
        None => Ok(()),
        Some(name) => Err(Refusal::new(
            format!("text in {name}"),
            format!("convert it to UTF-8: `iconv -f {name} -t UTF-8 FILE > NEW`"),
        )),
    }
}

/// Whether there are control characters that texts do not use.
fn has_controls(start: &[u8]) -> bool {
    start.iter().any(|b| matches!(b, 0..=8 | 14..=26 | 28..=31))
}

/// The length of a JSON header, and the header.
fn is_safetensors(start: &[u8]) -> bool {
    // Headers are shorter than 2^32 bytes.
    matches!(start, [_, _, _, _, 0, 0, 0, 0, b'{', ..])
}

/// UTF-16 or UTF-32, by its byte order mark or by where its NUL bytes are.
fn wide_encoding(start: &[u8]) -> Option<&'static str> {
    match start {
        [0xFF, 0xFE, 0, 0, ..] => return Some("UTF-32LE"),
        [0, 0, 0xFE, 0xFF, ..] => return Some("UTF-32BE"),
        [0xFF, 0xFE, ..] => return Some("UTF-16LE"),
        [0xFE, 0xFF, ..] => return Some("UTF-16BE"),
        _ => {}
    }
    let (groups, _) = start.as_chunks::<4>();
    let mut nuls = [0; 4];
    for group in groups {
        for (count, byte) in nuls.iter_mut().zip(group) {
            *count += usize::from(*byte == 0);
        }
    }
    let all = groups.len();
    // A quarter of the characters is ASCII, and none is cut in two.
    let enough = |found: usize| found >= all.div_ceil(2).max(2);
    let [a, b, c, d] = nuls;
    match () {
        () if all == 0 => None,
        () if c == all && d == all && a == 0 => Some("UTF-32LE"),
        () if a == all && b == all && d == 0 => Some("UTF-32BE"),
        () if a == 0 && c == 0 && enough(b + d) => Some("UTF-16LE"),
        () if b == 0 && d == 0 && enough(a + c) => Some("UTF-16BE"),
        () => None,
    }
}
