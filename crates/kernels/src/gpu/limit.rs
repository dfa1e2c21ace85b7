//! The physical limit of a plan: what its launches would take if every cluster worked at the
//! measured ceiling and nothing else cost time.
//!
//! Three things are counted that the useful FLOPs do not have: padding to whole units, what units
//! on the diagonal compute above it, and the end of a launch, when some clusters have no unit left.

use device::Arch;

use super::arch::{TILE, TILE_BYTES, gemm};
use super::plan::{GemmLaunch, Launch, Plan};
use super::schedule;

/// The rates of a device, measured or by its data sheet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceiling {
    pub flops_per_s: f64,
    pub bytes_per_s: f64,
}

/// Cost of a plan's products.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Limit {
    pub seconds: f64,
    /// That the units of all products do, padding included.
    pub flops: f64,
    /// Operands and results, each once.
    pub bytes: f64,
}

/// The limit of the products of `plan`.
pub fn limit(plan: &Plan, arch: Arch, multiprocessors: u32, ceiling: Ceiling) -> Limit {
    let mut total = Limit::default();
    for launch in plan.parts.iter().flat_map(|part| &part.launches) {
        if let Launch::Gemm(gemm) = launch {
            let one = limit_of(gemm, arch, multiprocessors, ceiling);
            total.seconds += one.seconds;
            total.flops += one.flops;
            total.bytes += one.bytes;
        }
    }
    total
}

/// The limit of one launch.
pub(crate) fn limit_of(
    launch: &GemmLaunch,
    arch: Arch,
    multiprocessors: u32,
    ceiling: Ceiling,
) -> Limit {
    let unit = f64::from(gemm(arch, launch.class).unit);
    let clusters = schedule::clusters(arch, launch.class, multiprocessors);
    let mut costs = Vec::with_capacity(launch.units as usize);
    let (mut flops, mut bytes) = (0.0, 0.0);
    for problem in &launch.problems {
        let cost = 2.0 * unit * unit * f64::from(problem.k_tiles()) * TILE as f64;
        costs.extend(std::iter::repeat_n(cost, problem.units() as usize));
        flops += cost * problem.units() as f64;
        bytes += problem.tiles() as f64 * TILE_BYTES as f64;
    }
    let mut work = vec![0.0; clusters as usize];
    let mut done = 0.0;
    let shares = schedule::shares(arch, launch.class, clusters, launch.units);
    for (piece, share) in shares.enumerate() {
        work[piece % clusters as usize] += costs[done as usize] * share;
        done += share;
    }
    let longest = work.into_iter().fold(0.0, f64::max);
    let compute = longest * f64::from(clusters) / ceiling.flops_per_s;
    Limit { seconds: compute.max(bytes / ceiling.bytes_per_s), flops, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::abi::GemmProblem;
    use crate::gpu::arch::{Class, Form};
    use crate::gpu::plan::Problem;

    #[test]
    fn the_end_of_a_launch_costs_what_idles() {
        // 5 units of 256² on 4 clusters of one multiprocessor each take the time of 8.
        let launch = |units: u32| GemmLaunch {
            form: Form::Nt,
            class: Class::Large,
            problems: vec![Problem::plain(GemmProblem {
                m_blocks: units,
                n_blocks: 1,
                k_tiles: 16,
                rows: units * 256,
                cols: 256,
                ..GemmProblem::default()
            })],
            units,
            is_chain: false,
            table: 0,
        };
        let ceiling = Ceiling { flops_per_s: 1e12, bytes_per_s: 1e15 };
        let seconds = |units| limit_of(&launch(units), Arch::Gfx942, 4, ceiling).seconds;
        assert!((seconds(5) / seconds(4) - 2.0).abs() < 1e-12);
        assert_eq!(seconds(8), seconds(5));
        // Where the last round is cut into halves, the time of 6.
        let halves = |units| limit_of(&launch(units), Arch::Sm90a, 8, ceiling).seconds;
        assert!((halves(5) / halves(4) - 1.5).abs() < 1e-12);
        assert_eq!(halves(7), halves(8));
        let flops = 4.0 * 2.0 * 256.0 * 256.0 * 1024.0;
        assert!((seconds(4) * 1e12 / flops - 1.0).abs() < 1e-12);
        // Without compute, bytes are the limit.
        let slow = Ceiling { flops_per_s: 1e18, bytes_per_s: 1e6 };
        let limit = limit_of(&launch(4), Arch::Gfx942, 4, slow);
        assert_eq!(limit.seconds, limit.bytes / 1e6);
    }
}
