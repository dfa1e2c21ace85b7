//! Local checkpoints: what the hosts of a job have together is enough to go on, at any width, when
//! one of them is lost or has damaged files; and nothing else is taken for whole.

mod rank;

use std::fs;
use std::path::{Path, PathBuf};

use comm::World;
use device::Device;
use train::{Config, LoadedLocally, NativeEngine, Trainer, Wants};

type Make = fn(&Path, usize) -> Config;

const MODELS: [(&str, Make); 2] = [("mixture f32", rank::config), ("dense bf16", rank::dense_bf16)];

fn local(mut config: Config, dir: &Path) -> Config {
    let local = serde_json::json!({"dir": dir, "every": 2});
    config.checkpoint.local = serde_json::from_value(local).unwrap();
    config
}

/// Rank `rank` of a job whose ranks are on these hosts.
fn trainer(config: &Config, dir: &Path, hosts: &[&str], world: World) -> Trainer<NativeEngine> {
    let rank = world.rank();
    let mut trainer =
        rank::trainer(config, &dir.join(rank.to_string()), world, &Device::cpu(1).unwrap());
    trainer.keep_local(&dir.join(hosts[rank])).unwrap();
    trainer
}

fn step(trainer: &mut Trainer<NativeEngine>) {
    trainer.take_step(Wants::default()).unwrap();
}

/// Two steps, a local save of each, and one step more: its weights.
fn save(config: &Config, dir: &Path, hosts: &[&str]) -> String {
    let kind = if hosts.len() == 4 { "2 a host" } else { "tcp" };
    let digests = rank::with_group(kind, hosts.len(), |world| {
        let mut trainer = trainer(config, dir, hosts, world);
        for _ in 0..2 {
            step(&mut trainer);
            trainer.begin_local_save(1).unwrap();
            assert!(trainer.finish_saves().unwrap().is_empty(), "none but local ones");
        }
        step(&mut trainer);
        trainer.weights_digest().unwrap()
    });
    digests[0].clone()
}

/// A job on these hosts goes on: its weights one step later, and the lines that it was told.
fn go_on(config: &Config, dir: &Path, hosts: &[&str]) -> (Option<String>, Vec<String>) {
    let ranks = rank::with_group("tcp", hosts.len(), |world| {
        let mut trainer = trainer(config, dir, hosts, world);
        let (found, told) = trainer.load_local(None).unwrap();
        let digest = found.map(|LoadedLocally { loaded, warnings, .. }| {
            assert_eq!((loaded.state.step, &warnings[..]), (2, &[][..]));
            step(&mut trainer);
            trainer.weights_digest().unwrap()
        });
        (digest, told)
    });
    assert!(ranks.iter().all(|rank| *rank == ranks[0]), "all ranks know the same: {ranks:?}");
    ranks.into_iter().next().unwrap()
}

/// The files of a rank on a host, and what they are below that.
fn shard(dir: &Path, host: &str, rank: usize) -> PathBuf {
    dir.join(host).join(format!("step-00000002.g0001/rank-{rank:05}/shard-000.safetensors"))
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_job_goes_on_without_any_one_host_at_any_width() {
    for (model, make) in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let config = local(make(dir.path(), 6), dir.path());
        let digest = Some(save(&config, dir.path(), &["a", "a", "b", "b"]));
        for rank in 0..4 {
            for host in ["a", "b"] {
                assert!(shard(dir.path(), host, rank).is_file(), "{host} has {rank}'s");
            }
        }
        let older = dir.path().join("a/step-00000001.g0001");
        assert!(!older.exists(), "the newest alone stays");
        // All are there; then one, and a new one that has nothing; then one alone.
        for hosts in [&["a", "a", "b", "b"][..], &["c", "b", "b"], &["a", "c"], &["b"], &["c", "a"]]
        {
            let (found, told) = go_on(&config, dir.path(), hosts);
            assert_eq!(found, digest, "{model} {hosts:?} {told:?}");
            assert!(told.is_empty(), "{told:?}");
        }
    }
}

#[test]
fn with_three_hosts_each_has_what_the_one_before_has() {
    let dir = tempfile::tempdir().unwrap();
    let config = local(rank::config(dir.path(), 6), dir.path());
    let digest = Some(save(&config, dir.path(), &["a", "b", "c"]));
    for (rank, has) in [(0, ["a", "b"]), (1, ["b", "c"]), (2, ["c", "a"])] {
        for host in ["a", "b", "c"] {
            assert_eq!(shard(dir.path(), host, rank).is_file(), has.contains(&host));
        }
    }
    for hosts in [["a", "b"], ["b", "c"], ["c", "a"]] {
        assert_eq!(go_on(&config, dir.path(), &hosts), (digest.clone(), Vec::new()));
    }
    // One host has not all.
    let (found, told) = go_on(&config, dir.path(), &["b"]);
    let line = "the local checkpoint of step 2: 1 of its 3 files are on no host that is here";
    assert_eq!((found, &told[..]), (None, &[line.to_owned()][..]));
}

#[test]
fn a_damaged_file_is_read_from_its_copy_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = local(rank::config(dir.path(), 6), dir.path());
    let hosts = ["a", "b"];
    let digest = Some(save(&config, dir.path(), &hosts));
    flip(&shard(dir.path(), "a", 0));
    let (found, told) = go_on(&config, dir.path(), &hosts);
    assert_eq!(found, digest, "{told:?}");
    let [line] = &told[..] else { panic!("{told:?}") };
    assert!(line.contains("a/step-00000002.g0001/rank-00000/shard-000.safetensors"), "{line}");
    assert!(line.ends_with("; the copy on another host serves instead"), "{line}");
    // A file of the other that is not there any more is no reason, either.
    fs::remove_file(shard(dir.path(), "b", 1)).unwrap();
    assert_eq!(go_on(&config, dir.path(), &hosts).0, digest);
    // But both copies are.
    flip(&shard(dir.path(), "b", 0));
    let (found, told) = go_on(&config, dir.path(), &hosts);
    assert_eq!((found, told.len()), (None, 2), "{told:?}");
    assert!(told[1].starts_with("passed over: "), "{told:?}");
}

#[test]
fn a_host_that_cannot_keep_its_part_leaves_it_out_and_all_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let config = local(rank::config(dir.path(), 6), dir.path());
    let hosts = ["a", "b"];
    let first = save(&config, dir.path(), &hosts);
    // The directory that the next attempt would have is a file.
    fs::write(dir.path().join("b/step-00000003.g0002"), "").unwrap();
    let ranks = rank::with_group("tcp", 2, |world| {
        let mut trainer = trainer(&config, dir.path(), &hosts, world);
        trainer.load_local(None).unwrap().0.unwrap();
        step(&mut trainer);
        trainer.begin_local_save(2).unwrap();
        trainer.finish_saves().unwrap();
        trainer.weights_digest().unwrap()
    });
    assert_eq!(ranks, [first.clone(), first]);
    // The one from before is still there.
    assert!(go_on(&config, dir.path(), &hosts).0.is_some());
    let leftover = dir.path().join("a/step-00000003.g0002");
    assert!(!leftover.exists(), "the attempt is removed where it was begun");
    // At the end nothing stays.
    rank::with_group("tcp", 2, |world| {
        trainer(&config, dir.path(), &hosts, world).end_local().unwrap();
    });
    assert!(!dir.path().join("a").exists());
}
