//! The trace's ring against a queue, and between two threads.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::ring::ring;

proptest! {
    /// Against a queue that drops what comes when it is full.
    #[test]
    fn a_ring_is_a_bounded_queue(
        capacity in 1..6_usize,
        steps in prop::collection::vec(any::<bool>(), 0..200),
    ) {
        let (mut writer, mut reader) = ring::<usize>(capacity);
        let (mut model, mut lost) = (VecDeque::new(), 0);
        for (number, is_push) in steps.into_iter().enumerate() {
            if is_push {
                let fits = model.len() < capacity;
                prop_assert_eq!(writer.push(number), fits);
                if fits { model.push_back(number) } else { lost += 1 }
            } else {
                prop_assert_eq!(reader.take(), model.pop_front());
                prop_assert_eq!(reader.take_lost(), std::mem::take(&mut lost));
            }
        }
        prop_assert!(!reader.is_closed());
        drop(writer);
        prop_assert!(reader.is_closed());
        prop_assert_eq!(std::iter::from_fn(|| reader.take()).collect::<VecDeque<_>>(), model);
    }
}

#[test]
fn between_threads_nothing_is_torn_or_doubled_and_what_is_lost_is_counted() {
    let (mut writer, mut reader) = ring::<[u64; 8]>(16);
    let writing = std::thread::spawn(move || {
        (1..=200_000_u64).filter(|&number| writer.push([number; 8])).count() as u64
    });
    let (mut taken, mut lost, mut last) = (0, 0, 0);
    loop {
        let is_closed = reader.is_closed();
        while let Some(value) = reader.take() {
            assert!(value == [value[0]; 8] && value[0] > last, "{value:?} after {last}");
            (taken, last) = (taken + 1, value[0]);
        }
        lost += reader.take_lost();
        if is_closed {
            break;
        }
    }
    assert_eq!((taken, taken + lost), (writing.join().unwrap(), 200_000));
}
