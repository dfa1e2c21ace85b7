//! Plans of batches, without a GPU: launches are few, inside their memory, in an order that
//! completes each read before it, and the same for every cut.

use std::collections::HashMap;

use super::*;
use crate::gpu::arch::{TILE_BYTES, gemm};
use crate::gpu::tuning::Tuning;
use crate::newton_schulz::{Algorithm, Coefficients, Iteration, Method, Storage};

fn iteration(algorithm: Algorithm, coefficients: Coefficients) -> Iteration {
    let storage = Storage::F16;
    let method = Method { algorithm, coefficients, storage, ..Method::default() };
    Iteration::new(&method).unwrap()
}

fn common(arch: Arch) -> Common {
    let (tiles, input, output) = (TileType::F16, DType::F32, DType::F32);
    let chains = Tuning::default().chains(arch);
    let multiprocessors = 132;
    Common { arch, tiles, input, output, least_norm: 0.0, chains, multiprocessors }
}

/// Dense matrices one after another.
fn matrices(shapes: &[(usize, usize)]) -> Vec<Matrix> {
    let mut start = 0;
    let mut matrix = |&(rows, cols): &(usize, usize)| {
        let matrix = Matrix::dense(start, start, rows, cols);
        start += rows * cols;
        matrix
    };
    shapes.iter().map(&mut matrix).collect()
}

fn plan_of(iteration: &Iteration, arch: Arch, shapes: &[(usize, usize)], limit: u64) -> Plan {
    let matrices = matrices(shapes);
    let programs: Vec<Program> =
        matrices.iter().map(|matrix| iteration.program(matrix.short(), matrix.long())).collect();
    let programs: Vec<&Program> = programs.iter().collect();
    Plan::new(&common(arch), &matrices, &programs, Some(limit)).unwrap()
}

fn gemms(part: &Part) -> impl Iterator<Item = &GemmLaunch> {
    part.launches.iter().filter_map(|launch| match launch {
        Launch::Gemm(gemm) => Some(gemm),
        Launch::Aol(_) => None,
    })
}

#[test]
fn an_iteration_of_a_batch_is_three_launches_at_most_whatever_the_shapes() {
    let batches: [&[(usize, usize)]; 4] = [
        &[(768, 3072); 24],
        &[(1024, 2816); 64],
        &[(1024, 2816), (2816, 1024), (768, 768), (512, 4096)],
        &[(1, 77), (77, 1), (100, 100), (65, 130)],
    ];
    for algorithm in [Algorithm::Standard, Algorithm::Symmetric, Algorithm::Gram] {
        let iteration = iteration(algorithm, Coefficients::polar_express());
        // Chained, what comes before `S·X` is one launch: the Gram form has two of these. Else it
        // makes one launch more at the start and one more at its restart.
        let (chained, single) = match algorithm {
            Algorithm::Gram => (4, 3 * 5 + 2),
            _ => (2 * 5, 3 * 5),
        };
        for (arch, expected) in [(Arch::Sm90a, chained), (Arch::Gfx942, single)] {
            for shapes in batches {
                let plan = plan_of(&iteration, arch, shapes, u64::MAX);
                assert_eq!(plan.parts.len(), 1);
                let launches = plan.parts[0].launches.len();
                assert_eq!(launches, expected, "{arch} {algorithm:?} {shapes:?}");
                assert_eq!(plan.launches(), launches + 2);
            }
        }
    }
}

#[test]
fn units_are_numbered_through_the_problems_of_a_launch() {
    let iteration = iteration(Algorithm::Symmetric, Coefficients::Jordan);
    let shapes = [(100, 300), (300, 100), (256, 1024), (0, 9), (1, 5)];
    for arch in Arch::ALL {
        let plan = plan_of(&iteration, arch, &shapes, u64::MAX);
        for launch in gemms(&plan.parts[0]) {
            let mut units = 0;
            let mut last_k = u32::MAX;
            for problem in &launch.problems {
                assert_eq!(u64::from(problem.abi.first_block), units);
                assert!(problem.units() > 0);
                assert!(problem.k_tiles() <= last_k || launch.is_chain);
                assert_ne!(problem.matrix, 3, "an empty matrix has no product");
                (units, last_k) = (units + problem.units(), problem.k_tiles());
            }
            assert_eq!(u64::from(launch.units), units);
        }
    }
}

#[test]
fn long_stages_are_launches_of_their_own() {
    let iteration = iteration(Algorithm::Gram, Coefficients::polar_express());
    for (count, launches) in [(16, 4), (216, 3 * 5 + 2)] {
        let plan = plan_of(&iteration, Arch::Sm90a, &vec![(2048, 2048); count], u64::MAX);
        assert_eq!(plan.parts[0].launches.len(), launches);
        assert_eq!(gemms(&plan.parts[0]).any(|launch| launch.is_chain), count == 16);
    }
}

/// Units are taken in their order, so that a launch comes to its end if each needs earlier ones.
#[test]
fn what_a_chain_waits_for_is_complete_before_it() {
    let batches: [&[(usize, usize)]; 2] =
        [&[(100, 300), (300, 100), (768, 3072), (0, 9)], &[(4096, 4096), (4096, 11008)]];
    for (shapes, algorithm) in
        batches.into_iter().flat_map(|b| [(b, Algorithm::Symmetric), (b, Algorithm::Gram)])
    {
        let iteration = iteration(algorithm, Coefficients::polar_express());
        let plan = plan_of(&iteration, Arch::Sm90a, shapes, u64::MAX);
        let mut chained = 0;
        for launch in gemms(&plan.parts[0]) {
            let by_unit = u64::from(gemm(Arch::Sm90a, launch.class).cluster) * 2;
            let mut counts = HashMap::<u64, u64>::new();
            for problem in &launch.problems {
                let GemmProblem { after, after_count, done, .. } = problem.abi;
                if after != 0 {
                    assert_eq!(counts[&after], u64::from(after_count), "{algorithm:?}");
                    assert!(launch.is_chain && after != done);
                    chained += 1;
                }
                if done != 0 {
                    assert!(done < plan.workspace_bytes);
                    *counts.entry(done).or_default() += by_unit * problem.units();
                }
            }
        }
        // All products of a chain but a matrix's first, and those of the same stage.
        let least = if algorithm == Algorithm::Gram { 10 } else { 5 };
        assert!(chained >= least * (shapes.len() - 1), "{algorithm:?}: {chained}");
    }
}

/// Every place that a launch writes, with what it may read while it does.
#[test]
fn no_launch_writes_what_it_reads_and_all_places_are_inside() {
    for (algorithm, set) in [
        (Algorithm::Standard, Coefficients::Jordan),
        (Algorithm::Symmetric, Coefficients::Aol),
        (Algorithm::Gram, Coefficients::polar_express()),
        (Algorithm::Gram, Coefficients::Taylor { kappa: 4 }),
    ] {
        let iteration = iteration(algorithm, set);
        let plan = plan_of(&iteration, Arch::Gfx942, &[(100, 200), (130, 20), (64, 64)], u64::MAX);
        for launch in gemms(&plan.parts[0]) {
            let bytes = |rows: u64, cols: u64| rows * cols * TILE_BYTES;
            let mut written = Vec::new();
            let mut read = Vec::new();
            for Problem { abi, has_addend, is_last, .. } in &launch.problems {
                let unit = gemm(Arch::Gfx942, launch.class).unit / TILE as u32;
                let down = u64::from(abi.m_blocks * unit);
                let across = u64::from(abi.n_blocks * unit);
                read.push((abi.a, bytes(down, abi.a_tiles_per_row.into())));
                let b_rows = if launch.form == Form::Nt { across } else { abi.k_tiles.into() };
                read.push((abi.b, bytes(b_rows, abi.b_tiles_per_row.into())));
                if *has_addend {
                    assert_eq!(u64::from(abi.c_tiles_per_row), across);
                    read.push((abi.c, bytes(down, across)));
                }
                if !is_last {
                    assert_eq!(u64::from(abi.d_tiles_per_row), across);
                    written.push((abi.d, bytes(down, across)));
                }
            }
            let overlap = |a: &(u64, u64), b: &(u64, u64)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
            for (i, place) in written.iter().enumerate() {
                assert!(place.0 + place.1 <= plan.workspace_bytes, "{algorithm:?}");
                assert!(read.iter().chain(&written[..i]).all(|other| !overlap(place, other)));
            }
        }
    }
}

#[test]
fn a_batch_is_cut_to_fit_the_workspace() {
    let iteration = iteration(Algorithm::Gram, Coefficients::polar_express());
    let shapes = [(256, 512); 7];
    let whole = plan_of(&iteration, Arch::Sm80, &shapes, u64::MAX);
    let third = whole.workspace_bytes / 3;
    let cut = plan_of(&iteration, Arch::Sm80, &shapes, third);
    assert_eq!(cut.parts.iter().map(Part::matrix_count).collect::<Vec<_>>(), [2, 2, 2, 1]);
    assert!(cut.workspace_bytes <= third);
    // A matrix that needs more is a part of its own.
    let alone = plan_of(&iteration, Arch::Sm80, &shapes, 1);
    assert_eq!(alone.parts.len(), 7);
    assert!(plan_of(&iteration, Arch::Sm80, &[], 1).parts.is_empty());
}

#[test]
fn tables_hold_absolute_addresses() {
    let iteration = iteration(Algorithm::Symmetric, Coefficients::Jordan);
    let plan = plan_of(&iteration, Arch::Sm90a, &[(8, 16), (16, 8)], u64::MAX);
    let bases = Bases { input: 1 << 40, output: 2 << 40, status: 3 << 40, workspace: 4 << 40 };
    let tables = plan.tables(&bases);
    let part = &plan.parts[0];
    let at = |start: u64, index: usize, size: usize| {
        &tables[start as usize + index * size..start as usize + (index + 1) * size]
    };
    let matrix: NsMatrix = bytemuck::pod_read_unaligned(at(part.table, 1, size_of::<NsMatrix>()));
    assert_eq!((matrix.input, matrix.status), ((1 << 40) + 8 * 16 * 4, (3 << 40) + 4));
    assert_eq!(matrix.x >> 40, 4);
    assert_eq!(matrix.flags, abi::NS_TALL | abi::NS_TILES_F16);
    let last = gemms(part).last().unwrap();
    let problem: GemmProblem =
        bytemuck::pod_read_unaligned(at(last.table, 1, size_of::<GemmProblem>()));
    assert_eq!((problem.d, problem.out), (0, (2 << 40) + 8 * 16 * 4));
    assert_eq!(problem.flags, abi::GEMM_OUT_TRANSPOSED);
    assert_eq!((problem.rows, problem.cols, problem.out_row_stride), (8, 16, 8));
}

#[test]
fn other_types_are_refused() {
    for (input, output) in [(DType::F64, DType::F32), (DType::F32, DType::F16)] {
        let common = Common { input, output, ..common(Arch::Sm80) };
        assert!(matches!(Plan::new(&common, &[], &[], None), Err(KernelError::Dtype { .. })));
    }
}
