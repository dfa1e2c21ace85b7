//! The parts of the build script: what an image depends on, which compilers serve, what is said.

use std::path::{Path, PathBuf};

#[allow(dead_code)] // Its `main` is cargo's.
#[path = "../build.rs"]
mod build;

use build::Maker;
use build::sources::{Digest, closure};
use build::tools::{self, Tool, Vendor, major, wanted};

fn write(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A family of two headers, and one that it does not include.
fn tree() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "gemm/gemm.cu", "#include \"core.h\"\n#  include \"../tile.h\"\n");
    write(root.path(), "gemm/core.h", "#include <stdint.h>\n#include \"dev/dev.h\"\n");
    write(root.path(), "tile.h", "#include \"gemm/core.h\"\n");
    write(root.path(), "dev/dev.h", "#include \"vendor.h\"\n");
    write(root.path(), "dev/vendor.h", "");
    write(root.path(), "memory/memory.cu", "");
    write(root.path(), "sim/runtime.cpp", "");
    write(root.path(), "sim/exports.map", "");
    root
}

#[test]
fn an_image_depends_on_what_its_source_includes_however_far() {
    let root = tree();
    let files = closure(root.path(), &["gemm/gemm.cu".into()]).unwrap();
    let expected = ["dev/dev.h", "dev/vendor.h", "gemm/core.h", "gemm/gemm.cu", "tile.h"];
    assert_eq!(files, expected.map(PathBuf::from));
    let error = closure(root.path(), &["gemm/gemm.hip".into()]).unwrap_err();
    assert!(error.contains("gemm.hip"), "{error}");
}

#[test]
fn the_digest_of_an_image_follows_sources_compiler_and_target_and_no_path() {
    let (here, there) = (tree(), tree());
    let images = build::images::all();
    let image = |file: &str| *images.iter().find(|image| image.file() == file).unwrap();
    let tool = |version: &str| Tool { path: "cc".into(), version: version.into() };
    let digest = |root: &tempfile::TempDir, file: &str, version: &str| {
        image(file).digest(&tool(version), root.path()).unwrap()
    };
    let before = digest(&here, "gemm.fatbin", "13.0");
    assert_eq!(digest(&there, "gemm.fatbin", "13.0"), before);
    assert_ne!(digest(&here, "gemm.fatbin", "13.1"), before);
    let simulated = digest(&here, "gemm.sim-sm_90a.so", "12");
    assert_ne!(digest(&here, "gemm.sim-sm_80.so", "12"), simulated);

    write(there.path(), "memory/memory.cu", "// edited");
    write(there.path(), "sim/runtime.cpp", "// edited");
    assert_eq!(digest(&there, "gemm.fatbin", "13.0"), before, "neither is included");
    assert_ne!(digest(&there, "gemm.sim-sm_90a.so", "12"), simulated, "its runtime was edited");
    write(there.path(), "dev/vendor.h", "// edited");
    assert_ne!(digest(&there, "gemm.fatbin", "13.0"), before);
}

/// Tests and people build modules by the script, the crate by its build script.
#[test]
fn simulated_modules_are_compiled_as_the_simulators_own_script_does() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let script = std::fs::read_to_string(kernels.join("sim/build.sh")).unwrap();
    for flag in build::images::SIM_FLAGS.iter().flat_map(|flags| flags.split_whitespace()) {
        let flag = flag.split("=sim/").next().unwrap();
        assert!(script.contains(flag), "{flag} is not in build.sh");
    }
}

#[test]
fn parts_of_a_digest_do_not_run_into_each_other() {
    let of = |parts: &[&str]| {
        let mut digest = Digest::default();
        parts.iter().for_each(|part| digest.add(part.as_bytes()));
        digest.finish()
    };
    assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
    assert_ne!(of(&["ab"]), of(&["ab", ""]));
}

#[test]
fn every_family_has_an_image_for_every_target_under_a_name_of_its_own() {
    let images = build::images::all();
    let mut files: Vec<String> = images.iter().map(|image| image.file()).collect();
    let vendors = |of| images.iter().filter(|image| image.vendor() == of).count();
    assert_eq!([Vendor::Cuda, Vendor::Hip, Vendor::Sim].map(vendors), [5, 15, 25]);
    for image in &images {
        let family =
            build::images::FAMILIES.into_iter().find(|name| image.file().starts_with(name));
        let named = kernels::modules::file_name(&image.target_name(), family.unwrap());
        assert_eq!(image.file(), named, "the crate looks for another name");
    }
    files.sort();
    files.dedup();
    assert_eq!(files.len(), images.len());
}

#[test]
fn versions_are_read_as_compilers_print_them() {
    let nvcc = "nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2025 NVIDIA Corporation\n\
                Cuda compilation tools, release 13.0, V13.0.88\n";
    assert_eq!(major(nvcc), Some(13));
    assert_eq!(major("Debian clang version 22.1.8 (1~deb12u1)\nTarget: x86_64\n"), Some(22));
    assert_eq!(major("g++ (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022\n"), Some(12));
    assert_eq!(major("g++ (GCC) 14.2.1 20240912 (Red Hat 14.2.1-3)\n"), Some(14));
    assert_eq!(major("hello"), None);
}

#[test]
fn what_is_wanted_is_a_list_of_known_names() {
    assert_eq!(wanted(None).unwrap(), wanted(Some("auto")).unwrap());
    assert!(!wanted(None).unwrap().required);
    assert_eq!(wanted(Some("off")).unwrap().vendors, []);
    let some = wanted(Some("hip, sim")).unwrap();
    assert_eq!((some.vendors, some.required), (vec![Vendor::Hip, Vendor::Sim], true));
    let error = wanted(Some("cuda,rocm")).unwrap_err();
    assert!(error.contains("`rocm`") && error.contains("hip"), "{error}");
}

#[test]
fn missing_compilers_are_one_warning_with_the_way_to_get_them() {
    let missing =
        vec![(Vendor::Cuda, "no nvcc in PATH".to_owned()), (Vendor::Hip, "old".to_owned())];
    let found = tools::Found { tools: Vec::new(), missing };
    let warning = found.warning().unwrap();
    for part in
        ["cuda (no nvcc in PATH)", "hip (old)", "scripts/toolchain.sh", "MUSTER_KERNELS=off"]
    {
        assert!(warning.contains(part), "{warning}");
    }
    assert!(!warning.contains('\n'));
    assert_eq!(tools::Found { tools: Vec::new(), missing: Vec::new() }.warning(), None);
}

#[test]
fn a_compiler_that_fails_is_quoted() {
    let error =
        tools::run(std::process::Command::new("sh").args(["-c", "echo line 7 >&2; exit 3"]));
    let error = error.unwrap_err();
    assert!(error.contains("line 7") && error.contains('3'), "{error}");
    let error = tools::run(&mut std::process::Command::new("no-such-compiler")).unwrap_err();
    assert!(error.contains("no-such-compiler"), "{error}");
}

/// A compiler that counts its runs, and fails on a source named `broken`.
fn compiler(directory: &Path) -> Tool {
    let script = "#!/bin/sh\necho run >> \"$(dirname \"$0\")/runs\"\n\
                  case \"$*\" in *broken*) echo 'broken.cu:7: no' >&2; exit 1;; esac\n\
                  while [ \"$1\" != -o ]; do shift; done\necho remark\ndate +%N > \"$2\"\n";
    write(directory, "nvcc", script);
    let path = directory.join("nvcc");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    Tool { path, version: "13.0".into() }
}

fn maker<'a>(found: &'a tools::Found, kernels: &tempfile::TempDir, store: &Path) -> Maker<'a> {
    Maker { found, kernels: kernels.path().into(), store: store.into(), jobs: 2 }
}

#[test]
fn an_image_is_compiled_once_for_all_profiles_and_again_after_an_edit() {
    let (kernels, store) = (tree(), tempfile::tempdir().unwrap());
    let tools = vec![(Vendor::Cuda, compiler(store.path()))];
    let found = tools::Found { tools, missing: Vec::new() };
    let all = build::images::all();
    let gemm = [*all.iter().find(|image| image.file() == "gemm.fatbin").unwrap()];
    let maker = maker(&found, &kernels, store.path());
    let make = || {
        let made = maker.make_all(&gemm).unwrap();
        build::show(&made, store.path()).unwrap();
        assert_eq!(made.len(), 1);
        std::fs::read(&made[0].1).unwrap()
    };
    let runs = || std::fs::read_to_string(store.path().join("runs")).unwrap().lines().count();
    let first = make();
    assert_eq!((make(), runs()), (first.clone(), 1));
    write(kernels.path(), "tile.h", "// edited");
    let second = make();
    assert_eq!(runs(), 2);
    assert_ne!(second, first);
    let shown = |name: &str| std::fs::read(store.path().join(name)).unwrap();
    assert_eq!((shown("gemm.fatbin"), shown("gemm.fatbin.log")), (second, b"remark\n".to_vec()));
    build::show(&[], store.path()).unwrap();
    assert!(!store.path().join("gemm.fatbin").exists(), "no build has it any more");
}

#[test]
fn a_kernel_that_does_not_compile_fails_the_build_with_its_message() {
    let (kernels, store) = (tree(), tempfile::tempdir().unwrap());
    let broken = store.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let tool = compiler(store.path());
    let found = tools::Found { tools: vec![(Vendor::Cuda, tool)], missing: Vec::new() };
    let all = build::images::all();
    let gemm = [*all.iter().find(|image| image.file() == "gemm.fatbin").unwrap()];
    let error = maker(&found, &kernels, &broken).make_all(&gemm).unwrap_err();
    assert!(error.contains("broken.cu:7: no") && error.contains(".fatbin"), "{error}");
    let left = std::fs::read_dir(broken.join("cache")).unwrap().count();
    assert_eq!(left, 0, "a failed attempt leaves nothing");
}
