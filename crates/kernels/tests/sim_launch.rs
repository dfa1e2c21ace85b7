//! The simulator's runtime itself: what it refuses, how seeds choose an order, launches side by
//! side.

mod simulator;

use std::path::{Path, PathBuf};

use simulator::module::{Module, Order, Shape};
use simulator::{build, compiler, tests_dir};

const ARCH: &str = "sm_90a";
const PLAIN: Shape = Shape { blocks: 1, threads: 256, cluster: 1, shared_bytes: 1024 };
const CHECKED: Order = Order { seed: 0, check_races: true };

#[test]
fn runtime() {
    let Some(compiler) = compiler() else { return };
    let directory = tempfile::tempdir().unwrap();
    let image = build_image(&compiler, directory.path());
    let module = Module::open(&image);
    refusals(&module);
    orders_of_blocks(&module);
    faults_leave_the_module_usable(&module);
    // Another copy of the file is another module, with a state of its own.
    let copy = directory.path().join("copy.so");
    std::fs::copy(&image, &copy).unwrap();
    side_by_side(&[&module, &Module::open(&copy)]);
}

fn build_image(compiler: &Path, directory: &Path) -> PathBuf {
    let source = directory.join("launch.cpp");
    let text = format!("#include \"{}\"\n", tests_dir().join("launch.cpp").display());
    std::fs::write(&source, text).unwrap();
    build::module(compiler, directory, &source, ARCH);
    directory.join(format!("launch.sim-{ARCH}.so"))
}

fn launch(
    module: &Module,
    kernel: &str,
    shape: Shape,
    order: Order,
    out: &mut [u32],
) -> Result<(), String> {
    let args = (out.as_ptr() as u64).to_ne_bytes();
    module.launch(kernel, shape, &args, &mut [bytemuck::cast_slice_mut(out)], order)
}

fn refusals(module: &Module) {
    let refused = |kernel: &str, shape: Shape, expected: &[&str]| {
        let report = launch(module, kernel, shape, CHECKED, &mut [0; 256]).unwrap_err();
        for part in expected {
            assert!(report.contains(part), "no {part:?} in {report:?}");
        }
    };
    refused("ring_of_thread", PLAIN, &["sm_90a has no kernel `ring_of_thread`"]);
    let ring = "ring_of_threads";
    refused(ring, Shape { threads: 257, ..PLAIN }, &["257 threads", "256"]);
    refused(ring, Shape { blocks: 0, ..PLAIN }, &["0 blocks"]);
    refused(ring, Shape { blocks: 3, cluster: 2, ..PLAIN }, &["clusters of 2", "grid of 3"]);
    refused(ring, Shape { blocks: 16, cluster: 16, ..PLAIN }, &["clusters of 16", "allows 8"]);
    refused(ring, Shape { shared_bytes: 232_449, ..PLAIN }, &["232449 bytes", "has 232448"]);
    let short = module.launch(ring, PLAIN, &[0; 4], &mut [], CHECKED).unwrap_err();
    assert!(short.contains("takes 8 bytes of arguments, not 4"), "{short:?}");
}

fn orders_of_blocks(module: &Module) {
    let shape = Shape { blocks: 12, threads: 32, cluster: 1, shared_bytes: 0 };
    let order = |seed| {
        let mut out = [0; 13];
        launch(module, "order_of_blocks", shape, Order { seed, check_races: false }, &mut out)
            .unwrap();
        let blocks = out[1..].to_vec();
        let mut sorted = blocks.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..12).collect::<Vec<u32>>(), "each block once, under seed {seed}");
        blocks
    };
    assert_eq!(order(0), (0..12).collect::<Vec<u32>>(), "seed 0 keeps the order");
    assert_eq!(order(5), order(5), "a seed chooses one order");
    assert!((1..9).any(|seed| order(seed) != order(0)), "no seed changes the order");
}

fn faults_leave_the_module_usable(module: &Module) {
    for seed in 0..3 {
        let order = Order { seed, check_races: true };
        let shape = Shape { threads: 32, ..PLAIN };
        let report = launch(module, "deep_recursion", shape, order, &mut [0; 32]).unwrap_err();
        assert!(report.contains("stack overflow"), "{report}");
        let report = launch(module, "ring_of_threads", PLAIN, order, &mut [0; 255]).unwrap_err();
        assert!(report.contains("out of bounds"), "{report}");
        assert_eq!(ring(module, order), expected_ring());
        let mut out = [0; 64];
        let shape = Shape { threads: 128, ..PLAIN };
        launch(module, "turns", shape, order, &mut out).unwrap();
        assert_eq!(out, [1 + 2 + 3 + 4 + 5; 64]);
    }
}

/// Threads launch on both modules at once; those of one module wait for each other.
fn side_by_side(modules: &[&Module]) {
    std::thread::scope(|scope| {
        for seed in 0..4_u64 {
            for module in modules {
                let order = Order { seed, check_races: seed % 2 == 0 };
                scope.spawn(move || {
                    for _ in 0..8 {
                        assert_eq!(ring(module, order), expected_ring(), "seed {seed}");
                    }
                });
            }
        }
    });
}

fn ring(module: &Module, order: Order) -> Vec<u32> {
    let mut out = vec![0; 256];
    launch(module, "ring_of_threads", PLAIN, order, &mut out).unwrap();
    out
}

fn expected_ring() -> Vec<u32> {
    let mut words: Vec<u32> = (0..256).collect();
    for _ in 0..8 {
        let before = words.clone();
        for (thread, word) in words.iter_mut().enumerate() {
            *word += before[(thread + 255) % 256];
        }
    }
    words
}
