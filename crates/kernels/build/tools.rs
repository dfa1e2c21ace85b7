//! The compilers: where they are looked for, which are new enough, what is said of those missing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Whose images a compiler makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vendor {
    Cuda,
    Hip,
    Sim,
}

/// Variables that the build script depends on beside files.
pub const VARIABLES: [&str; 5] =
    ["MUSTER_KERNELS", "MUSTER_NVCC", "MUSTER_HIP_CLANG", "MUSTER_CXX", "MUSTER_TOOLCHAIN"];

const ALL: [Vendor; 3] = [Vendor::Cuda, Vendor::Hip, Vendor::Sim];

impl Vendor {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Hip => "hip",
            Self::Sim => "sim",
        }
    }

    /// The variable that names the compiler.
    fn variable(self) -> &'static str {
        match self {
            Self::Cuda => "MUSTER_NVCC",
            Self::Hip => "MUSTER_HIP_CLANG",
            Self::Sim => "MUSTER_CXX",
        }
    }

    /// Names to look for in `PATH`, the best first.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Cuda => &["nvcc"],
            Self::Hip => &["clang++-22", "clang++"],
            Self::Sim => &["g++", "g++-14", "g++-13", "g++-12"],
        }
    }

    /// The first version that has what the kernels need: sm_100a with its family of instructions,
    /// the builtins of gfx950, `-fsanitize=thread` hooks as the simulator knows them.
    fn least_version(self) -> u32 {
        match self {
            Self::Cuda => 13,
            Self::Hip => 22,
            Self::Sim => 11,
        }
    }
}

/// The compilers that `MUSTER_KERNELS` asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    pub vendors: Vec<Vendor>,
    /// A missing compiler is a mistake, not a warning.
    pub required: bool,
}

pub fn wanted(value: Option<&str>) -> Result<Wanted, String> {
    let all = ALL.to_vec();
    match value.map(str::trim) {
        None | Some("" | "auto") => Ok(Wanted { vendors: all, required: false }),
        Some("all") => Ok(Wanted { vendors: all, required: true }),
        Some("off") => Ok(Wanted { vendors: Vec::new(), required: true }),
        Some(list) => {
            let vendors = list.split(',').map(|name| {
                let vendor = ALL.into_iter().find(|vendor| vendor.name() == name.trim());
                vendor.ok_or_else(|| {
                    format!(
                        "MUSTER_KERNELS is `{list}`: `{name}` is none of auto, all, off, or a list \
                         of cuda, hip and sim"
                    )
                })
            });
            Ok(Wanted { vendors: vendors.collect::<Result<_, _>>()?, required: true })
        }
    }
}

/// A compiler that runs.
#[derive(Debug)]
pub struct Tool {
    pub path: PathBuf,
    /// The output of its `--version`, all of it.
    pub version: String,
}

#[derive(Debug)]
pub struct Found {
    pub tools: Vec<(Vendor, Tool)>,
    /// Whose compiler is missing, and why.
    pub missing: Vec<(Vendor, String)>,
}

impl Found {
    pub fn warning(&self) -> Option<String> {
        let missing: Vec<String> =
            self.missing.iter().map(|(vendor, why)| format!("{} ({why})", vendor.name())).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "built without kernels for {}. scripts/toolchain.sh installs the compilers; \
                 MUSTER_KERNELS=off or a list of cuda,hip,sim chooses, without this warning",
                missing.join(", ")
            )
        })
    }
}

/// Finds the compilers that are wanted. One that a variable names must run; one that is required
/// must be there.
pub fn find(wanted: &Wanted, root: &Path) -> Result<Found, String> {
    let toolchain = std::env::var_os("MUSTER_TOOLCHAIN").map(PathBuf::from);
    let file = toolchain.unwrap_or_else(|| root.join("target/toolchain")).join("env");
    if file.exists() {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let installed = std::fs::read_to_string(file).unwrap_or_default();
    let mut found = Found { tools: Vec::new(), missing: Vec::new() };
    for &vendor in &wanted.vendors {
        let tool = match std::env::var_os(vendor.variable()).filter(|path| !path.is_empty()) {
            Some(path) => Ok(named(vendor, Path::new(&path))?),
            None => look_for(vendor, &installed),
        };
        match tool {
            Ok(tool) => found.tools.push((vendor, tool)),
            Err(why) if wanted.required => {
                return Err(format!(
                    "MUSTER_KERNELS asks for {}: {why}. scripts/toolchain.sh installs it; {} names \
                     one elsewhere",
                    vendor.name(),
                    vendor.variable()
                ));
            }
            Err(why) => found.missing.push((vendor, why)),
        }
    }
    Ok(found)
}

/// The compiler that a variable names, of any version.
fn named(vendor: Vendor, path: &Path) -> Result<Tool, String> {
    version(path)
        .map(|version| Tool { path: path.to_owned(), version })
        .map_err(|why| format!("{} is {}: {why}", vendor.variable(), path.display()))
}

/// In `PATH`, then where the script installed it.
fn look_for(vendor: Vendor, installed: &str) -> Result<Tool, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let in_path = vendor
        .programs()
        .iter()
        .flat_map(|program| directories.iter().map(move |directory| directory.join(program)));
    let line = format!("{}=", vendor.variable());
    let by_script =
        installed.lines().filter_map(|text| Some(PathBuf::from(text.strip_prefix(&line)?)));
    let least = vendor.least_version();
    let mut why = format!("no {} in PATH", vendor.programs()[0]);
    for path in in_path.chain(by_script).filter(|path| path.is_file()) {
        match version(&path) {
            Ok(version) if major(&version).is_some_and(|major| major >= least) => {
                return Ok(Tool { path, version });
            }
            Ok(_) => why = format!("{} is older than version {least}", path.display()),
            Err(error) => why = format!("{}: {error}", path.display()),
        }
    }
    Err(why)
}

fn version(path: &Path) -> Result<String, String> {
    run(Command::new(path).arg("--version"))
}

/// 13 of "Cuda compilation tools, release 13.0, V13.0.88", 22 of "Debian clang version 22.1.8 …",
/// 12 of "g++ (Debian 12.2.0-14) 12.2.0".
pub fn major(version: &str) -> Option<u32> {
    let release = version.split_once("release ").or_else(|| version.split_once("version "));
    let text = match release {
        Some((_, rest)) => rest,
        None => version.lines().next()?.split(' ').rfind(|word| {
            word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.')
        })?,
    };
    text.split('.').next()?.parse().ok()
}

/// Runs a command to its end; gives what it said, or its failure with what it said.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    Err(format!("{} of {command:?}\n{said}", output.status))
}
