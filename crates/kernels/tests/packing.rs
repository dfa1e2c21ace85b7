//! The memory of products does not grow with the matrices: it is planned once, per thread.

use std::alloc::{GlobalAlloc, Layout as Memory, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use device::Device;
use kernels::Op;
use kernels::gemm::{Matmul, Matrix, packing_bytes};

struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, memory: Memory) -> *mut u8 {
        LARGEST.fetch_max(memory.size(), Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(memory) }
    }

    unsafe fn dealloc(&self, start: *mut u8, memory: Memory) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, memory) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// Most bytes that one allocation takes in `y = x·Wᵀ`, `dx = dy·W` and `dW = dyᵀ·x` of a layer from
/// `narrow` to `wide`, on `rows` rows.
fn largest(device: &Device, rows: usize, narrow: usize, wide: usize) -> usize {
    let stream = device.stream();
    let zeros = |rows, cols| Matrix::of(device.zeros(&[rows, cols], device::DType::F32).unwrap());
    let (x, w, y) = (zeros(rows, narrow), zeros(wide, narrow), zeros(rows, wide));
    let product = |a: &Matrix, b: &Matrix, c: &Matrix| {
        let (a, b, c) = (a.clone(), b.clone(), c.clone());
        Matmul { alpha: 1.0, a, b, beta: 0.0, c }.launch(&stream).unwrap();
    };
    let products = || {
        product(&x, &w.clone().t(), &y);
        product(&y, &w, &x);
        product(&y.clone().t(), &x, &w);
    };
    // Threads, and what `gemm` keeps for each.
    products();
    LARGEST.store(0, Ordering::SeqCst);
    products();
    LARGEST.load(Ordering::SeqCst)
}

#[test]
fn what_products_allocate_does_not_grow_with_the_matrices() {
    for threads in [1, 2] {
        let device = Device::cpu(threads).unwrap();
        for (rows, narrow, wide) in [(256, 64, 40_000), (4096, 64, 96), (96, 1024, 1100)] {
            let bytes = largest(&device, rows, narrow, wide);
            assert!(bytes <= packing_bytes(), "{rows}, {narrow} to {wide}: {bytes} bytes");
        }
    }
}
