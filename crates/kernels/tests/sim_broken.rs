//! The simulator finds the mistakes it claims to find: kernels broken in one way each, and their
//! repaired twins.

mod simulator;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use simulator::build;
use simulator::module::{Module, Order, Shape};
use simulator::{compiler, kernels_dir};

/// `BROKEN_BYTES` of broken.h.
const BYTES: usize = 32768;
const SEEDS: [u64; 4] = [0, 1, 2, 0x9e37_79b9_7f4a_7c15];

/// One file of `kernels/sim/broken`.
struct Case {
    name: String,
    path: PathBuf,
    archs: Vec<String>,
    blocks: u32,
    cluster: u32,
    shared_bytes: u32,
    expect: String,
}

#[test]
fn broken_kernels_are_reported_and_their_twins_pass() {
    let Some(compiler) = compiler() else { return };
    let directory = tempfile::tempdir().unwrap();
    let cases = cases();
    assert!(cases.len() >= 12, "only {} broken kernels", cases.len());
    for arch in build::ARCHS {
        let include = |case: &Case| format!("#include {:?}\n", case.path);
        let text: String = of(&cases, arch).map(include).collect();
        assert!(!text.is_empty(), "{arch} has no broken kernel");
        std::fs::write(directory.path().join(arch).with_extension("cpp"), text).unwrap();
    }
    let source = |arch: &str| directory.path().join(arch).with_extension("cpp");
    let images = build::modules(&compiler, directory.path(), source);
    let mut complaints = String::new();
    for (arch, image) in build::ARCHS.into_iter().zip(images) {
        let module = Module::open(&image);
        assert_eq!(module.arch, arch);
        for case in of(&cases, arch) {
            check(case, &module, &mut complaints);
        }
    }
    assert!(complaints.is_empty(), "{complaints}");
}

fn of<'a>(cases: &'a [Case], arch: &'a str) -> impl Iterator<Item = &'a Case> {
    cases.iter().filter(move |case| case.archs.iter().any(|it| it == arch))
}

fn check(case: &Case, module: &Module, complaints: &mut String) {
    let mut outputs: Vec<Vec<u8>> = Vec::new();
    for seed in SEEDS {
        let where_ = format!("{} on {} with seed {seed}", case.name, module.arch);
        match launch(case, module, "broken", seed) {
            Ok(_) => writeln!(complaints, "{where_}: not reported").unwrap(),
            Err(report) if report.contains(&case.expect) => {}
            Err(report) => {
                writeln!(complaints, "{where_}: no {:?} in the report:\n{report}", case.expect)
                    .unwrap();
            }
        }
        match launch(case, module, "fixed", seed) {
            Ok(output) => outputs.push(output),
            Err(report) => {
                writeln!(complaints, "{where_}: the repaired kernel:\n{report}").unwrap()
            }
        }
    }
    if outputs.windows(2).any(|pair| pair[0] != pair[1]) {
        writeln!(complaints, "{} on {}: output depends on the seed", case.name, module.arch)
            .unwrap();
    }
}

fn launch(case: &Case, module: &Module, which: &str, seed: u64) -> Result<Vec<u8>, String> {
    let name = format!("{which}_{}", case.name);
    let kernel = module.kernels[&name];
    // Small positive bf16 numbers, in the eyes of matrix instructions.
    let word =
        |index: usize| (0x3f80 + index as u128 % 97) * 0x0001_0001_0001_0001_0001_0001_0001_0001;
    let mut input: Vec<u128> = (0..BYTES / 16).map(word).collect();
    let mut output = vec![0_u128; BYTES / 16];
    let args = [input.as_ptr() as u64, output.as_ptr() as u64].map(u64::to_ne_bytes).concat();
    let shape = Shape {
        blocks: case.blocks,
        threads: kernel.max_threads,
        cluster: case.cluster,
        shared_bytes: case.shared_bytes,
    };
    let memory: &mut [&mut [u8]] =
        &mut [bytemuck::cast_slice_mut(&mut input), bytemuck::cast_slice_mut(&mut output)];
    module.launch(&name, shape, &args, memory, Order { seed, check_races: true })?;
    Ok(bytemuck::cast_slice(&output).to_vec())
}

fn cases() -> Vec<Case> {
    let entries = std::fs::read_dir(kernels_dir().join("sim/broken")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "cpp"));
    paths.sort();
    paths.iter().map(|path| case(path)).collect()
}

fn case(path: &Path) -> Case {
    let text = std::fs::read_to_string(path).unwrap();
    let line = |key: &str| {
        let start = format!("// {key}: ");
        let found = text.lines().find_map(|line| line.strip_prefix(&start));
        found.unwrap_or_else(|| panic!("{}: no line {start:?}", path.display()))
    };
    let number = |key: &str| {
        let pair = line("launch")
            .split_whitespace()
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        pair.unwrap_or_else(|| panic!("{}: no {key} in its launch", path.display()))
            .parse()
            .unwrap()
    };
    Case {
        name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        path: path.canonicalize().unwrap(),
        archs: line("arch").split_whitespace().map(str::to_owned).collect(),
        blocks: number("blocks"),
        cluster: number("cluster"),
        shared_bytes: number("shared"),
        expect: line("expect").to_owned(),
    }
}
