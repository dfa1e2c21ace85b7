//! The real library, as far as it goes without a GPU. `MUSTER_TEST_NCCL_LIB` names it
//! (`scripts/fetch_nccl.sh` brings one); without, the test says that it was skipped.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use nccl_rs::{
    Code, Communicator, Config, Error, JobId, LATER, Library, UniqueId, Vendor, Version,
};

const JOB: JobId = JobId([3; 16]);

fn library() -> Option<Library> {
    let Some(path) = std::env::var_os("MUSTER_TEST_NCCL_LIB").map(PathBuf::from) else {
        eprintln!("skipped: MUSTER_TEST_NCCL_LIB names no libnccl.so.2 (scripts/fetch_nccl.sh)");
        return None;
    };
    Some(Library::open_at(Vendor::Nvidia, &path).unwrap())
}

#[test]
fn its_version_says_which_functions_it_has() {
    let Some(library) = library() else { return };
    let version = library.version();
    eprintln!("NCCL {version}");
    assert!(version >= Version::BASELINE && version < Version::new(3, 0, 0), "{version}");
    for (symbol, since) in LATER {
        assert_eq!(library.has(symbol), version >= *since, "{symbol} and {version}");
    }
}

#[test]
fn it_has_words_for_its_codes() {
    let Some(library) = library() else { return };
    assert_eq!(library.error_text(0), "no error");
    assert!(library.error_text(4).contains("invalid argument"), "{}", library.error_text(4));
    assert!(!library.error_text(77).is_empty());
}

#[test]
fn its_ids_differ_and_survive_the_envelope() {
    let Some(library) = library() else { return };
    let [one, other] = [(); 2].map(|()| library.unique_id(JOB).unwrap());
    assert_ne!(one.as_bytes(), other.as_bytes());
    assert_eq!(UniqueId::from_bytes(&one.to_bytes()).unwrap(), one);
    assert_eq!((one.vendor(), one.version()), (Vendor::Nvidia, library.version()));
}

/// With a GPU this is a communicator of one rank.
#[test]
fn a_communicator_without_a_driver_is_an_error_at_once() {
    let Some(library) = library() else { return };
    let id = library.unique_id(JOB).unwrap();
    let begun = Instant::now();
    let config = Config { timeout: Duration::from_secs(60), ..Config::default() };
    match Communicator::init_rank(&library, &id, JOB, 0, 1, &config) {
        Ok(comm) => comm.finalize().unwrap(),
        Err(Error::Call { code, text, detail, .. } | Error::Async { code, text, detail, .. }) => {
            assert_eq!(code, Code::UnhandledDriverError, "{text} ({detail})");
            assert!(text.contains("unhandled cuda error"), "{text}");
            assert!(begun.elapsed() < Duration::from_secs(30), "it waited");
            eprintln!("as expected without a GPU: {text} ({detail})");
        }
        Err(error) => panic!("{error}"),
    }
}
