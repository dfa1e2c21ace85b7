//! An empty directory for each case, so that paths in messages are short and equal everywhere; the
//! directory's own path is replaced where it appears.

use std::path::Path;
use std::process::{Command, Output};

use super::MUSTER;

/// An empty directory to run `muster` in.
pub struct Desk {
    dir: tempfile::TempDir,
}

impl Desk {
    pub fn new() -> Desk {
        Desk { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path().join(name), content).unwrap();
    }

    pub fn muster(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(MUSTER);
        command.args(args).current_dir(self.path()).env_remove("RUST_BACKTRACE");
        // Help and errors are wrapped to the terminal's width.
        command.env("COLUMNS", "100").env("CARGO_HOME", self.path().join("no-cargo-home"));
        command
    }

    /// The command, the exit code, and everything that was printed.
    pub fn transcript(&self, args: &[&str]) -> String {
        let output = self.muster(args);
        let text = |bytes: &[u8]| {
            let text = String::from_utf8(bytes.to_vec()).expect("messages are text");
            // macOS reports its temporary directory under two names.
            let real = self.path().canonicalize().unwrap();
            text.replace(real.to_str().unwrap(), "HERE")
                .replace(self.path().to_str().unwrap(), "HERE")
        };
        let code = output.status.code().map_or("killed".into(), |code| code.to_string());
        let typed: Vec<String> = args
            .iter()
            .map(|arg| if arg.contains(' ') { format!("'{arg}'") } else { arg.to_string() })
            .collect();
        format!(
            "$ muster {}\n[exit {code}]\n{}{}",
            typed.join(" "),
            text(&output.stdout),
            text(&output.stderr)
        )
    }
}

/// A config that is right, given a `text.txt`.
pub const SMALL: &str = "\
model:
  preset: tiny-moe
data:
  files: text.txt
";

/// The output of `config check` for a config with these overrides.
pub fn check(desk: &Desk, config: &str, sets: &[&str]) -> String {
    desk.put("run.yaml", config);
    let mut args = vec!["config", "check", "run.yaml"];
    for set in sets {
        args.extend(["--set", set]);
    }
    desk.transcript(&args)
}
