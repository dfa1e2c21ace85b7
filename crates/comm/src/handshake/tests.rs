//! Both ends as pure functions, with somebody between them.

use proptest::prelude::*;

use super::*;

fn secret(text: &str) -> Secret {
    Secret::of_text(text.as_bytes()).unwrap()
}

const OURS: &str = "the secret of this job";

fn claim(scope: u8, from: u32, to: u32, purpose: u64) -> Claim {
    Claim { scope: [scope; 16], from, to, purpose }
}

/// A change of one byte on its way: number of the message, byte, and the mask it is XORed with.
type Change = (usize, usize, u8);

fn changed<const N: usize>(mut message: [u8; N], number: usize, change: Change) -> [u8; N] {
    if change.0 == number {
        message[change.1 % N] ^= change.2;
    }
    message
}

/// How far two ends come with the secrets that they have: what the listener takes the other for,
/// and whether the one who connects takes the listener.
fn meet(
    secrets: [&str; 2],
    claim: Claim,
    nonces: [u8; 2],
    change: Change,
) -> (Option<Claim>, Option<[Keys; 2]>) {
    let dialler = Dialler::new(secret(secrets[0]), claim, [nonces[0]; 32]);
    let hail = changed(*dialler.hail(), 0, change);
    let greeting = hail.first_chunk::<GREETING_BYTES>().unwrap();
    if super::greeting(greeting) != Greeting::Hail {
        return (None, None);
    }
    let (listener, challenge) = Listener::challenge(&hail, [nonces[1]; 32]);
    let challenge = changed(challenge, 1, change);
    let Ok((proven, proof)) = dialler.prove(&challenge) else { return (None, None) };
    let proof = changed(proof, 2, change);
    match listener.judge(secret(secrets[1]), &proof) {
        Ok(Accepted { claim, keys, answer }) => {
            let concluded = proven.conclude(&changed(answer, 3, change));
            (Some(claim), concluded.ok().map(|theirs| [theirs, keys]))
        }
        Err(_) => (None, proven.conclude(&NOT_TAKEN).ok().map(|keys| [keys.clone(), keys])),
    }
}

const HONEST: Change = (usize::MAX, 0, 0);

#[test]
fn who_has_the_secret_is_taken_and_both_have_the_same_keys() {
    let said = claim(7, 3, 1, 258);
    let (heard, keys) = meet([OURS; 2], said, [1, 2], HONEST);
    assert_eq!(heard, Some(said));
    let [dialler, listener] = keys.unwrap();
    assert_eq!(dialler.send.tag(b"x"), listener.receive.tag(b"x"));
    assert_eq!(dialler.receive.tag(b"x"), listener.send.tag(b"x"));
    assert_ne!(dialler.send.tag(b"x"), dialler.receive.tag(b"x"), "one key both ways");
    for other in [[OURS, "another secret of a job"], ["another secret of a job", OURS]] {
        let (heard, keys) = meet(other, said, [1, 2], HONEST);
        assert!(heard.is_none() && keys.is_none());
    }
    assert_eq!(Secret::none().to_hex().len(), 64);
}

#[test]
fn versions_and_strangers_are_told_apart() {
    let dialler = Dialler::new(secret(OURS), claim(1, 1, 0, 0), [9; 32]);
    let mut hail = *dialler.hail();
    hail[4] += 1;
    let other = super::greeting(hail.first_chunk().unwrap());
    assert_eq!(other, Greeting::Other(Refused::Protocol(hail[4].into())));
    assert_eq!(super::greeting(b"\x5d\0\0\0MSTC"), Greeting::Former);
    assert_eq!(super::greeting(b"GET / HT"), Greeting::Other(Refused::Stranger));
    assert_eq!(answer_to_former(), *b"\x08\0\0\0MSTC\x09\0\0\0");
    let (_, mut challenge) = Listener::challenge(dialler.hail(), [8; 32]);
    challenge[MARK_BYTES] = 10;
    assert_eq!(dialler.prove(&challenge).err(), Some(Refused::Protocol(10)));
    let http = *b"HTTP/1.1 400 Bad Request\r\n\r\n.........";
    assert_eq!(dialler.prove(&http).err(), Some(Refused::Stranger));
    assert!(!dialler.may_be_challenge(b"HT") && dialler.may_be_challenge(b""));
}

#[test]
fn a_notice_is_no_hail_and_says_a_number_alone() {
    for lack in [Lack::Secret, Lack::Tls] {
        let notice = notice(1_000_000, lack);
        let start = notice.first_chunk().unwrap();
        assert_eq!(super::greeting(start), Greeting::Lacks(lack));
        assert_eq!(noticed(&notice), 1_000_000);
        // Whatever else stands in its first bytes, it is of another protocol.
        for change in [(5, 0x80), (6, 1), (7, 1)] {
            let other = changed(notice, 0, (0, change.0, change.1));
            let other = super::greeting(other.first_chunk().unwrap());
            assert_eq!(other, Greeting::Other(Refused::Protocol(u32::from(PROTOCOL))));
        }
        // Who hails and is answered so has no challenge.
        let dialler = Dialler::new(secret(OURS), claim(1, 1, 0, 0), [9; 32]);
        let answer = no_challenge(dialler.hail(), lack.word());
        let word = u32::from(lack.word());
        assert_eq!(dialler.prove(&answer).err(), Some(Refused::Protocol(word)));
        assert!(![OVER_TLS, PROTOCOL].contains(&lack.word()));
    }
}

#[test]
fn a_stranger_sees_no_two_bytes_that_depend_on_the_job() {
    let dialler = Dialler::new(secret(OURS), claim(1, 1, 0, 0), [9; 32]);
    let of = |secret: &str, claim: Claim| {
        let (listener, challenge) = Listener::challenge(dialler.hail(), [8; 32]);
        // Whatever it guesses.
        let judged = listener.judge(self::secret(secret), &[claim.from as u8; PROOF_BYTES]);
        (challenge, judged.is_err())
    };
    assert_eq!(of(OURS, claim(1, 1, 0, 0)), of("another secret of a job", claim(2, 9, 1, 5)));
}

/// Messages recorded in one place are replayed in another.
#[test]
fn transcripts_are_of_no_use_elsewhere() {
    let said = claim(7, 3, 1, 258);
    let dialler = Dialler::new(secret(OURS), said, [1; 32]);
    let (listener, challenge) = Listener::challenge(dialler.hail(), [2; 32]);
    let (proven, proof) = dialler.prove(&challenge).unwrap();
    let accepted = listener.judge(secret(OURS), &proof).unwrap();
    // Again at the same listener, which takes other random bytes.
    let (again, _) = Listener::challenge(dialler.hail(), [3; 32]);
    assert!(again.judge(secret(OURS), &proof).is_err());
    // The proof with another start, rank or purpose written over its own.
    let others = [claim(8, 3, 1, 258), claim(7, 2, 1, 258), claim(7, 3, 0, 258), claim(7, 3, 1, 0)];
    for other in others {
        let mut forged = proof;
        forged[..CLAIM_BYTES].copy_from_slice(&other.encode());
        assert_eq!(listener.judge(secret(OURS), &forged).err(), Some(other));
        // And an answer to one is none to another.
        let (its, _) = Dialler::new(secret(OURS), other, [1; 32]).prove(&challenge).unwrap();
        assert_eq!(its.conclude(&accepted.answer).err(), Some(Refused::Secret));
    }
    assert!(proven.conclude(&accepted.answer).is_ok());
    // The proof of the process that connects, reflected to it.
    let mut reflected = [TAKEN; ANSWER_BYTES];
    reflected[1..].copy_from_slice(&proof[CLAIM_BYTES..]);
    assert_eq!(proven.conclude(&reflected).err(), Some(Refused::Secret));
}

proptest! {
    #[test]
    fn claims_survive_the_way(scope: u8, from: u32, to: u32, purpose: u64) {
        let said = claim(scope, from, to, purpose);
        prop_assert_eq!(Claim::decode(&said.encode()), said);
        prop_assert_eq!(meet([OURS; 2], said, [1, 2], HONEST).0, Some(said));
    }

    /// Any change of any byte of any message keeps the two apart: the listener takes nobody, or
    /// the one who connects does not take the listener.
    #[test]
    fn no_changed_byte_passes(
        message in 0_usize..4,
        at in 0_usize..4096,
        with in 1_u8..=255,
        nonces: [u8; 2],
        purpose: u64,
    ) {
        let (heard, keys) = meet([OURS; 2], claim(1, 1, 0, purpose), nonces, (message, at, with));
        prop_assert!(keys.is_none());
        prop_assert!(heard.is_none() || message == 3);
    }
}
