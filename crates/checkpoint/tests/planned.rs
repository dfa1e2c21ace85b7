//! Saves that are planned: what is committed is what the ranks' own reports would have committed,
//! and a rank that wrote anything else is refused by its number.

mod support;

use std::sync::Arc;

use checkpoint::{
    Attempt, Boxes, Error, ExpectedTensor, RankDigest, RankReport, Region, SavePlan, Store,
    WriteOptions,
};
use layout::Schema;
use proptest::prelude::*;
use support::mem_disk::MemDisk;
use support::{Rng, State, contents, random_model, run_state, save_rank, small_model, wanted};

const FIRST: Attempt = Attempt { step: 7, generation: 1 };
const WORLD: u32 = 2;

fn store() -> Store {
    let store = Store::on(Arc::new(MemDisk::new()), "/checkpoints");
    store.claim_generation().unwrap();
    store
}

/// The boxes of each rank, in the order in which [`save_rank`] hands them over.
fn boxes(states: &[State], world: u32) -> Vec<Boxes> {
    let of_rank = |rank: u32| {
        let of_state = |(number, state): (usize, &State)| -> Boxes {
            let mine = state.boxes.iter().filter(|(owner, _)| *owner == rank);
            mine.map(|(_, region)| (number, region.clone())).collect()
        };
        states.iter().enumerate().flat_map(of_state).collect()
    };
    (0..world).map(of_rank).collect()
}

fn plan(
    (schema, states): &(Schema, Vec<State>),
    boxes: &[Boxes],
    options: &WriteOptions,
) -> Result<SavePlan, Error> {
    let expected: Vec<ExpectedTensor> = states.iter().map(State::expected).collect();
    SavePlan::new(schema, &expected, boxes, options)
}

/// The reports of all ranks of a save on an empty disk.
fn written(
    store: &Store,
    attempt: Attempt,
    (states, world): (&[State], u32),
    options: &WriteOptions,
) -> Vec<RankReport> {
    (0..world)
        .map(|rank| save_rank(store, attempt, (rank, world), states, options).unwrap())
        .collect()
}

/// As digests go from rank to rank.
fn told(reports: &[RankReport]) -> Vec<RankDigest> {
    let told = |report| RankDigest::decode(&RankDigest::from(report).encode()).unwrap();
    reports.iter().map(told).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn digests_commit_the_bytes_that_reports_commit(
        seed in any::<u64>(),
        tensors in 0_usize..5,
        world in 1_u32..5,
        max_shard_bytes in 1_u64..2000,
        digest_data in any::<bool>(),
    ) {
        let model = random_model(&mut Rng(seed), tensors, world);
        let (schema, states) = &model;
        let options = WriteOptions { max_shard_bytes, digest_data };
        let expected: Vec<ExpectedTensor> = states.iter().map(State::expected).collect();
        let mut planned = plan(&model, &boxes(states, world), &options).unwrap();
        let (reported, digested) = (store(), store());
        // One plan serves all saves.
        for step in [7, 8] {
            let (attempt, state) = (Attempt { step, generation: 1 }, run_state(step));
            let reports = written(&reported, attempt, (states, world), &options);
            let by_reports = reported.commit(attempt, schema, &expected, &reports, &state);
            let reports = told(&written(&digested, attempt, (states, world), &options));
            let by_digests = digested.commit_planned(attempt, &mut planned, &reports, &state);
            prop_assert_eq!(by_digests.unwrap(), by_reports.unwrap());
            let checkpoint = digested.open(attempt).unwrap();
            prop_assert_eq!(contents(&checkpoint).unwrap(), wanted(states));
        }
    }
}

fn refused(model: &(Schema, Vec<State>), digests: &[RankDigest], store: &Store) -> String {
    let options = WriteOptions::default();
    let mut plan = plan(model, &boxes(&model.1, WORLD), &options).unwrap();
    let refused = store.commit_planned(FIRST, &mut plan, digests, &run_state(7));
    assert!(store.newest().unwrap().checkpoint.is_none());
    refused.unwrap_err().to_string()
}

#[test]
fn a_rank_that_wrote_anything_else_is_refused_by_its_number() {
    let model = small_model(1);
    let store = store();
    let options = WriteOptions::default();
    let reports = written(&store, FIRST, (&model.1, WORLD), &options);
    let digests = |change: fn(&mut RankReport)| {
        let mut reports = reports.clone();
        change(&mut reports[1]);
        told(&reports)
    };
    let changes: [fn(&mut RankReport); 7] = [
        |report| report.chunks[0].key.name.push('x'),
        |report| report.chunks[0].key.slot.push('x'),
        |report| report.chunks[0].global_shape[0] += 1,
        |report| report.chunks[0].region.offset[0] += 1,
        |report| report.chunks[0].range[1] += 1,
        |report| drop(report.chunks.pop()),
        |report| report.files[0].bytes += 4096,
    ];
    for change in changes {
        let text = refused(&model, &digests(change), &store);
        assert!(text.starts_with("rank 1: it wrote other chunks than are planned"), "{text}");
        assert!(text.contains("give all ranks the same program"), "{text}");
    }
    let missing = refused(&model, &digests(|_| ())[..1], &store);
    assert_eq!(missing, "rank 1: its report is missing; 2 ranks save");
    let twice = [0, 0].map(|rank| digests(|_| ())[rank].clone());
    let twice = refused(&model, &twice, &store);
    assert_eq!(twice, "rank 1: rank 0 reported twice and this one did not");
    let other = refused(&model, &digests(|report| report.attempt.step = 6), &store);
    assert!(other.starts_with("rank 1: reports step-00000006.g0001, but step-0000"), "{other}");
    let other = refused(&model, &digests(|report| report.world = 3), &store);
    assert_eq!(other, "rank 1: saved as one of 3 ranks, others of 2");
}

#[test]
fn boxes_that_do_not_tile_are_refused_before_anything_is_written() {
    let model = small_model(1);
    let of = |change: fn(&mut Vec<Boxes>)| {
        let mut boxes = boxes(&model.1, WORLD);
        change(&mut boxes);
        plan(&model, &boxes, &WriteOptions::default()).err().map(|error| error.to_string())
    };
    assert_eq!(of(|_| ()), None);
    let gap = of(|boxes| drop(boxes[0].remove(0))).unwrap();
    assert!(gap.contains("layers.0.weight:param: no rank saved the elements"), "{gap}");
    let overlap = of(|boxes| {
        let first = boxes[0][0].clone();
        boxes[1].push(first);
    });
    assert!(overlap.unwrap().contains("of rank 0 and"));
    let outside = of(|boxes| boxes[0][0].1.shape[0] = 100).unwrap();
    assert!(outside.contains("is not inside it"), "{outside}");
    let unknown = of(|boxes| boxes[1].push((99, Region::whole(&[])))).unwrap();
    assert!(unknown.starts_with("rank 1: box ") && unknown.contains("state 99 of 5"), "{unknown}");
}
