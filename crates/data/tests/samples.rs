//! From files to samples: what every index holds, whatever kind of file the tokens lie in.

mod common;

use common::*;
use data::{DataError, Dataset, IGNORE, Split};

/// The sample that `Dataset` should give for window `w` of `stream`, worked out from the
/// definition.
fn expected(stream: &[(u32, u32)], w: usize, t: usize) -> Sample {
    let window = &stream[w * t..w * t + t + 1];
    let same_document = |i: usize, j: usize| window[i].1 == window[j].1;
    Sample {
        inputs: window[..t].iter().map(|p| p.0).collect(),
        targets: (0..t)
            .map(|i| if same_document(i, i + 1) { window[i + 1].0 } else { IGNORE })
            .collect(),
        doc_start: (0..t).map(|i| (0..=i).find(|&j| same_document(j, i)).unwrap() as u32).collect(),
    }
}

#[test]
fn every_window_comes_once_in_each_epoch_as_defined() {
    let dir = tempfile::tempdir().unwrap();
    let texts = [50, 1, 700, 3, 0, 90, 90, 2000].map(|n| random_text(n, n as u64));
    let files = write_texts(dir.path(), &texts);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let mut stream = Vec::new();
    for (d, text) in (0u32..).zip(texts.iter().filter(|t| !t.is_empty())) {
        stream.extend(text.iter().map(|&b| (u32::from(b), d)).chain([(256, d)]));
    }
    assert_eq!(prepared.sources[0].tokens as usize, stream.len());
    assert_eq!(prepared.sources[0].documents, 7);
    assert_eq!(prepared.sources[0].bytes, Some(stream.len() as u64 - 7));
    for t in [1, 7, 64] {
        let data = Dataset::open(&prepared, t, 5, 0.1).unwrap();
        let windows = (stream.len() - 1) / t;
        let epoch = data.train_samples_per_epoch();
        assert_eq!(epoch + data.validation_samples(), windows as u64);
        let all: Vec<Sample> = (0..windows).map(|w| expected(&stream, w, t)).collect();
        for round in 0..2 {
            let train = (0..epoch).map(|i| read(&data, Split::Train, round * epoch + i).0);
            let held_out =
                (0..data.validation_samples()).map(|i| read(&data, Split::Validation, i).0);
            let mut found: Vec<Sample> = train.chain(held_out).collect();
            let mut wanted = all.clone();
            found.sort();
            wanted.sort();
            assert!(found == wanted, "T = {t}, epoch {round}");
        }
    }
}

#[test]
fn counts_are_of_targets_with_a_loss() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_texts(dir.path(), &[b"abc".to_vec(), b"de".to_vec(), b"fghijkl".to_vec()]);
    // a b c E d e E f g h i j k l E: T = 7 gives two windows, "abcEdeE" and "fghijkl".
    let prepared = prepare_files(dir.path(), &files, "byte");
    let data = Dataset::open(&prepared, 7, 0, 0.0).unwrap();
    let mut counts: Vec<_> = (0..2)
        .map(|i| {
            let (sample, info) = read(&data, Split::Train, i);
            (sample.inputs[0], info.target_tokens, info.target_bytes)
        })
        .collect();
    counts.sort();
    // First: b c E e E have a loss, d and f begin documents. Second: g h i j k l E.
    assert_eq!(counts, [(97, 5, Some(3)), (102, 7, Some(6))]);
}

#[test]
fn foreign_files_give_the_samples_of_our_own() {
    let dir = tempfile::tempdir().unwrap();
    let texts: Vec<Vec<u8>> = (0..40).map(|i| words(60 + 7 * i, i as u64)).collect();
    let files = write_texts(dir.path(), &texts);
    let ours = prepare_files(dir.path(), &files, "gpt2");
    let stream = tokens_of(&ours);
    let lengths = document_lengths(&stream, 50256);

    let headered = dir.path().join("h.bin");
    write_headered(&headered, &stream);
    let megatron = dir.path().join("m.bin");
    write_megatron(&megatron, &stream, &lengths, 8);
    let wide = dir.path().join("w.bin");
    write_megatron(&wide, &stream, &lengths, 4);

    let reference = Dataset::open(&ours, 32, 1, 0.1).unwrap();
    for file in [headered, megatron, wide] {
        let theirs = prepare_files(dir.path(), std::slice::from_ref(&file), "gpt2");
        let (a, b) = (&theirs.sources[0], &ours.sources[0]);
        assert_eq!((a.tokens, a.documents, a.bytes), (b.tokens, b.documents, b.bytes), "{file:?}");
        let data = Dataset::open(&theirs, 32, 1, 0.1).unwrap();
        let collect = |d: &Dataset| {
            let mut all: Vec<Sample> =
                (0..d.train_samples_per_epoch()).map(|i| read(d, Split::Train, i).0).collect();
            all.sort();
            all
        };
        assert!(collect(&data) == collect(&reference), "{file:?}");
    }
}

#[test]
fn shards_make_one_stream() {
    let dir = tempfile::tempdir().unwrap();
    let stream: Vec<u32> = (0..1000u32).map(|i| i % 300).collect();
    let shards: Vec<_> = stream
        .chunks(333)
        .enumerate()
        .map(|(i, chunk)| {
            let path = dir.path().join(format!("{i}.bin"));
            write_headered(&path, chunk);
            path
        })
        .collect();
    let prepared = prepare_files(dir.path(), &shards, "gpt2");
    let data = Dataset::open(&prepared, 9, 3, 0.0).unwrap();
    let labelled: Vec<(u32, u32)> =
        stream.iter().enumerate().map(|(i, &t)| (t, i as u32 / 333)).collect();
    let mut wanted: Vec<Sample> = (0..111).map(|w| expected(&labelled, w, 9)).collect();
    let mut found: Vec<Sample> = (0..111).map(|i| read(&data, Split::Train, i).0).collect();
    wanted.sort();
    found.sort();
    assert!(found == wanted);
}

#[test]
fn samples_do_not_depend_on_who_reads_them_or_when() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_texts(dir.path(), &[words(40_000, 1)]);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let open = |seed| Dataset::open(&prepared, 16, seed, 0.05).unwrap();
    let (a, b) = (open(1), open(1));
    let forwards: Vec<_> = (0..500).map(|i| read(&a, Split::Train, i)).collect();
    let mut backwards: Vec<_> = (0..500).rev().map(|i| read(&b, Split::Train, i)).collect();
    backwards.reverse();
    assert!(forwards == backwards);
    let by_ranks: Vec<_> = std::thread::scope(|scope| {
        let rank = |r: u64| (0..125).map(|i| read(&a, Split::Train, i * 4 + r)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|r| scope.spawn(move || rank(r))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (i, sample) in forwards.iter().enumerate() {
        assert!(&by_ranks[i % 4][i / 4] == sample);
    }
    let other: Vec<_> = (0..500).map(|i| read(&open(2), Split::Train, i)).collect();
    assert!(other != forwards, "another seed is another order");
    assert_ne!(open(2).digest(), a.digest());
    let held_out = |d: &Dataset| read(d, Split::Validation, 0);
    assert!(held_out(&open(2)) == held_out(&a), "validation does not depend on the seed");
}

#[test]
fn mixtures_keep_their_shares() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_texts(dir.path(), &[vec![b'a'; 3000], vec![b'b'; 50_000]]);
    let cfg = serde_json::json!({"mixture": [
        {"name": "a", "files": files[0], "weight": 3},
        {"name": "b", "files": [files[1]], "weight": 1},
    ]});
    let prepared = prepare_json(dir.path(), &cfg).unwrap();
    let data = Dataset::open(&prepared, 10, 0, 0.1).unwrap();
    let firsts: Vec<u32> = (0..4000).map(|i| read(&data, Split::Train, i).0.inputs[0]).collect();
    assert_eq!(firsts.iter().filter(|&&t| t == u32::from(b'a')).count(), 3000);
    assert!(data.epoch_of(3999) > 5, "the small source is in a later epoch");
    let held_out: Vec<u32> = (0..data.validation_samples())
        .map(|i| read(&data, Split::Validation, i).0.inputs[0])
        .collect();
    assert_eq!(held_out.iter().filter(|&&t| t == u32::from(b'a')).count(), 30);
    assert_eq!(held_out.len(), 530);
}

#[test]
fn too_little_text_says_how_much_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_texts(dir.path(), &[b"just a few bytes".to_vec()]);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let error = Dataset::open(&prepared, 64, 0, 0.05).err().unwrap();
    assert!(matches!(error, DataError::TooFewTokens { tokens: 17, needed: 129, .. }), "{error}");
    assert!(error.to_string().contains("(at most 8)"), "{error}");
    Dataset::open(&prepared, 8, 0, 0.05).unwrap();
    let error = Dataset::open(&prepared, 17, 0, 0.0).err().unwrap();
    assert!(matches!(error, DataError::TooFewTokens { needed: 18, .. }), "{error}");
    assert!(error.to_string().contains("(at most 16)"), "{error}");

    let files = write_texts(dir.path(), &[b"x".to_vec()]);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let error = Dataset::open(&prepared, 1, 0, 0.05).err().unwrap().to_string();
    assert!(error.contains("2 tokens") && error.ends_with("are these enough"), "{error}");
}
