//! `muster bench collectives` on GPUs, whose drivers and libraries the look-alikes stand in for.

mod common;

use std::path::Path;
use std::process::Command;

use common::cpus::{list, two_cpus, two_nodes};
use common::{Done, Workdir};
use kernels::gpu::modules::Family;
use kernels::modules::{file_name, image};
use serde_json::Value;

const OPS: [&str; 7] = [
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "all_to_all",
    "send_recv",
    "barrier",
];

/// Runs with such arguments, where the loader finds the look-alikes; `None`, said once, where the
/// build has no simulated kernels.
fn run(run: &Workdir, more: &[&str], environment: &[(&str, &str)]) -> Option<Done> {
    let family = Family::OrderedSum.name();
    for (stand_in, target) in [("sim-sm_90a", "cuda"), ("sim-gfx942", "gfx942")] {
        match image(stand_in, family) {
            Ok(image) => std::fs::write(run.path().join(file_name(target, family)), image).unwrap(),
            Err(error) => {
                common::skip(&error.to_string());
                return None;
            }
        }
    }
    let library = lookalike::library().unwrap();
    for name in ["libcuda.so.1", "libamdhip64.so.6"] {
        std::os::unix::fs::symlink(&library, run.path().join(name)).unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["bench", "collectives", "--threads", "1", "--seconds", "0.02"]);
    command.args(["--iterations", "12", "--warmup", "2", "--json", "r.json"]).args(more);
    command.env("LD_LIBRARY_PATH", run.path()).env("MUSTER_KERNEL_DIR", run.path());
    command.env("MUSTER_NCCL_LIB", &library).env("MUSTER_RCCL_LIB", &library);
    command.env("LOOKALIKE_DEVICES", "3").env_remove("NCCL_MULTI_RANK_GPU_ENABLE");
    command.env_remove("ROCM_PATH").envs(environment.iter().copied());
    Some(run.spawn(command).wait())
}

fn report(run: &Workdir) -> Value {
    let text = std::fs::read_to_string(run.path().join("r.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_operation_is_right_over_the_library_and_staged() {
    let cases = [
        ("cuda:0,cuda:1,cuda:2", "nccl", "3", ["nccl", "symmetric"]),
        ("hip:0,hip:1", "auto", "2", ["rccl", "symmetric"]),
        ("cuda:0,cuda:1", "staged", "2", ["staged-shm", "shm"]),
    ];
    for (devices, transport, ranks, [expected, path]) in cases {
        let folder = Workdir::new("gpus-all");
        let mut more = OPS.to_vec();
        more.extend(["--device", devices, "--transport", transport, "--ranks", ranks, "--odd"]);
        more.extend(["--min", "64", "--max", "64KiB", "--factor", "32"]);
        let Some(done) = run(&folder, &more, &[]) else { return };
        assert_eq!(done.code(), Some(0), "{transport}\n{}", done.stderr);
        assert!(!done.stderr.contains("lookalike:"), "{}", done.stderr);
        assert!(done.stderr.contains(&format!("over {expected} (")), "{}", done.stderr);
        let report = report(&folder);
        assert_eq!((&report["complete"], &report["transport"]), (&true.into(), &expected.into()));
        for row in report["rows"].as_array().unwrap() {
            assert_eq!(row["check"]["wrong"], 0, "{row}");
            assert!(row["check"]["launches"].as_u64() > Some(0), "{row}");
            assert_eq!((&row["key"]["transport"], &row["path"]), (&expected.into(), &path.into()));
            assert_ne!(row["key"]["ordered"], false, "{row}");
        }
        let library = &report["libraries"][expected];
        assert_eq!(*library, if path == "shm" { Value::Null } else { "2.30.7".into() });
        let named = done.stdout.contains(&format!("\n# {expected} 2.30.7\n"));
        assert_eq!(named, path != "shm", "{}", done.stdout);
    }
}

#[test]
fn sums_of_the_library_are_rows_of_their_own_and_a_wrong_bit_is_found() {
    let folder = Workdir::new("gpus-sum");
    let two = ["all_reduce", "reduce_scatter", "--device", "cuda:0,cuda:1", "--ranks", "2"];
    let sizes = ["--min", "1KiB", "--max", "1KiB"];
    let Some(done) = run(&folder, &[&two[..], &sizes, &["--sum", "vendor"]].concat(), &[]) else {
        return;
    };
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("sums in the library's own order"), "{}", done.stderr);
    let report = report(&folder);
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["key"]["ordered"] == false && row["check"]["wrong"] == 0));
    let folder = Workdir::new("gpus-flip");
    let done = run(&folder, &[&two[..], &sizes, &["--flip-at", "2"]].concat(), &[]).unwrap();
    assert_eq!(done.code(), Some(3), "{}", done.stderr);
    let words = "gave 1 wrong elements; the first on rank 0: element 0 is";
    assert!(done.stderr.contains(words), "{}", done.stderr);
}

#[test]
fn ranks_are_bound_to_the_cpus_near_their_gpus() {
    let Some(cpus) = two_cpus() else { return };
    for (devices, nodes, why, at) in [
        (
            "cuda:0,cuda:1",
            ["1", "0"],
            "bound near their devices: rank 0 in NUMA node 1, rank 1 in NUMA node 0",
            Some([1, 0]),
        ),
        (
            "hip:1,hip:0",
            ["1", "1"],
            "bound near their devices: ranks 0 to 1 in NUMA node 1",
            Some([1, 1]),
        ),
        (
            "cuda:1,cuda:0",
            ["-1", "0"],
            "not bound: the NUMA node of the device of rank 1 is unknown",
            None,
        ),
    ] {
        let folder = Workdir::new("gpus-near");
        let host = two_nodes(&folder, &cpus);
        for (bus, node) in ["0000:01:00.0", "0000:02:00.0"].into_iter().zip(nodes) {
            let dir = folder.path().join("host/pci").join(bus);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("numa_node"), format!("{node}\n")).unwrap();
        }
        let more = ["all_reduce", "--device", devices, "--ranks", "2", "--max", "1KiB"];
        let Some(done) = run(&folder, &[&more[..], &host].concat(), &[]) else { return };
        assert_eq!(done.code(), Some(0), "{devices}\n{}", done.stderr);
        assert!(!done.stderr.contains("lookalike:"), "{}", done.stderr);
        let report = report(&folder);
        assert_eq!(report["cpus"], why, "{devices}");
        let all = list(Path::new("/proc/self")).unwrap();
        let expected = [0, 1].map(|rank: usize| at.map_or(&all, |at| &cpus[at[rank]]));
        assert_eq!(report["hosts"][0]["cpus"], serde_json::json!(expected), "{devices}");
    }
}

#[test]
fn ranks_on_one_gpu_are_refused_by_name_or_permitted() {
    let folder = Workdir::new("gpus-shared");
    let more = ["all_gather", "--ranks", "2", "--max", "1KiB", "--transport", "nccl"];
    let more = [&more[..], &["--device", "cuda:0"]].concat();
    let Some(done) = run(&folder, &more, &[]) else { return };
    assert_eq!(done.code(), Some(2), "{}", done.stderr);
    let words = "ranks 0 and 1 share the GPU at 0000:01:00.0, which NCCL 2.30.7 refuses";
    assert!(done.stderr.contains(words), "{}", done.stderr);
    let folder = Workdir::new("gpus-permitted");
    let done = run(&folder, &more, &[("NCCL_MULTI_RANK_GPU_ENABLE", "1")]).unwrap();
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
}

#[test]
fn a_rank_that_dies_on_its_gpu_ends_the_benchmark_by_name() {
    let folder = Workdir::new("gpus-dies");
    let more = ["all_reduce", "--ranks", "2", "--device", "cuda:0,cuda:1", "--max", "1KiB"];
    let faults = [("LOOKALIKE_NCCL_FAULTS", "dies:1@20")];
    let Some(done) = run(&folder, &more, &faults) else { return };
    assert_eq!(done.code(), Some(3), "{}", done.stderr);
    assert!(done.stderr.contains("rank 1"), "{}", done.stderr);
}

#[test]
fn what_a_device_does_not_have_is_refused() {
    for (more, words) in [
        (["--transport", "nccl"], "--transport nccl: cpu has no such library"),
        (["--sum", "vendor"], "--sum vendor: cpu has no library of a vendor"),
        (["--transport", "ucx"], "use auto, staged, nccl or rccl"),
    ] {
        let folder = Workdir::new("gpus-refused");
        let args = [&["bench", "collectives"][..], &more[..]].concat();
        let done = folder.muster(&args);
        assert_eq!(done.code(), Some(2), "{more:?}\n{}", done.stderr);
        assert!(done.stderr.contains(words), "{more:?}\n{}", done.stderr);
    }
}
