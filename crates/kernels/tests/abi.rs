//! The argument structs in Rust and in `kernels/abi.h` have the same sizes, offsets and constants.
//! Needs a C compiler; where there is none, the test says so and checks nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use kernels::gpu::abi::*;

/// Everything that is compared: the C expression and Rust's value.
fn expected() -> BTreeMap<String, u64> {
    let mut values = BTreeMap::new();
    macro_rules! compare {
        ($c:literal, $rust:ty, [$($field:ident),*]) => {
            values.insert(format!("sizeof({})", $c), size_of::<$rust>() as u64);
            $(
                let offset = format!("offsetof({}, {})", $c, stringify!($field));
                values.insert(offset, offset_of!($rust, $field) as u64);
            )*
        };
    }
    compare!(
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
            reserved
        ]
    );
    compare!("MusterGemmArgs", GemmArgs, [problems, problem_count, block_count, group_rows, xcds]);
    compare!(
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
            first_tile
        ]
    );
    compare!("MusterNsArgs", NsArgs, [matrices, matrix_count, unit_count]);
    compare!(
        "MusterNsAol",
        NsAol,
        [gram, x, scales, row_tiles, col_tiles, first_row, first_tile, flags, reserved]
    );
    compare!("MusterNsAolArgs", NsArgs, [matrices, matrix_count, unit_count]);
    compare!("MusterMemoryArgs", MemoryArgs, [source, target, chunks, value, reserved]);
    let constants = [
        ("MUSTER_GEMM_LOWER", GEMM_LOWER),
        ("MUSTER_GEMM_OUT_BF16", GEMM_OUT_BF16),
        ("MUSTER_GEMM_OUT_TRANSPOSED", GEMM_OUT_TRANSPOSED),
        ("MUSTER_NS_INPUT_16", NS_INPUT_16),
        ("MUSTER_NS_INPUT_F16", NS_INPUT_F16),
        ("MUSTER_NS_TALL", NS_TALL),
        ("MUSTER_NS_TILES_F16", NS_TILES_F16),
        ("MUSTER_NS_PLAIN", NS_PLAIN),
        ("MUSTER_NS_STRIP_ROWS", NS_STRIP.0),
        ("MUSTER_NS_STRIP_COLS", NS_STRIP.1),
        ("MUSTER_NS_FINITE", kernels::newton_schulz::STATUS_FINITE),
        ("MUSTER_NS_NON_FINITE", kernels::newton_schulz::STATUS_NON_FINITE),
    ];
    values.extend(constants.map(|(name, value)| (name.to_owned(), u64::from(value))));
    values
}

#[test]
fn the_argument_structs_are_those_of_the_device_code() {
    let expected = expected();
    let abi = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/abi.h");
    let mut source =
        format!("#include <stdio.h>\n#include \"{}\"\nint main(void) {{\n", abi.display());
    for expression in expected.keys() {
        let _ = writeln!(
            source,
            "printf(\"%s\\t%llu\\n\", \"{expression}\", (unsigned long long){expression});"
        );
    }
    source.push_str("return 0;\n}\n");
    let dir = tempfile::tempdir().unwrap();
    let (file, program) = (dir.path().join("abi.c"), dir.path().join("abi"));
    std::fs::write(&file, source).unwrap();
    let built = match Command::new("cc").arg(&file).arg("-o").arg(&program).output() {
        Ok(built) => built,
        Err(error) => return eprintln!("nothing was compared: cannot run cc: {error}"),
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let printed = Command::new(&program).output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    let got: BTreeMap<String, u64> = printed
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(expression, value)| (expression.to_owned(), value.parse().unwrap()))
        .collect();
    assert_eq!(got, expected);
}
