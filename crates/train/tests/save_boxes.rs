//! Who writes what of a checkpoint: every byte once, and all ranks as many as can be.

mod rank;

use std::path::Path;

use checkpoint::{Checkpoint, ExpectedTensor, Region, SavePlan, Store, TensorKey, WriteOptions};
use device::Device;
use layout::state::PARAM;
use train::{Config, RunPlan};

type Make = fn(&Path, usize) -> Config;

const MODELS: [(&str, Make); 3] = [
    ("mixture f32", rank::config),
    ("dense bf16", rank::dense_bf16),
    ("latent attention f32", rank::latent),
];

fn plan(make: Make, dir: &Path, world: usize) -> RunPlan {
    RunPlan::new(&make(dir, 12), 320, world, 1).unwrap()
}

fn expected(plan: &RunPlan) -> Vec<ExpectedTensor> {
    let expected = |state: &layout::StateDecl| ExpectedTensor {
        key: TensorKey::new(&*state.name, state.slot),
        dtype: state.dtype,
        global_shape: state.shape.clone(),
    };
    plan.states.iter().map(expected).collect()
}

#[test]
fn boxes_tile_the_states_and_what_can_move_evens_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (model, make) in MODELS {
        for world in [1, 2, 3, 5, 12] {
            let plan = plan(make, dir.path(), world);
            let ranks = plan.save_boxes().unwrap();
            assert_eq!(ranks, plan.save_boxes().unwrap());
            let expected = expected(&plan);
            SavePlan::new(&plan.schema, &expected, &ranks, &WriteOptions::default()).unwrap();
            let bytes = |boxes: &[(usize, Region)]| -> usize {
                boxes.iter().map(|(_, region)| 4 * region.elements().unwrap()).sum()
            };
            // Boxes of states that only owners have.
            let is_owned = |state: usize| {
                let state = &plan.states[state];
                state.sharing != layout::Sharing::Replicated
                    && (state.slot != PARAM || plan.weights == device::DType::Bf16)
            };
            let kept = optim::kept_boxes(&plan.schema, &plan.ownership, &plan.updates).unwrap();
            let owned = |boxes: &[(usize, Region)]| -> Vec<(usize, Region)> {
                let mut owned: Vec<_> =
                    boxes.iter().filter(|(state, _)| is_owned(*state)).cloned().collect();
                owned.sort();
                owned
            };
            for (boxes, kept) in ranks.iter().zip(&kept) {
                assert_eq!(owned(boxes), owned(kept), "{model} {world}");
            }
            let loads: Vec<usize> = ranks.iter().map(|boxes| bytes(boxes)).collect();
            let most_owned = kept.iter().map(|boxes| bytes(&owned(boxes))).max().unwrap();
            let least = loads.iter().sum::<usize>().div_ceil(world).max(most_owned);
            // Cuts are a page apart.
            assert!(loads.iter().all(|&load| load <= least + 4096), "{model} {world}: {loads:?}");
        }
    }
}

#[test]
fn ranks_write_what_is_planned_whoever_owns_it() {
    for (model, make) in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let config = make(dir.path(), 3);
        let (cache, store) = (dir.path().join("cache"), dir.path().join("checkpoints"));
        let saved = rank::with_group("shm", 3, |world| {
            let device = Device::cpu(1).unwrap();
            let mut trainer = rank::trainer(&config, &cache, world, &device);
            trainer.take_step(train::Wants::default()).unwrap();
            let store = Store::new(&store);
            let generation = trainer.claim(&store).unwrap();
            let first = trainer.save(&store, generation).unwrap().path;
            let digest = trainer.weights_digest().unwrap();
            trainer.take_step(train::Wants::default()).unwrap();
            trainer.save(&store, generation).unwrap();
            let boxes = trainer.plan().save_boxes().unwrap();
            // Whatever came after it is not in it.
            trainer.load(Path::new(&first)).unwrap();
            assert_eq!(trainer.weights_digest().unwrap(), digest, "{model}");
            (first, boxes)
        });
        let (path, ranks) = &saved[0];
        let manifest = Checkpoint::open(path).unwrap();
        let mut bytes = [0; 3];
        for chunk in manifest.tensors().iter().flat_map(|tensor| &tensor.chunks) {
            let rank = manifest.manifest().files[chunk.file as usize].rank().unwrap();
            bytes[rank as usize] += (chunk.range[1] - chunk.range[0]) as usize;
        }
        let planned = ranks.iter().map(|boxes| -> usize {
            boxes.iter().map(|(_, region)| 4 * region.elements().unwrap()).sum()
        });
        assert_eq!(bytes.to_vec(), planned.collect::<Vec<_>>(), "{model}");
    }
}
