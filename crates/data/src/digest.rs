//! Digests as text.

/// The first 16 hexadecimal digits, enough to tell files apart in a name or a message.
pub fn short(digest: &[u8; 32]) -> String {
    hex(&digest[..8])
}

/// All digits.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}

/// `#[serde(with = "crate::digest::as_hex")]`: 64 digits instead of a list of 32 numbers.
pub(crate) mod as_hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(digest: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&super::hex(digest))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        let digits: Option<Vec<u8>> = (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok())
            .collect();
        digits
            .and_then(|d| d.try_into().ok())
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not 64 hexadecimal digits")))
    }
}
