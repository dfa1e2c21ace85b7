//! The lines that launchers, schedulers and shells write into the log of a job that ends before its
//! time.
//!
//! ```text
//! slurmstepd: error: *** STEP 12.0 ON node1 CANCELLED AT … ***      Slurm
//! [node1:4242] 7 more processes have sent help message …            Open MPI
//! -------------------- …                                            Open MPI, around its texts
//! =   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES           Hydra
//! job.sh: line 3:  4242 Killed      ./all_reduce_perf -b 8          shells
//! ```
//!
//! Such a line is known by its beginning or, where it stands behind what the program had printed by
//! then, by words that no row has. What follows it is theirs, too, until a row or a comment comes:
//! their texts have several lines.

use super::lines::words;

/// Who begins a line with its own name and a colon.
const PROGRAMS: [&str; 12] = [
    "slurmstepd",
    "srun",
    "sbatch",
    "salloc",
    "timeout",
    "flux-run",
    "flux-job",
    "bash",
    "-bash",
    "sh",
    "dash",
    "zsh",
];

/// Who begins a sentence with its own name.
const SPEAKERS: [&str; 6] = ["mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "prun"];

/// How other lines begin: Open MPI, Hydra and PBS, Hydra, LSF, a terminal.
const BEGINNINGS: [&str; 5] = ["Primary job ", "=", "YOUR APPLICATION TERMINATED", "TERM_", "^C"];

/// Words that stand nowhere else, also not within a line.
const MARKS: [&str; 4] = ["slurmstepd: ", "srun: ", "--------------------", "===================="];

/// The words of shells for a program that a signal has ended (`strsignal(3)`).
const DEATHS: [&str; 16] = [
    "Hangup",
    "Quit",
    "Illegal instruction",
    "Trace/breakpoint trap",
    "Aborted",
    "Bus error",
    "Floating point exception",
    "Killed",
    "User defined signal 1",
    "User defined signal 2",
    "Segmentation fault",
    "Broken pipe",
    "Alarm clock",
    "Terminated",
    "CPU time limit exceeded",
    "File size limit exceeded",
];

/// Where in a line of a table that begins, if it is there.
pub fn launcher(line: &str) -> Option<usize> {
    let text = line.trim_start();
    let is_row = text.starts_with(|c: char| c.is_ascii_digit());
    if !is_row && (begins(text) || script(text).is_some()) {
        return Some(line.len() - text.len());
    }
    let marks = MARKS.iter().filter_map(|mark| line.find(mark));
    let brackets = line.match_indices('[').map(|(at, _)| at).filter(|&at| is_of_mpi(&line[at..]));
    let death = death(line).filter(|&at| is_row || !line[..at].ends_with(char::is_alphabetic));
    marks.chain(brackets).chain(death).chain(script(line)).min()
}

fn begins(text: &str) -> bool {
    let first = words(text).next().map_or("", |(_, word)| word);
    let path = first.strip_suffix(':');
    let name = path.unwrap_or(first).rsplit('/').next().unwrap_or_default();
    SPEAKERS.contains(&name)
        || path.is_some() && PROGRAMS.contains(&name)
        || BEGINNINGS.iter().any(|beginning| text.starts_with(beginning))
}

/// Where the name of a script begins in `job.sh: line 3: …`. A number that it shares its word with
/// has no end of its own, and goes with it.
fn script(line: &str) -> Option<usize> {
    let (name, rest) = line.split_once(": line ")?;
    let (number, _) = rest.split_once(':')?;
    number.parse::<u64>().ok()?;
    words(name).last().map(|(at, _)| at)
}

/// `[HOST:PID]`, as Open MPI and its libraries begin lines, and `[proxy:0:0@HOST]`, as Hydra does.
fn is_of_mpi(text: &str) -> bool {
    let Some((inside, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    let mut parts = inside.split(':');
    // A time of the day has no letters.
    let is_host = parts.next().is_some_and(|host| host.contains(char::is_alphabetic));
    let is_number = |part: &str| part.parse::<u64>().is_ok();
    let is_process = parts.next().is_some_and(is_number) && parts.all(is_number);
    !inside.contains(char::is_whitespace) && (inside.contains('@') || is_host && is_process)
}

/// Where a line ends with what a shell says of a program's end.
fn death(line: &str) -> Option<usize> {
    let text = line.trim_end();
    let text = text.strip_suffix("(core dumped)").unwrap_or(text).trim_end();
    DEATHS.iter().find_map(|death| text.strip_suffix(death)).map(str::len)
}

#[cfg(test)]
mod tests {
    use super::super::super::report::Report;
    use super::super::made::{Made, Style};
    use super::super::text::read;
    use super::*;

    /// As they come in logs.
    const ENDS: [&str; 16] = [
        "slurmstepd: error: *** STEP 123.0 ON node1 CANCELLED AT 2026-07-09T16:03:21 DUE TO TIME \
         LIMIT ***\nsrun: Job step aborted: Waiting up to 32 seconds for job step to finish.",
        "srun: error: node1: task 3: Exited with exit code 1",
        "Killed",
        "Terminated",
        "Segmentation fault (core dumped)",
        "/var/spool/slurmd/job12/slurm_script: line 9: 4242 Killed      ./all_reduce_perf -b 8",
        "./job.sh: line 3:  4242 Aborted                 (core dumped) ./all_reduce_perf",
        "Primary job  terminated normally, but 1 process returned\na non-zero exit code. Per \
         user-direction, the job has been aborted.",
        "--------------------------------------------------------------------------\nmpirun \
         noticed that process rank 2 with PID 0 on node node1 exited on signal 9 (Killed).\n\
         --------------------------------------------------------------------------\n2 total \
         processes killed (some possibly by mpirun during cleanup)",
        "--------------------------------------------------------------------------\nMPI_ABORT \
         was invoked on rank 0 in communicator MPI_COMM_WORLD\nwith errorcode 1.\n\n  Process \
         name: [[4242,1],2]\n  Exit code:    1",
        "[node1:12345] 7 more processes have sent help message help-mpi-api.txt / mpi-abort\n\
         [node1:12345] Set MCA parameter \"orte_base_help_aggregate\" to 0 to see all messages",
        "[node1:12345:0:12345] Caught signal 11 (Segmentation fault: address not mapped)\n==== \
         backtrace (tid:  12345) ====\n 0 0x0000000000042520 __sigaction()  ???:0",
        "===================================================================\n=   BAD TERMINATION \
         OF ONE OF YOUR APPLICATION PROCESSES\n=   EXIT CODE: 9\nYOUR APPLICATION TERMINATED WITH \
         THE EXIT STRING: Killed (signal 9)\nPlease see the FAQ page for debugging suggestions",
        "[proxy:0:0@node1] HYD_pmcd_pmip_control_cmd_cb (proxy.c:480): assert (!closed) failed",
        "^Cmpirun: killing job...",
        "=>> PBS: job killed: walltime 3608 exceeded limit 3600",
    ];

    fn whole() -> (String, Report) {
        let text = Made::example().text(&Style::default());
        let report = read(&text).unwrap();
        (text, report)
    }

    /// Where the lines of rows begin, and where the last one ends.
    fn rows_of(text: &str) -> [usize; 4] {
        let begins = |size: &str| text.find(&format!("\n{size:>12} ")).unwrap() + 1;
        let rows = ["1024", "1048576", "1073741824"].map(begins);
        [rows[0], rows[1], rows[2], text.find("# Out of bounds").unwrap()]
    }

    #[test]
    fn a_log_that_a_launcher_ended_has_the_rows_before() {
        let (text, report) = whole();
        let rows = rows_of(&text);
        for (end, tag) in ENDS.into_iter().flat_map(|end| [(end, ""), (end, "0: ")]) {
            let said = format!("{tag}{}\n", end.replace('\n', &format!("\n{tag}")));
            for (count, at) in rows.into_iter().enumerate() {
                for said in [&said[..], said.trim_end()] {
                    let log = format!("{}{said}", &text[..at]);
                    let got = read(&log).unwrap_or_else(|error| panic!("{error}\n{log}"));
                    assert_eq!(got.rows, report.rows[..2 * count], "{log}");
                    assert!(!got.complete && got.skipped.is_empty(), "{log}");
                }
            }
        }
    }

    /// A row that is not whole is told of, and none is invented.
    #[test]
    fn it_may_come_within_a_row() {
        let (text, report) = whole();
        let [_, begin, end, _] = rows_of(&text);
        let ends = [ENDS[0], ENDS[1], ENDS[2], ENDS[4], ENDS[8], ENDS[10]];
        for (said, at) in
            ends.into_iter().flat_map(|said| (begin + 1..end).map(move |at| (said, at)))
        {
            let log = format!("{}{said}\n", &text[..at]);
            let got = read(&log).unwrap_or_else(|error| panic!("{error}\n{log}"));
            assert!(!got.complete, "{log}");
            let whole = got.rows.len();
            assert!((2..=4).contains(&whole), "{log}");
            assert_eq!(got.rows, report.rows[..whole], "{log}");
        }
    }

    #[test]
    fn where_rows_go_on_it_is_a_message() {
        let (text, report) = whole();
        let [first, second, third, _] = rows_of(&text);
        for said in ENDS {
            for at in [first, second, third] {
                let log = format!("{}{said}\n{}", &text[..at], &text[at..]);
                assert_eq!(read(&log).unwrap(), report, "{log}");
            }
            // The rest of a row may come below.
            let at = second + 60;
            let first_line = said.lines().next().unwrap();
            if launcher(&format!("{}{first_line}", &text[second..at])).is_none() {
                continue;
            }
            let log = format!("{}{said}\n{}", &text[..at], &text[at..]);
            let got = read(&log).unwrap_or_else(|error| panic!("{error}\n{log}"));
            match script(said) {
                None => assert_eq!(got, report, "{log}"),
                // Nobody knows where the number ended.
                Some(_) => assert_eq!((got.rows.len(), got.skipped.len()), (4, 1), "{log}"),
            }
        }
    }

    #[test]
    fn others_are_no_launchers() {
        for line in [
            "hello",
            "        1024           256     float     sum      -1    10.10    0.10    0.18       0",
            "[16:03:21] something else",
            "[0] 1024",
            "mpirunner says",
            "Skilled",
            "a line 3: in a text",
            "#",
            "",
        ] {
            assert_eq!(launcher(line), None, "{line}");
        }
        assert_eq!(launcher("   1024    25srun: error: x"), Some(13));
        assert_eq!(launcher("   1024    0.0Killed"), Some(14));
        assert_eq!(launcher("   1024    floatKilled"), Some(16));
    }
}
