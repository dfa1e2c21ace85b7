//! Programs against the published counts of FLOPs, and against a reading of their registers that
//! knows what each must hold.

use super::super::coefficients::Coefficients;
use super::super::method::Method;
use super::*;

fn method(coefficients: Coefficients, algorithm: Algorithm, steps: usize) -> Method {
    Method { coefficients, algorithm, steps, ..Method::default() }
}

fn build(method: &Method, short: usize, long: usize) -> Program {
    Iteration::new(method).unwrap().program(short, long)
}

/// FLOPs in n³ for α = long/short, by the published formulas.
#[test]
fn flops_are_those_of_the_formulas() {
    let n = 64;
    for alpha in [1, 2, 4, 8] {
        let a = alpha as f64;
        let flops = |coefficients: Coefficients, algorithm, restarts: &[usize]| {
            let restarts = Some(restarts.to_vec());
            let method = Method { restarts, ..method(coefficients, algorithm, 5) };
            [Storage::F32, Storage::F16].map(|storage| {
                let method = Method { storage, ..method.clone() };
                build(&method, n, alpha * n).flops() / (n as f64).powi(3)
            })
        };
        let quintic = |algorithm, restarts| flops(Coefficients::Jordan, algorithm, restarts);
        let cubic = |algorithm| flops(Coefficients::Cubic5, algorithm, &[]);
        assert_eq!(quintic(Algorithm::Standard, &[]), [10.0 * (2.0 * a + 1.0); 2]);
        assert_eq!(quintic(Algorithm::Symmetric, &[]), [5.0 * (3.0 * a + 1.0); 2]);
        assert_eq!(quintic(Algorithm::Gram, &[]), [17.0 + 3.0 * a; 2]);
        assert_eq!(quintic(Algorithm::Gram, &[2]), [14.0 + 6.0 * a; 2]);
        assert_eq!(cubic(Algorithm::Symmetric), [15.0 * a; 2]);
        assert_eq!(cubic(Algorithm::Gram), [12.0 + 3.0 * a; 2]);
    }
}

#[test]
fn auto_takes_gram_where_it_saves_and_storage_carries_it() {
    let auto = |storage, short, long| {
        let method = Method { storage, ..Method::default() };
        build(&method, short, long).algorithm
    };
    for storage in [Storage::F32, Storage::F16] {
        assert_eq!(auto(storage, 512, 512), Algorithm::Symmetric);
        assert_eq!(auto(storage, 512, 600), Algorithm::Symmetric);
        assert_eq!(auto(storage, 512, 1024), Algorithm::Gram);
        assert_eq!(auto(storage, 1, 9), Algorithm::Gram);
    }
    assert_eq!(auto(Storage::Bf16, 512, 4096), Algorithm::Symmetric);
}

/// A stage writes no register twice, and none that it reads; registers are written before they are
/// read, and stay as they are until the last operation that means that value.
#[test]
fn stages_are_independent_and_registers_hold_what_is_meant() {
    let sets = [
        Coefficients::Jordan,
        Coefficients::polar_express(),
        Coefficients::Cubic5,
        Coefficients::Aol,
        Coefficients::Taylor { kappa: 1 },
        Coefficients::Taylor { kappa: 5 },
    ];
    for coefficients in sets {
        for algorithm in [Algorithm::Standard, Algorithm::Symmetric, Algorithm::Gram] {
            for storage in [Storage::F32, Storage::F16] {
                for steps in 1..=8 {
                    let method = method(coefficients.clone(), algorithm, steps);
                    let program = build(&Method { storage, ..method }, 3, 5);
                    check_registers(&program);
                    check_scalars(&program, &coefficients, steps);
                }
            }
        }
    }
}

fn check_registers(program: &Program) {
    let mut written = vec![INPUT];
    for ops in &program.stages {
        let reads: Vec<Register> = ops.iter().flat_map(Op::reads).collect();
        assert!(reads.iter().all(|register| written.contains(register)), "{program:?}");
        let mut writes = Vec::new();
        for op in ops {
            let Op::Product(product) = op else {
                assert_eq!(ops.len(), 1, "a rescale changes what it reads");
                continue;
            };
            assert!(!reads.contains(&product.into), "{program:?}");
            assert!(!writes.contains(&product.into), "{program:?}");
            writes.push(product.into);
        }
        written.extend(writes);
    }
    let count = |x: bool| {
        let mut all: Vec<&Register> = written
            .iter()
            .filter(|s| matches!(s, Register::X(_)) == x && **s != Register::Out)
            .collect();
        all.sort_by_key(|register| number(**register));
        all.dedup();
        all.len()
    };
    assert_eq!((count(true), count(false)), (program.x_registers, program.s_registers));
    let last = program.stages.last().unwrap();
    assert_eq!(written.iter().filter(|register| **register == Register::Out).count(), 1);
    assert!(matches!(last[..], [Op::Product(Product { into: Register::Out, .. })]), "{program:?}");
    assert!(program.x_registers <= 2 && program.s_registers <= 5, "{program:?}");
}

/// A 1×1 matrix is its own singular value, and every register a number.
fn check_scalars(program: &Program, coefficients: &Coefficients, steps: usize) {
    let iteration = Iteration::new(&method(coefficients.clone(), Algorithm::Auto, steps)).unwrap();
    let x = 0.37;
    let (mut xs, mut ss, mut out) = ([f64::NAN; 2], [f64::NAN; 5], f64::NAN);
    xs[0] = x;
    for op in program.stages.iter().flatten() {
        let at = |register| match register {
            Register::X(x) => xs[x],
            Register::S(s) => ss[s],
            Register::Out => f64::NAN,
        };
        match *op {
            Op::Aol { x: Register::X(x), gram: Register::S(gram) } => {
                let s = 1.0 / ss[gram].abs().max(AOL_LEAST).sqrt();
                (xs[x], ss[gram]) = (xs[x] * s, ss[gram] * s * s);
            }
            Op::Aol { .. } => panic!("{op:?}"),
            Op::Product(Product { left, right, addend, alpha, gamma, into, .. }) => {
                let sum = addend.map_or(0.0, |(beta, register)| beta * at(register));
                let value = alpha * at(left) * at(right) + sum + gamma;
                match into {
                    Register::X(x) => xs[x] = value,
                    Register::S(s) => ss[s] = value,
                    Register::Out => out = value,
                }
            }
        }
    }
    let want = iteration.at(if coefficients.is_preconditioned() { 1.0 } else { x });
    assert!((out - want).abs() < 1e-12, "{out} is not {want}: {program:?}");
}

/// A batch launches three stages a step, and two more for a start from the matrix.
#[test]
fn stages_are_three_a_step_and_two_a_start() {
    for storage in [Storage::F32, Storage::F16] {
        let stages = |algorithm| {
            let method = method(Coefficients::polar_express(), algorithm, 5);
            build(&Method { storage, ..method }, 8, 32).stages.len()
        };
        assert_eq!(stages(Algorithm::Standard), 15);
        assert_eq!(stages(Algorithm::Symmetric), 15);
        assert!(stages(Algorithm::Gram) <= 17);
    }
}

#[test]
fn memory_of_the_result_can_hold_an_x() {
    for algorithm in [Algorithm::Symmetric, Algorithm::Gram] {
        for steps in 2..8 {
            let method = method(Coefficients::polar_express(), algorithm, steps);
            let program = build(&method, 8, 32);
            assert_eq!(program.spare_x().is_some(), program.x_registers == 2);
        }
    }
}

#[test]
fn an_svd_has_no_products() {
    let program = build(&method(Coefficients::Jordan, Algorithm::Svd, 5), 8, 32);
    assert!(program.stages.is_empty() && program.flops() == 0.0);
}
