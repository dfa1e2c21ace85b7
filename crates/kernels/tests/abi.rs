//! Rust agrees with the headers of the device code: on the sizes, offsets and constants of
//! `kernels/abi.h` and `kernels/ordered_sum/args.h`, and on the counts of `kernels/schedule.h`.
//! Needs a C++ compiler; where there is none, each test says so and checks nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use kernels::Entries;
use kernels::gpu::abi::*;
use kernels::gpu::schedule::{self, units};

/// Rust's values, by the C expressions that they must equal.
type Values = BTreeMap<String, u64>;

/// Adds the size of a struct and the offsets of its fields.
macro_rules! compare {
    ($values:ident, $c:literal, $rust:ty, [$($field:ident),*]) => {
        $values.insert(format!("sizeof({})", $c), size_of::<$rust>() as u64);
        $(
            let offset = format!("offsetof({}, {})", $c, stringify!($field));
            $values.insert(offset, offset_of!($rust, $field) as u64);
        )*
    };
}

/// All that is compared.
fn expected() -> Values {
    let mut values = Values::new();
    products(&mut values);
    newton_schulz(&mut values);
    elementwise(&mut values);
    ordered_sums(&mut values);
    constants(&mut values);
    values
}

fn products(values: &mut Values) {
    compare!(
        values,
        "MusterGemmProblem",
        GemmProblem,
        [
            a,
            b,
            c,
            d,
            out,
            a_tiles_per_row,
            b_tiles_per_row,
            c_tiles_per_row,
            d_tiles_per_row,
            m_blocks,
            n_blocks,
            k_tiles,
            first_block,
            rows,
            cols,
            out_row_stride,
            flags,
            alpha,
            beta,
            gamma,
            out_scale,
            after,
            done,
            after_count,
            reserved
        ]
    );
    compare!(
        values,
        "MusterGemmArgs",
        GemmArgs,
        [problems, problem_count, block_count, group_rows, xcds]
    );
}

fn newton_schulz(values: &mut Values) {
    compare!(
        values,
        "MusterNsMatrix",
        NsMatrix,
        [
            input,
            partials,
            x,
            norm,
            status,
            least_norm,
            rows,
            cols,
            row_stride,
            flags,
            row_tiles,
            col_tiles,
            first_strip,
            first_tile,
            counters,
            counter_count,
            reserved
        ]
    );
    compare!(values, "MusterNsArgs", NsArgs, [matrices, matrix_count, unit_count]);
    compare!(
        values,
        "MusterNsAol",
        NsAol,
        [gram, x, scales, row_tiles, col_tiles, first_row, first_tile, flags, reserved]
    );
    compare!(values, "MusterNsAolArgs", NsArgs, [matrices, matrix_count, unit_count]);
}

/// Arguments of the optimizer, and of copies and casts.
fn elementwise(values: &mut Values) {
    compare!(values, "MusterMemoryArgs", MemoryArgs, [source, target, chunks, value, reserved]);
    compare!(values, "MusterSpan", Span, [flat, local, len, unit]);
    compare!(
        values,
        "MusterMomentumArgs",
        MomentumArgs,
        [spans, grads, momentum, update, factors, span_count, nesterov, keep, add]
    );
    compare!(
        values,
        "MusterApplyArgs",
        ApplyArgs,
        [spans, masters, weights, direction, span_count, keep, rate, reserved]
    );
    compare!(
        values,
        "MusterAdamWArgs",
        AdamWArgs,
        [
            spans,
            masters,
            weights,
            grads,
            first,
            second,
            factors,
            span_count,
            beta1,
            one_minus_beta1,
            beta2,
            one_minus_beta2,
            root_correction,
            eps,
            keep,
            rate,
            reserved
        ]
    );
    compare!(
        values,
        "MusterMastersArgs",
        MastersArgs,
        [spans, masters, weights, span_count, is_f32]
    );
    compare!(values, "MusterCastArgs", CastArgs, [source, target, len, is_f16, reserved]);
    compare!(values, "MusterStrip", Strip, [start, to, len, is_whole]);
    compare!(values, "MusterLongRange", LongRange, [first, statistic, count, reserved]);
    compare!(
        values,
        "MusterSquaresArgs",
        SquaresArgs,
        [strips, long_ranges, grads, partials, sums, strip_count, long_range_count]
    );
}

fn ordered_sums(values: &mut Values) {
    compare!(values, "MusterSumArgs", SumArgs, [inputs, out, carry, len, ops, op_count, height]);
    compare!(values, "MusterReduceArgs", ReduceArgs, [stage, factor, inputs, reduce, is_rounded]);
}

fn constants(values: &mut Values) {
    let constants = [
        ("MUSTER_GEMM_LOWER", GEMM_LOWER),
        ("MUSTER_GEMM_OUT_BF16", GEMM_OUT_BF16),
        ("MUSTER_GEMM_OUT_TRANSPOSED", GEMM_OUT_TRANSPOSED),
        ("MUSTER_GEMM_DONE_PER_BLOCK", GEMM_DONE_PER_BLOCK),
        ("MUSTER_NS_INPUT_16", NS_INPUT_16),
        ("MUSTER_NS_INPUT_F16", NS_INPUT_F16),
        ("MUSTER_NS_TALL", NS_TALL),
        ("MUSTER_NS_TILES_F16", NS_TILES_F16),
        ("MUSTER_NS_PLAIN", NS_PLAIN),
        ("MUSTER_NS_STRIP_ROWS", NS_STRIP.0),
        ("MUSTER_NS_STRIP_COLS", NS_STRIP.1),
        ("MUSTER_SPAN_LEN", SPAN_LEN),
        ("MUSTER_SQUARES_LEN", SQUARES_LEN),
        ("MUSTER_SUM_INPUTS", SUM_INPUTS as u32),
        ("MUSTER_SUM_DEPTH", SUM_DEPTH),
        ("MUSTER_SUM_PUSH", SUM_PUSH),
        ("MUSTER_SUM_ADD", SUM_ADD),
        ("MUSTER_SUM_FOLD", SUM_FOLD),
        ("MUSTER_REDUCE_SUM", REDUCE_SUM),
        ("MUSTER_REDUCE_PROD", REDUCE_PROD),
        ("MUSTER_REDUCE_MIN", REDUCE_MIN),
        ("MUSTER_REDUCE_MAX", REDUCE_MAX),
        ("MUSTER_NS_FINITE", kernels::newton_schulz::STATUS_FINITE),
        ("MUSTER_NS_NON_FINITE", kernels::newton_schulz::STATUS_NON_FINITE),
    ];
    values.extend(constants.map(|(name, value)| (name.to_owned(), u64::from(value))));
}

/// Builds and runs a program that includes a header of the device code; `None` without a compiler.
fn printed(header: &str, body: &str) -> Option<String> {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels").join(header);
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("main.cpp"), dir.path().join("main"));
    let source = format!(
        "#include <stdio.h>\n#include \"{}\"\nint main() {{\n{body}return 0;\n}}\n",
        header.display()
    );
    std::fs::write(&file, source).unwrap();
    let built = Command::new("c++").arg("-std=c++17").arg(&file).arg("-o").arg(&program).output();
    let built = match built {
        Ok(built) => built,
        Err(error) => {
            eprintln!("nothing was compared: cannot run c++: {error}");
            return None;
        }
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let printed = Command::new(&program).output().unwrap();
    Some(String::from_utf8(printed.stdout).unwrap())
}

#[test]
fn units_and_pieces_are_counted_alike() {
    let body = "
        for (uint32_t m = 0; m < 40; m += 3) {
            MusterGemmProblem problem = {};
            problem.m_blocks = m;
            problem.n_blocks = m + 1;
            const auto dense = schedule::units_of(problem);
            problem.n_blocks = m;
            problem.flags = MUSTER_GEMM_LOWER;
            const auto lower = schedule::units_of(problem);
            printf(\"%llu %llu\\n\", (unsigned long long)dense, (unsigned long long)lower);
        }
        for (uint32_t units = 1; units < 200; ++units) {
            printf(\"%u %u\\n\", schedule::pieces(units, 66), schedule::pieces(units, 5));
        }
    ";
    let Some(printed) = printed("schedule.h", body) else { return };
    let mut expected = String::new();
    for m in (0..40).step_by(3) {
        let (dense, lower) = (units(m, m + 1, Entries::All), units(m, m, Entries::Triangle));
        let _ = writeln!(expected, "{dense} {lower}");
    }
    for units in 1..200 {
        let of = |clusters| schedule::pieces(units, clusters);
        let _ = writeln!(expected, "{} {}", of(66), of(5));
    }
    assert_eq!(printed, expected);
}

#[test]
fn the_argument_structs_are_those_of_the_device_code() {
    let expected = expected();
    let mut body = String::new();
    for expression in expected.keys() {
        let value = format!("(unsigned long long)({expression})");
        let _ = writeln!(body, "printf(\"%s\\t%llu\\n\", \"{expression}\", {value});");
    }
    let Some(printed) = printed("ordered_sum/args.h", &body) else { return };
    let got: Values = printed
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(expression, value)| (expression.to_owned(), value.parse().unwrap()))
        .collect();
    assert_eq!(got, expected);
}
