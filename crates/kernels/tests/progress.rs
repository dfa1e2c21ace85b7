//! Whoever watches a process sees a long launch on a CPU get on: alone here, since the count is the
//! process's.

use device::{DType, Device};
use kernels::Op;
use kernels::newton_schulz::{Algorithm, Batch, Iteration, Matrix, Method, Orthogonalize};

const MATRICES: usize = 3;
const SIDE: usize = 8;

/// Pieces of work in a launch of three matrices.
fn pieces(algorithm: Algorithm) -> u64 {
    let device = Device::cpu(2).unwrap();
    let iteration = Iteration::new(&Method { algorithm, ..Method::default() }).unwrap();
    let matrix = |index| Matrix::dense(index * SIDE * SIDE, index * SIDE * SIDE, SIDE, SIDE);
    let batch = Batch::new(&iteration, (0..MATRICES).map(matrix).collect()).unwrap();
    let values: Vec<f32> = (0..MATRICES * SIDE * SIDE).map(|i| (i as f32).sin()).collect();
    let input = device.tensor(&[values.len()], &values).unwrap();
    let output = device.zeros(&[values.len()], DType::F32).unwrap();
    let workspace = device.zeros(&[batch.least_workspace_elements()], DType::F32).unwrap();
    let status = device.zeros(&[MATRICES], DType::U32).unwrap();
    let stream = device.stream();
    let before = device::work::worked();
    Orthogonalize { batch, input, output, workspace, status }.launch(&stream).unwrap();
    stream.synchronize().unwrap();
    device::work::worked() - before
}

#[test]
fn each_product_and_each_decomposition_is_a_piece_of_work() {
    let products = MATRICES * Method::default().steps;
    assert!(pieces(Algorithm::Standard) > products as u64);
    assert!(pieces(Algorithm::Svd) > MATRICES as u64);
}
