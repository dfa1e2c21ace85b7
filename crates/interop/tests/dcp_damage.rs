//! Each way in which a distributed checkpoint has been seen to be damaged, and each flipped bit.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use interop::dcp::{TorchCheckpoint, open_dcp, open_dcp_safetensors};
use interop::{Error, Located};
use support::{bytes, copy, find, fixture};

#[track_caller]
fn told(result: Result<TorchCheckpoint, Error>, wanted: &str) {
    let told = result.err().unwrap_or_else(|| panic!("no error: {wanted}")).to_string();
    assert!(told.contains(wanted), "{told}");
}

#[test]
fn a_missing_file_is_named() {
    let dir = copy("dcp");
    fs::remove_file(dir.path().join("__1_0.distcp")).unwrap();
    told(open_dcp(dir.path()), "__1_0.distcp");
    fs::remove_file(dir.path().join(".metadata")).unwrap();
    told(open_dcp(dir.path()), "the save was not finished");
    fs::write(dir.path().join("__0.metadata"), "").unwrap();
    told(open_dcp(dir.path()), "`use_collectives=True`");
}

#[test]
fn a_truncated_file_is_refused() {
    let dir = copy("dcp");
    let path = dir.path().join("__2_0.distcp");
    let whole = fs::read(&path).unwrap();
    for len in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        told(open_dcp(dir.path()), "__2_0.distcp");
    }
    fs::write(dir.path().join(".metadata"), b"\x80\x04\x95").unwrap();
    told(open_dcp(dir.path()), "byte 2 of the pickle: it ends where 8 more bytes");
}

#[test]
fn a_flipped_bit_of_a_payload_is_found_while_reading() {
    let dir = copy("dcp");
    let foreign = open_dcp(dir.path()).unwrap().foreign;
    let piece = &foreign.tensors["model.rows"].pieces[1];
    let path = &foreign.files[piece.file];
    let mut data = fs::read(path).unwrap();
    data[piece.start as usize + 5] ^= 0x40;
    fs::write(path, data).unwrap();
    let foreign = open_dcp(dir.path()).unwrap().foreign;
    let error = bytes(&foreign, "model.rows").unwrap_err();
    assert!(matches!(&error, Error::Sum { tensor, .. } if tensor == "`model.rows`"), "{error}");
    bytes(&foreign, "model.columns").unwrap();
}

/// Puts another text of the same length into the metadata.
fn rename(dir: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = dir.join(".metadata");
    let mut bytes = fs::read(&path).unwrap();
    let at = find(&bytes, from.as_bytes());
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn metadata_that_names_other_files_is_refused() {
    let dir = copy("dcp");
    // The ranges are of rank 1's file.
    rename(dir.path(), "__1_0.distcp", "__2_0.distcp");
    told(open_dcp(dir.path()), "__2_0.distcp");
}

#[test]
fn a_path_that_leads_out_of_the_directory_is_refused() {
    for outside in ["../../secret", "/etc//passwd", "a/b/../../.."] {
        let dir = copy("dcp");
        rename(dir.path(), "__1_0.distcp", outside);
        told(open_dcp(dir.path()), "outside of the checkpoint");
    }
}

#[test]
fn a_class_that_is_not_expected_is_refused_by_name_and_place() {
    let dir = copy("dcp");
    rename(dir.path(), "_get_layout", "_set_layout");
    let wanted = "byte 238 of the pickle: `torch.serialization._set_layout` is no name";
    told(open_dcp(dir.path()), wanted);
}

/// A killed save into the same directory leaves files of two saves. Here they had other sizes.
#[test]
fn a_torn_save_of_another_layout_is_refused() {
    let dir = copy("dcp");
    fs::copy(fixture("megatron/__1_0.distcp"), dir.path().join("__1_0.distcp")).unwrap();
    told(open_dcp(dir.path()), "__1_0.distcp");
    // Ranks that changed places.
    let dir = copy("dcp");
    let path = |rank: usize| dir.path().join(format!("__{rank}_0.distcp"));
    let (one, two) = (fs::read(path(1)).unwrap(), fs::read(path(2)).unwrap());
    fs::write(path(1), two).unwrap();
    fs::write(path(2), one).unwrap();
    told(open_dcp(dir.path()), "distcp");
}

/// Where both saves had the same layout all sizes, ranges and sums fit, and nothing can be found.
/// It is noted that a file is younger than the metadata, which are written last.
#[test]
fn a_torn_save_of_the_same_layout_is_noted() {
    let dir = copy("dcp");
    let time = fs::metadata(dir.path().join(".metadata")).unwrap().modified().unwrap();
    for rank in 0..3 {
        let path = dir.path().join(format!("__{rank}_0.distcp"));
        let file = fs::File::options().append(true).open(path).unwrap();
        let is_late = rank == 1;
        let time = if is_late { time + Duration::from_secs(60) } else { time };
        file.set_modified(time).unwrap();
    }
    let notes = open_dcp(dir.path()).unwrap().notes;
    assert!(notes.len() == 1 && notes[0].contains("__1_0.distcp was written after"), "{notes:?}");
}

#[test]
fn a_missing_safetensors_file_is_found_by_the_hole_it_leaves() {
    let file = |number: usize| format!("shard-{number:05}-model-00001-of-00001.safetensors");
    for number in [1, 2] {
        let dir = copy("hf");
        fs::remove_file(dir.path().join(file(number))).unwrap();
        told(open_dcp_safetensors(dir.path()), "nothing holds its elements");
    }
    // Without the last one there is a smaller whole, which nothing contradicts.
    let dir = copy("hf");
    fs::remove_file(dir.path().join(file(3))).unwrap();
    let checkpoint = open_dcp_safetensors(dir.path()).unwrap();
    assert_eq!(checkpoint.foreign.tensors["rows"].shape, [4, 4]);
}

/// All that a reader can get.
fn contents(dir: &Path) -> Result<(Vec<Vec<u8>>, TorchCheckpoint), Error> {
    let checkpoint = open_dcp(dir)?;
    let names = checkpoint.foreign.tensors.keys();
    let data = names.map(|name| bytes(&checkpoint.foreign, name)).collect::<Result<_, _>>()?;
    Ok((data, checkpoint))
}

/// Flips bit `at % 8` of byte `at`, for each `step`-th byte of a file, and hands on what is read.
fn flip(path: &Path, step: usize, mut look: impl FnMut(usize)) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let good = fs::read(path).unwrap();
    for at in (0..good.len()).step_by(step) {
        file.write_all_at(&[good[at] ^ 1 << (at % 8)], at as u64).unwrap();
        look(at);
        file.write_all_at(&good[at..=at], at as u64).unwrap();
    }
}

#[test]
fn a_flipped_bit_of_a_file_is_an_error_or_changes_nothing() {
    let dir = copy("dcp");
    let (data, whole) = contents(dir.path()).unwrap();
    let (mut found, mut all) = (0, 0);
    for rank in 0..3 {
        flip(&dir.path().join(format!("__{rank}_0.distcp")), 13, |at| {
            all += 1;
            match contents(dir.path()) {
                Err(_) => found += 1,
                Ok((now, checkpoint)) => {
                    assert_eq!(now, data, "byte {at} of rank {rank}");
                    assert_eq!(checkpoint.values, whole.values, "byte {at} of rank {rank}");
                    assert_eq!(checkpoint.left_out, whole.left_out, "byte {at} of rank {rank}");
                }
            }
        });
    }
    assert!(found > all / 10, "{found} of {all}");
}

/// The metadata have no sum. A flip is an error, changes nothing, or changes names alone: where
/// boxes, types, files and ranges are, all must still fit.
#[test]
fn a_flipped_bit_of_the_metadata_changes_names_at_most() {
    let dir = copy("dcp");
    let (_, whole) = contents(dir.path()).unwrap();
    let tensors = |tensors: &BTreeMap<String, Located>| {
        let mut all: Vec<String> = tensors.values().map(|found| format!("{found:?}")).collect();
        all.sort();
        all
    };
    let values = |checkpoint: &TorchCheckpoint| {
        let mut all: Vec<String> = checkpoint.values.values().map(|v| v.to_string()).collect();
        all.sort();
        all
    };
    let (mut found, mut renamed, mut same) = (0, 0, 0);
    flip(&dir.path().join(".metadata"), 1, |at| match open_dcp(dir.path()) {
        Err(_) => found += 1,
        Ok(now) => {
            let (was, is) = (&whole.foreign.tensors, &now.foreign.tensors);
            assert_eq!(tensors(is), tensors(was), "byte {at}");
            assert_eq!(values(&now), values(&whole), "byte {at}");
            let is_same = is == was && now.values == whole.values;
            *(if is_same { &mut same } else { &mut renamed }) += 1;
        }
    });
    println!("{found} found, {renamed} names changed, {same} without a change");
    assert!(found > renamed + same, "{found} {renamed} {same}");
}

#[test]
fn tensors_that_megatron_wrote_in_another_way_are_refused_by_its_name() {
    let dir = copy("megatron");
    let path = dir.path().join("metadata.json");
    for (said, wanted) in [
        (r#"{"sharded_backend": "zarr", "sharded_backend_version": 1}"#, "is `zarr`; let Megatron"),
        (r#"{"sharded_backend": "torch_dist", "sharded_backend_version": 9}"#, "is 9, and 1 is"),
        ("{", "metadata.json is damaged"),
    ] {
        fs::write(&path, said).unwrap();
        told(open_dcp(dir.path()), wanted);
    }
    // Others that write DCP leave it out.
    fs::remove_file(&path).unwrap();
    assert!(open_dcp(dir.path()).is_ok());
}
