//! The outside world of the tests: a toy module, stand-ins for drivers, child processes.

#![allow(dead_code)] // Each test file uses its part.

pub mod raw;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use device::{Arch, DeviceKind};

/// The argument of `scale_add`, a kernel of the toy module.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ScaleAdd {
    pub x: u64,
    pub n: u32,
    pub a: f32,
    pub b: f32,
    pub reserved: u32,
}

/// The argument of `shape`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Shape {
    pub out: u64,
}

/// The toy module for an architecture; `None`, said once, where there is no C++ compiler.
pub fn toy(arch: Arch) -> Option<Vec<u8>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("toy.so");
    let made = Command::new("g++")
        .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"])
        .arg(format!("-DTOY_ARCH=\"{arch}\""))
        .arg(format!("-I{}", here.join("../../kernels/sim").display()))
        .arg(here.join("tests/toy/toy.cpp"))
        .arg("-o")
        .arg(&out)
        .output();
    match made {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(std::fs::read(out).unwrap())
        }
        Err(_) => {
            static SAID: OnceLock<()> = OnceLock::new();
            SAID.get_or_init(|| eprintln!("skipped what needs modules: there is no g++"));
            None
        }
    }
}

/// The kernels that a device of a test runs.
pub fn arch_of(kind: DeviceKind) -> Option<Arch> {
    match kind {
        DeviceKind::Sim(arch) => Some(arch),
        DeviceKind::Cuda(_) => Some(Arch::Sm90a),
        DeviceKind::Hip(_) => Some(Arch::Gfx942),
        DeviceKind::Cpu | DeviceKind::Guarded => None,
    }
}

/// Where a stand-in for a driver's library is looked for.
pub fn library_name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Hip(_) => "libamdhip64.so.6",
        _ => "libcuda.so.1",
    }
}

/// A child process: this test program again, with only its `child` test, told what to do.
pub struct Child {
    command: Command,
    dir: tempfile::TempDir,
}

impl Child {
    /// A child without any driver's library, apart from what the system has.
    pub fn new(task: &str) -> Child {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("CHILD_TASK", task).env("LD_LIBRARY_PATH", dir.path());
        command.env_remove("ROCM_PATH").env_remove("MUSTER_SIM_SEED");
        Child { command, dir }
    }

    /// A child that finds the look-alike.
    pub fn with_lookalike(task: &str, kind: DeviceKind) -> Child {
        let child = Child::new(task);
        let link = child.dir.path().join(library_name(kind));
        std::os::unix::fs::symlink(lookalike::library().unwrap(), link).unwrap();
        child
    }

    /// A child that finds `bytes` as a driver's library.
    pub fn with_library(task: &str, kind: DeviceKind, bytes: &[u8]) -> Child {
        let child = Child::new(task);
        std::fs::write(child.dir.path().join(library_name(kind)), bytes).unwrap();
        child
    }

    pub fn env(mut self, name: &str, value: &str) -> Child {
        self.command.env(name, value);
        self
    }

    fn output(mut self) -> Output {
        self.command.output().unwrap()
    }

    /// The output of the child, on both streams, after it has passed.
    pub fn passes(self) -> String {
        let output = self.output();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "the child failed:\n{said}");
        assert!(said.contains("1 passed"), "the child ran nothing:\n{said}");
        said
    }

    /// As [`Child::passes`], without a complaint of the look-alike.
    pub fn passes_without_complaint(self) {
        let said = self.passes();
        // Paths in a backtrace have no space there.
        assert!(!said.contains("lookalike: "), "{said}");
    }
}
