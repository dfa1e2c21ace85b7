//! The weights have the same bits with buckets of any size: what links carry best may be measured
//! anew for every start of a run.

mod rank;

use comm::BackendWord;
use device::Device;
use train::{Config, RunPlan, Wants};

const STEPS: u64 = 3;

/// Digest of the weights after some steps, and how many buckets there were.
fn digest(config: &Config, kind: &str, world: usize, elsewhere: bool) -> (String, usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut digests = rank::with_group(kind, world, |world| {
        let device = Device::cpu(1).unwrap();
        let cache = dir.path().join(world.rank().to_string());
        let there = elsewhere.then(|| Device::cpu(1).unwrap());
        let mut trainer = rank::trainer_with(config, &cache, world, &device, there);
        for _ in 0..STEPS {
            trainer.take_step(Wants::default()).unwrap();
        }
        (trainer.weights_digest().unwrap(), trainer.plan().flat.buckets.len())
    });
    digests.dedup();
    assert_eq!(digests.len(), 1, "{kind}, {world} ranks: {digests:?}");
    digests.remove(0)
}

#[test]
fn the_size_of_buckets_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = rank::config(dir.path(), 6);
    let mut counts = Vec::new();
    let mut digests = Vec::new();
    for bucket_bytes in [1 << 10, 20_000, 32 << 20] {
        config.ranks.bucket_bytes = Some(bucket_bytes);
        let mut of_size = Vec::new();
        for (kind, world, elsewhere) in
            [("shm", 2, false), ("shm", 4, true), ("tcp", 3, false), ("tcp", 2, true)]
        {
            let (digest, buckets) = digest(&config, kind, world, elsewhere);
            digests.push(digest);
            of_size.push(buckets);
        }
        of_size.dedup();
        counts.extend(of_size);
    }
    // Many, some, and one.
    assert!(counts[0] > counts[1] && counts[1] > counts[2], "{counts:?}");
    assert_eq!((counts.len(), counts[2]), (3, 1));
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[test]
fn the_memory_plan_follows_the_size() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = rank::config(dir.path(), 6);
    (config.ranks.count, config.ranks.backend) = (3, BackendWord::Tcp);
    let received = |plan: RunPlan| {
        let memory = plan.memory(0).unwrap();
        memory.into_iter().find(|(what, _)| what == "gradients from peers").unwrap().1
    };
    let with = |bucket_bytes| RunPlan::with_buckets(&config, 257, 3, 1, bucket_bytes).unwrap();
    let (small, large) = (received(with(4 << 10)), received(with(32 << 20)));
    assert!(small < large, "{small} {large}");
    // Without one that was chosen, what is configured, or 32 MiB.
    assert_eq!(received(RunPlan::new(&config, 257, 3, 1).unwrap()), large);
    let mut configured = config.clone();
    configured.ranks.bucket_bytes = Some(4 << 10);
    assert_eq!(received(RunPlan::new(&configured, 257, 3, 1).unwrap()), small);
}
