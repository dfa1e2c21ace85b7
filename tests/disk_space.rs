//! Runs on small disks of their own: a tmpfs in a mount namespace. Where none can be made, the test
//! says that it was skipped, and why.

mod common;

use std::process::Command;

use common::{Done, MUSTER, Workdir, skip};

/// Runs a shell line in the run's directory, in which `runs` is a tmpfs with these options.
fn on_small_disk(run: &Workdir, options: &str, line: &str) -> Done {
    std::fs::create_dir_all(run.path().join("runs")).unwrap();
    let line = format!("mount -t tmpfs -o {options} tmpfs runs && {line}");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &line]);
    run.spawn(command).wait()
}

/// Why there can be no such disk here.
fn hindrance(run: &Workdir) -> Option<String> {
    if Command::new("unshare").arg("--version").output().is_err() {
        return Some("there is no `unshare`".to_owned());
    }
    let probe = on_small_disk(run, "size=1m", "true");
    (probe.code() != Some(0)).then(|| format!("no mount namespaces: {}", probe.stderr.trim()))
}

/// Text with every number of more than three digits replaced: sizes differ with the headers.
fn without_sizes(text: &str) -> String {
    let word = |word: &str| {
        let digits = word.trim_end_matches([',', ';', ':']);
        let is_size = digits.len() > 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_size { word.replace(digits, "N") } else { word.to_owned() }
    };
    text.trim_end().split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn train(more: &str) -> String {
    // No save is left out because others are still being written.
    let saves = "--set checkpoint.every=1 --set checkpoint.mode=sync";
    format!("{MUSTER} train run.yaml {saves} {more}")
}

#[test]
fn a_disk_without_room_for_a_checkpoint_is_told_before_training() {
    let run = Workdir::new("space-none");
    if let Some(why) = hindrance(&run) {
        return skip(&why);
    }
    // A checkpoint takes 1.2 MB. Less than one is left, and then so many files.
    let cases = [("size=900k", "bytes"), ("size=64m,nr_inodes=24", "files")];
    let told = cases.map(|(options, what)| {
        let fill = match what {
            "files" => "i=0; while [ $i -lt 8 ]; do touch runs/$i; i=$((i+1)); done; ",
            _ => "",
        };
        let line = format!("{{ {fill}{}; }}", train("--ranks 2"));
        let done = on_small_disk(&run, options, &line);
        assert_eq!(done.code(), Some(2), "{done}");
        assert!(!done.stdout.contains("step 1/"), "{done}");
        without_sizes(&done.stderr)
    });
    insta::assert_snapshot!(told.join("\n"), @"
    error: no checkpoint of this run would fit on the disk of runs/space-none/checkpoints: about N bytes in 10 files are needed, and N bytes and N files are free; free some space, or let runs lie on another disk (runs_dir)
    error: no checkpoint of this run would fit on the disk of runs/space-none/checkpoints: about N bytes in 10 files are needed, and N bytes and 4 files are free; free some space, or let runs lie on another disk (runs_dir)
    ");
}

#[test]
fn a_disk_with_room_for_some_is_a_warning_and_a_full_one_leaves_what_is_saved() {
    let run = Workdir::new("space-some");
    if let Some(why) = hindrance(&run) {
        return skip(&why);
    }
    let check = format!("{MUSTER} ckpt verify runs/space-some");
    let line = format!("{{ {}; code=$?; {check}; exit $code; }}", train("--set checkpoint.keep=0"));
    let done = on_small_disk(&run, "size=4m", &line);
    assert_eq!(done.code(), Some(3), "{done}");
    let warning = done.stdout.lines().find(|line| line.starts_with("warning: ")).expect("one");
    // The rest tells how the ranks ended.
    let full = done.stderr.lines().find(|line| line.contains("disk full")).expect("its name");
    let text = format!("{}\n{}", without_sizes(warning), without_sizes(full.trim_start()));
    insta::assert_snapshot!(text, @"
    warning: the disk of runs/space-some/checkpoints has room for 3 of the 6 checkpoints that are to lie there together (checkpoint.keep: 0 keeps all), each of about N bytes in 7 files; N bytes and N files are free
    error: disk full writing runs/space-some/checkpoints/step-00000004.g0001/rank-00000: N more bytes are needed and N are free; older checkpoints are intact; free some space, keep fewer checkpoints or choose another directory
    ");
    // The checkpoint that had been saved before is whole.
    assert!(done.stdout.contains("every checksum right"), "{done}");
}

#[test]
fn inodes_that_run_out_are_named() {
    let run = Workdir::new("space-inodes");
    if let Some(why) = hindrance(&run) {
        return skip(&why);
    }
    let line = format!("{{ {}; }}", train("--set checkpoint.keep=0"));
    let done = on_small_disk(&run, "size=64m,nr_inodes=30", &line);
    assert_eq!(done.code(), Some(3), "{done}");
    assert!(done.stdout.contains("warning: the disk of runs/"), "{done}");
    let expected = "no more files can be made there, as all inodes of the file system are in use";
    assert!(done.stderr.contains(expected), "{done}");
}

#[test]
fn a_text_that_cannot_be_written_as_tokens_says_what_ran_out() {
    let run = Workdir::new("space-tokens");
    if let Some(why) = hindrance(&run) {
        return skip(&why);
    }
    let tokenize = format!("{MUSTER} data tokenize large.txt runs/out.tok");
    std::fs::write(run.path().join("large.txt"), "fn main() {}\n".repeat(100_000)).unwrap();
    let cases = [
        ("size=64m,nr_inodes=2", "touch runs/a", "all inodes of the file system are in use"),
        ("size=256k", "true", "the disk is full: free some space"),
    ];
    for (options, fill, what) in cases {
        let done = on_small_disk(&run, options, &format!("{{ {fill}; {tokenize}; }}"));
        assert_eq!(done.code(), Some(3), "{done}");
        assert!(done.stderr.contains(what), "{done}");
    }
}
