//! The simulator's models of matrix instructions against what the vendors publish.

mod simulator;

use std::process::Command;

use simulator::{compiler, kernels_dir, run, tests_dir};

#[test]
fn models_agree_with_the_vendors_documents() {
    let Some(compiler) = compiler() else { return };
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("models");
    run(Command::new(compiler)
        .args(["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror"])
        .args(["-I".as_ref(), kernels_dir().as_os_str()])
        .arg(tests_dir().join("models.cpp"))
        .args(["-o".as_ref(), program.as_os_str()]));
    let output = run(&mut Command::new(program));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0 failures\n");
}
