//! A stream's promises on both devices of the host: order, checked operands, errors that stay, and
//! memory that is out of reach between launches.

use super::*;
use crate::{DType, Placement, SharedPart};

fn add_one(stream: &Stream, x: &Tensor) -> Result<(), DeviceError> {
    let x = x.clone();
    stream.launch("add_one", move |k| {
        k.write::<f32>(&x)?.iter_mut().for_each(|x| *x += 1.0);
        Ok(())
    })
}

#[test]
fn kernels_run_in_order_on_both_devices() {
    for device in [Device::cpu(2).unwrap(), Device::guarded(2).unwrap()] {
        let x = device.tensor(&[3], &[1.0_f32, 2.0, 3.0]).unwrap();
        let stream = device.stream();
        for _ in 0..200 {
            add_one(&stream, &x).unwrap();
        }
        assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [201.0, 202.0, 203.0], "{device:?}");
    }
}

#[test]
fn overlapping_writes_and_wrong_types_are_refused() {
    let device = Device::cpu(1).unwrap();
    let x = device.zeros(&[8], DType::F32).unwrap();
    let tail = x.flat(4..8).unwrap();
    let (a, b) = (x.clone(), tail.clone());
    let twice = device.stream().launch("twice", move |k| {
        let _a = k.write::<f32>(&a)?;
        k.read::<f32>(&b).map(|_| ())
    });
    assert!(matches!(twice, Err(DeviceError::Overlap { kernel: "twice" })));
    let wrong = device.stream().launch("wrong", move |k| k.read::<f64>(&tail).map(|_| ()));
    assert!(matches!(wrong, Err(DeviceError::Dtype { .. })));
}

#[test]
fn a_late_error_surfaces_at_the_next_wait() {
    let device = Device::guarded(1).unwrap();
    let x = device.zeros(&[8], DType::F32).unwrap();
    let stream = device.stream();
    stream.launch("fail", |k| Err(k.error("on purpose"))).unwrap();
    add_one(&stream, &x).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert_eq!(error.to_string(), "kernel `fail`: on purpose");
    assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [0.0; 8], "work after an error is dropped");
}

#[test]
fn guarded_memory_is_inaccessible_between_kernels() {
    let device = Device::guarded(1).unwrap();
    let x = device.zeros(&[1024], DType::F32).unwrap();
    device.stream().synchronize().unwrap();
    // The system refuses to read inaccessible pages on our behalf: EFAULT instead of a crash.
    let path = std::env::temp_dir().join(format!("muster-guarded-{}", std::process::id()));
    let file = std::fs::File::create(&path).unwrap();
    let start = x.buffer().address() as *const libc::c_void;
    // SAFETY: write(2) validates the range itself and fails without touching our memory.
    let wrote = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&file), start, 16) };
    std::fs::remove_file(&path).unwrap();
    assert_eq!(wrote, -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
}

#[test]
fn shared_memory_is_seen_by_another_mapping_and_given_back_by_its_maker() {
    const PAGE: u64 = 64 << 10;
    let file = std::sync::Arc::new(tempfile::tempfile().unwrap());
    // SAFETY: one thread uses all mappings, one after the other.
    let part = |index| unsafe { SharedPart::new(file.clone(), index * PAGE) };
    let device = Device::cpu(1).unwrap();
    let ours = device.alloc(64, &Placement::Shared(part(1))).unwrap();
    let theirs = device.map_shared(&part(1), 64).unwrap();
    let ours = Tensor::new(ours, 0, &[16], DType::U32).unwrap();
    let theirs = Tensor::new(theirs, 0, &[16], DType::U32).unwrap();
    device.stream().copy_in(&ours, &[7_u32; 16]).unwrap();
    assert_eq!(device.stream().to_vec::<u32>(&theirs).unwrap(), [7; 16]);
    // Nobody has reserved so much.
    assert!(device.map_shared(&part(1), 65).is_err());
    assert!(device.map_shared(&part(2), 1).is_err());
    let blocks = || std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    let reserved = blocks();
    drop(ours);
    assert!(blocks() < reserved);
    assert_eq!(device.stream().to_vec::<u32>(&theirs).unwrap(), [0; 16]);
    assert_eq!(device.allocated_bytes(), 64);
}
