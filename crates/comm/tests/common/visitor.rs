//! Whoever comes to a meeting point, in its bytes: a second writing of the handshake, so that what
//! travels is tested and not only that both ends agree.
#![allow(dead_code)] // Each test binary uses its part.

/// Its number, which both ends say first.
pub const PROTOCOL: u8 = 9;
/// Bytes that a listener says to a hail, and to a proof.
pub const CHALLENGE_BYTES: usize = 37;
pub const ANSWER_BYTES: usize = 33;
/// Of the sum at a message's end.
pub const TAG_BYTES: usize = 8;

/// A rank that comes to meet the others.
pub struct Visitor {
    secret: [u8; 32],
    nonce: [u8; 32],
    claim: [u8; 32],
    transcript: Vec<u8>,
    sent: u64,
    heard: u64,
}

impl Visitor {
    /// `secret` is a text; none is the secret that everyone knows.
    pub fn new(secret: Option<&str>, rank: u32) -> Visitor {
        let of_text = "Muster 2026-11 the text of a job's secret";
        let secret = secret.map_or([0; 32], |text| blake3::derive_key(of_text, text.as_bytes()));
        let mut claim = [0; 32];
        claim[16..20].copy_from_slice(&rank.to_le_bytes());
        claim[20..24].fill(255);
        claim[31] = 128;
        let transcript = Vec::new();
        Visitor { secret, nonce: [rank as u8; 32], claim, transcript, sent: 0, heard: 0 }
    }

    pub fn hail(&self) -> Vec<u8> {
        [b"MSTR", &[PROTOCOL, 0, 0, 0][..], &self.nonce[..]].concat()
    }

    pub fn prove(&mut self, challenge: &[u8; CHALLENGE_BYTES]) -> Vec<u8> {
        assert_eq!(challenge[..4], blake3::hash(&self.hail()).as_bytes()[..4], "mark of the hail");
        assert_eq!(challenge[4], PROTOCOL, "protocol");
        self.transcript = [&self.nonce[..], &challenge[5..], &self.claim].concat();
        let proof = self.hash("Muster 2026-11 proof of who connects");
        [&self.claim[..], &proof].concat()
    }

    pub fn is_taken(&self, answer: &[u8; ANSWER_BYTES]) -> bool {
        let proof = self.hash("Muster 2026-11 proof of who listens");
        *answer == [&[1], &proof[..]].concat()[..]
    }

    fn hash(&self, context: &str) -> [u8; 32] {
        let key = blake3::derive_key(context, &self.secret);
        *blake3::keyed_hash(&key, &self.transcript).as_bytes()
    }

    fn tag(&self, context: &str, number: u64, message: &[u8]) -> [u8; TAG_BYTES] {
        let said = [&number.to_le_bytes()[..], blake3::hash(message).as_bytes()].concat();
        let tag = blake3::keyed_hash(&self.hash(context), &said);
        tag.as_bytes()[..TAG_BYTES].try_into().unwrap()
    }

    /// A message as it travels.
    pub fn frame(&mut self, message: &[u8]) -> Vec<u8> {
        let context = "Muster 2026-11 key of what comes from who connects";
        let tag = self.tag(context, self.sent, message);
        self.sent += 1;
        let length = u32::try_from(message.len() + TAG_BYTES).unwrap().to_le_bytes();
        [&length[..], message, &tag].concat()
    }

    /// A message that has come, without its length.
    pub fn open<'a>(&mut self, frame: &'a [u8]) -> &'a [u8] {
        let (message, tag) = frame.split_last_chunk::<TAG_BYTES>().unwrap();
        let context = "Muster 2026-11 key of what comes from who listens";
        assert_eq!(*tag, self.tag(context, self.heard, message), "tag of message {}", self.heard);
        self.heard += 1;
        message
    }
}
