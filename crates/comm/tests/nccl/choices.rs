//! Which transport a group gets, and what is refused before anything is made.

use comm::{CommError, Op};

use crate::job::{Job, Rank, VENDORS};

/// Makes a group and says what it got, or why it got none.
pub fn child(rank: &Rank) {
    let (world, device) = rank.connect();
    let everyone: Vec<usize> = (0..world.size()).collect();
    match world.split_with(&device, &[everyone], crate::options()) {
        Ok(group) => {
            println!("\nroute {}", group.route());
            group.run(&device.stream(), Op::Barrier).unwrap();
        }
        Err(error) => {
            assert!(matches!(error, CommError::Transport(_)), "{error:?}");
            println!("\nrefused {error}");
        }
    }
}

/// As [`child`], with the first GPU for all ranks.
pub fn shared(rank: &Rank) {
    child(rank);
}

#[test]
fn all_ranks_say_what_they_use_and_why() {
    for (vendor, library) in VENDORS.into_iter().zip(["NCCL", "RCCL"]) {
        let Some(job) = Job::new("route", vendor, 2) else { return };
        let name = library.to_lowercase();
        for said in job.passes() {
            said.without_complaint();
            let expected =
                format!("{name} ({library} 2.30.7; all ranks have {library} 2.30.7), sums ordered");
            assert_eq!(said.line("route"), expected);
        }
    }
}

/// One rank of two has something else; `(said when asked for the library, and when not)`.
fn refused(variable: &str, value: &str) -> Option<[String; 2]> {
    let mut told = Vec::new();
    for (transport, word) in [("nccl", "refused"), ("auto", "route")] {
        let job = Job::new("route", "cuda", 2)?;
        let job = job.env("CHILD_TRANSPORT", transport).env_of(Some(1), variable, value);
        let said = job.passes();
        assert_eq!(said[0].line(word), said[1].line(word), "both know the same");
        said.iter().for_each(|said| said.without_complaint());
        told.push(said[0].line(word).to_owned());
    }
    told.try_into().ok()
}

#[test]
fn a_library_that_is_missing_or_is_none_is_named_with_its_rank() {
    let Some([told, instead]) = refused("MUSTER_NCCL_LIB", "/nowhere/libnccl.so.2") else { return };
    assert!(told.starts_with("rank 1 cannot use NCCL: NCCL was not found"), "{told}");
    assert!(told.contains("/nowhere/libnccl.so.2"), "{told}");
    assert_eq!(instead, format!("staged-shm ({told}), sums ordered"));
    let Some([told, _]) = refused("MUSTER_NCCL_LIB", "libm.so.6") else { return };
    assert!(told.starts_with("rank 1 cannot use NCCL: libm.so.6 is no NCCL"), "{told}");
}

#[test]
fn a_library_that_is_too_old_or_another_version_is_named_with_its_rank() {
    let Some([told, _]) = refused("LOOKALIKE_NCCL_VERSION", "21703") else { return };
    assert!(told.starts_with("rank 1 cannot use NCCL: "), "{told}");
    assert!(told.contains("is NCCL 2.17.3; 2.18.0 or later is needed"), "{told}");
    let Some([told, _]) = refused("LOOKALIKE_NCCL_VERSION", "22809") else { return };
    assert!(told.contains("2.30.7 on rank 0, 2.28.9 on rank 1"), "{told}");
}

#[test]
fn a_gpu_of_another_vendor_is_named_with_its_rank() {
    let Some([told, instead]) = refused("CHILD_DEVICE", "sim:sm_90a") else { return };
    assert!(told.starts_with("rank 1 cannot use NCCL: sim:sm_90a is no GPU"), "{told}");
    assert!(instead.starts_with("staged-shm"), "{instead}");
    let Some(job) = Job::new("route", "hip", 1) else { return };
    let said = job.env("CHILD_TRANSPORT", "nccl").passes();
    let told = said[0].line("refused");
    assert!(told.contains("hip:0 is no GPU of its vendor; use --transport rccl"), "{told}");
}

#[test]
fn ranks_share_a_gpu_by_permission_alone() {
    let job = |permission: &str, version: u32| {
        let job = Job::new("shared", "cuda", 2)?.version(version);
        let job = job.env("CHILD_TRANSPORT", "nccl").env("CHILD_DEVICE", "cuda:0");
        Some(job.env("NCCL_MULTI_RANK_GPU_ENABLE", permission).passes())
    };
    for (permission, version, expected) in
        [("0", 23_007, "or set NCCL_MULTI_RANK_GPU_ENABLE=1"), ("1", 22_907, "2.30.0 or later")]
    {
        let Some(said) = job(permission, version) else { return };
        for said in said {
            let told = said.line("refused");
            assert!(told.starts_with("ranks 0 and 1 share the GPU at 0000:01:00.0"), "{told}");
            assert!(told.contains(expected), "{told}");
        }
    }
    let Some(said) = job("1", 23_007) else { return };
    said.iter().for_each(|said| assert!(said.line("route").starts_with("nccl"), "{}", said.text));
}
