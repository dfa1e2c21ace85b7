//! Matrix products of the device kernels, run by the simulator with all its checks, against plain
//! loops.

mod simulator;

use kernels::modules;
use simulator::gemm::{self, Addend, Kernel, Out, Spec};
use simulator::module::{Module, Order};
use simulator::tiles::{Format, Random};

/// Blocks that the simulated chip holds at once: few, so that each computes several units.
const RESIDENT: u32 = 4;

fn kernels() -> impl Iterator<Item = Kernel> {
    let formats = [Format::Bf16, Format::F16];
    let kernel = move |index: usize| Kernel {
        nn: index % 2 == 1,
        format: formats[index / 2 % 2],
        class: [128, 256][index / 4],
    };
    (0..8).map(kernel)
}

/// The module of this build; the directory is to outlive it.
fn module(arch: &str) -> Option<(tempfile::TempDir, Module)> {
    let target = format!("sim-{arch}");
    let image = match modules::image(&target, "gemm") {
        Ok(image) => image,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(modules::file_name(&target, "gemm"));
    std::fs::write(&path, image).unwrap();
    let module = Module::open(&path);
    Some((directory, module))
}

/// Tables of mixed problems with exact results: odd sizes, triangles, addends, the caller's
/// matrices.
fn tables_of_problems(module: &Module) {
    for (index, kernel) in kernels().enumerate() {
        let mut random = Random::new(index as u64 + 1);
        let unit = gemm::unit(module, &kernel);
        for round in 0..2 * 128 / kernel.class as u64 {
            let specs: Vec<Spec> = (0..3).map(|_| Spec::random(&mut random, true, unit)).collect();
            let order = Order { seed: round, check_races: true };
            let walk = (1 + random.below(3) as u32, random.pick(&[1, 8]), RESIDENT);
            gemm::launch(module, &kernel, &specs, walk, order, true);
        }
    }
}

/// The bits of a result depend on its problem alone: not on its neighbours in the table, the order
/// of fibers, or how many blocks there are.
fn bits_depend_on_the_problem_alone(module: &Module) {
    for (index, kernel) in kernels().enumerate() {
        let mut random = Random::new(index as u64 + 100);
        let unit = gemm::unit(module, &kernel);
        let specs: Vec<Spec> = (0..2).map(|_| Spec::random(&mut random, false, unit)).collect();
        let order = |seed| Order { seed, check_races: false };
        let together = gemm::launch(module, &kernel, &specs, (2, 1, RESIDENT), order(0), true);
        for (spec, expected) in specs.iter().zip(&together) {
            let alone = gemm::launch(
                module,
                &kernel,
                std::slice::from_ref(spec),
                (1, 8, 64),
                order(7),
                false,
            );
            assert!(alone[0] == *expected, "{} on {}: {spec:?}", kernel.name(), module.arch);
        }
    }
}

/// Triangles and a rectangle of several units a side, walked in bands and divided among chiplets;
/// and a sum that goes to the caller alone, so that nothing else of an epilogue orders its reads of
/// the addend.
fn many_units(module: &Module, class: usize) {
    let out = Some(Out { bf16: false, transposed: true, scale: 1.0, gap: 3 });
    let triangle = Spec {
        rows: 4 * class - 12,
        cols: 4 * class - 12,
        depth: 70,
        lower: true,
        skewed: false,
        alpha: 1.0,
        beta: -3.0,
        gamma: 1.5,
        addend: Addend::Separate,
        store: true,
        out: None,
        exact: true,
        seed: 5,
    };
    let rectangle = Spec { cols: 300, lower: false, gamma: 0.0, out, ..triangle.clone() };
    let sum = Spec { store: false, seed: 6, ..rectangle.clone() };
    let small = Spec { rows: class - 5, cols: class - 5, skewed: true, ..triangle.clone() };
    let first = if class == 128 { triangle } else { small.clone() };
    let kernel = Kernel { nn: false, format: Format::Bf16, class };
    let order = Order { seed: 3, check_races: true };
    gemm::launch(module, &kernel, &[first, sum, rectangle, small], (2, 8, 10), order, true);
}

macro_rules! on {
    ($($arch:ident)*) => {$(
        #[test]
        fn $arch() {
            let Some((_directory, module)) = module(stringify!($arch)) else { return };
            tables_of_problems(&module);
            bits_depend_on_the_problem_alone(&module);
            many_units(&module, 128);
            many_units(&module, 256);
        }
    )*};
}

on!(sm_80 sm_90a gfx90a gfx942 gfx950);
