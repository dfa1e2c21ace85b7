//! The listener of signals against streams that were changed at random, before their tags were made
//! and after, cut anywhere: no panic, little memory, and nothing heard that was not said.

use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use tokio::io::ReadBuf;

use super::*;
use crate::fuzz::{self, Draw};
use crate::job::{Moments, Settings};
use crate::revocation::Lost;

/// The time on the listener's clock.
const NOW_MS: u64 = 1 << 40;

/// A clock that stands, and the moments that were heard.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u64>>>);

impl Moments for Heard {
    fn now_ms(&self) -> u64 {
        NOW_MS
    }

    fn of(&self, _: usize) -> u64 {
        0
    }

    fn advance(&self, rank: usize, to_ms: u64) {
        assert_eq!(rank, 1, "of another rank");
        self.0.lock().unwrap().push(to_ms);
    }
}

/// A stream that comes in parts.
struct Cut<'a> {
    left: &'a [u8],
    draw: &'a mut Draw,
}

impl AsyncRead for Cut<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let most = [1, 2, 7, usize::MAX][self.draw.below(4)];
        let count = most.min(into.remaining()).min(self.left.len());
        let (now, later) = self.left.split_at(count);
        into.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

/// The signals of a peer: some signs of life, by their ages, and its last word.
struct Case {
    ages_ms: Vec<u64>,
    /// Why the job is given up; none where it leaves in good order.
    why: Option<String>,
}

impl Case {
    fn new(draw: &mut Draw) -> Case {
        let ages_ms = (0..draw.below(4)).map(|_| draw.next() % (2 * NOW_MS)).collect();
        let length = [0, 1, 100, REASON_BYTES / 2][draw.below(4)];
        let why = (draw.below(2) == 0).then(|| "\u{e9}".repeat(length));
        Case { ages_ms, why }
    }

    fn moments(&self) -> Vec<u64> {
        self.ages_ms.iter().map(|age| NOW_MS.saturating_sub(*age)).collect()
    }

    /// As it travels; and whether a message was changed before its tag was made.
    fn stream(&self, draw: &mut Draw) -> (Vec<u8>, bool) {
        let signs = self.ages_ms.iter().map(|age| encode(b'P', &age.to_le_bytes()));
        let last = match &self.why {
            Some(why) => encode(b'R', why.as_bytes()),
            None => encode(b'L', &[]),
        };
        let (mut stream, mut is_forged, mut seal) = (Vec::new(), false, seal());
        for mut message in signs.chain([last]) {
            if draw.below(4) == 0 {
                is_forged = true;
                fuzz::mutate(&mut message, draw);
            }
            let tag = seal.tag(&blake3::hash(&message));
            stream.extend([&message[..], &tag].concat());
        }
        (stream, is_forged)
    }
}

fn seal() -> Seal {
    Seal::new(Key::new([3; 32]))
}

#[test]
fn no_stream_of_signals_does_harm() {
    // Left, gave up, lost, speaks otherwise, cut.
    let mut counts = [0_u64; 5];
    fuzz::run("signals", |draw| {
        let case = Case::new(draw);
        let (mut stream, is_forged) = case.stream(draw);
        let before = stream.clone();
        for _ in 0..draw.below(3) {
            fuzz::mutate(&mut stream, draw);
        }
        let heard = Heard::default();
        let settings = Settings { pulse: || 0, ..Settings::new(1000) };
        let job = Job::new(0, 2, settings, Box::new(heard.clone()));
        // Text that is none takes three bytes for one of it.
        let bound = 16 * REASON_BYTES + 8 * stream.len();
        let ended = fuzz::within(bound, || {
            let mut cut = Cut { left: &stream, draw };
            hear(&mut cut, 1, &mut seal(), &job).now_or_never().expect("all of it is there")
        });
        let (moments, said) = (heard.0.lock().unwrap().clone(), case.moments());
        assert!(moments.iter().all(|&moment| moment <= NOW_MS));
        assert!(is_forged || said.starts_with(&moments), "another sign of life than was sent");
        let is_whole = moments == said;
        let outcome = match ended {
            Ok(None) => {
                assert!(is_forged || (is_whole && case.why.is_none()), "it has not left");
                0
            }
            Ok(Some(Reason { why, lost: None })) => {
                assert!(is_forged || (is_whole && case.why == Some(why)), "another reason");
                1
            }
            Ok(Some(Reason { why, lost: Some(Lost::Gone(1, _)) })) => {
                assert!(is_forged || stream != before, "taken for damaged: {why}");
                if why.ends_with("another language") { 3 } else { 2 }
            }
            Ok(Some(other)) => panic!("another rank: {other:?}"),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
                4
            }
        };
        counts[outcome] += 1;
    });
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
}
