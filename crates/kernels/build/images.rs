//! Which images there are, and how each is compiled.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::sources::{self, Digest};
use super::tools::{Tool, Vendor};

/// Directories of `kernels/` with a source of the same name, the slowest to compile first.
pub const FAMILIES: [&str; 5] = ["gemm", "newton_schulz", "ordered_sum", "optimizer", "memory"];

/// Architectures of one fatbin: machine code, and PTX for whatever comes later.
const CUDA: [&str; 4] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_100a,code=sm_100a",
    "arch=compute_80,code=compute_80",
];
const HIP: [&str; 3] = ["gfx90a", "gfx942", "gfx950"];
/// Simulated architecture, the macro of `dev.h` that selects it, the twin that it runs.
const SIM: [(&str, &str, &str); 5] = [
    ("sm_90a", "DEV_SM90", "cu"),
    ("sm_80", "DEV_SM80", "cu"),
    ("gfx90a", "DEV_GFX90A", "hip"),
    ("gfx942", "DEV_GFX942", "hip"),
    ("gfx950", "DEV_GFX950", "hip"),
];

/// As in `kernels/sim/build.sh`. Loads and stores of kernels are announced to hooks in the
/// simulator's runtime, which is compiled without them; a module shows three functions and binds
/// its own hooks.
pub const SIM_FLAGS: [&str; 3] = [SIM_COMMON, SIM_KERNELS, SIM_LINK];
const SIM_COMMON: &str = "-c -std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -fno-exceptions \
     -fno-rtti -ffp-contract=off";
const SIM_KERNELS: &str = "-fsanitize=thread -Wno-psabi -x c++ -DDEV_SIM";
const SIM_LINK: &str = "-shared -Wl,-Bsymbolic,--no-undefined,--version-script=sim/exports.map \
     -static-libstdc++ -static-libgcc";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Cuda,
    Hip(&'static str),
    Sim(&'static str, &'static str, &'static str),
    /// The code that every simulated module has in it beside its kernels.
    Runtime,
}

/// One family for one target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Image {
    family: &'static str,
    target: Target,
}

pub fn all() -> Vec<Image> {
    let sim = SIM.map(|(arch, define, twin)| Target::Sim(arch, define, twin));
    let targets = [Target::Cuda].into_iter().chain(HIP.map(Target::Hip)).chain(sim);
    let targets: Vec<Target> = targets.collect();
    let of_family =
        |family| targets.iter().map(move |&target| Image { family, target }).collect::<Vec<_>>();
    FAMILIES.into_iter().flat_map(of_family).collect()
}

/// The simulator's runtime: an object that simulated modules are linked with, made before them.
pub fn runtime() -> Image {
    Image { family: "sim", target: Target::Runtime }
}

/// `IMAGES`, in Rust.
pub fn table(made: &[(Image, PathBuf)]) -> String {
    let mut text =
        "/// Family, target, image.\npub static IMAGES: &[(&str, &str, &[u8])] = &[\n".to_owned();
    for (image, path) in made {
        let (family, target) = (image.family, image.target_name());
        text += &format!("    ({family:?}, {target:?}, include_bytes!({path:?})),\n");
    }
    text + "];\n"
}

impl Image {
    pub fn vendor(&self) -> Vendor {
        match self.target {
            Target::Cuda => Vendor::Cuda,
            Target::Hip(_) => Vendor::Hip,
            Target::Sim(..) | Target::Runtime => Vendor::Sim,
        }
    }

    pub fn target_name(&self) -> String {
        match self.target {
            Target::Cuda => "cuda".into(),
            Target::Hip(arch) => arch.into(),
            Target::Sim(arch, ..) => format!("sim-{arch}"),
            Target::Runtime => "runtime".into(),
        }
    }

    pub fn file(&self) -> String {
        let (family, target) = (self.family, self.target_name());
        match self.target {
            Target::Cuda => format!("{family}.fatbin"),
            Target::Hip(_) => format!("{family}.{target}.hsaco"),
            Target::Sim(..) => format!("{family}.{target}.so"),
            Target::Runtime => format!("{family}.{target}.o"),
        }
    }

    /// The files that are compiled, relative to `kernels/`.
    fn sources(&self, kernels: &Path) -> Result<Vec<PathBuf>, String> {
        let twin = match self.target {
            Target::Cuda => "cu",
            Target::Hip(_) => "hip",
            Target::Sim(_, _, twin) => twin,
            Target::Runtime => return runtime_sources(kernels),
        };
        Ok(vec![format!("{0}/{0}.{twin}", self.family).into()])
    }

    /// Of all that the image depends on, and of no path of this machine.
    pub fn digest(&self, tool: &Tool, kernels: &Path) -> Result<u128, String> {
        let mut files = self.sources(kernels)?;
        if let Target::Sim(..) = self.target {
            files.extend(runtime_sources(kernels)?);
            files.push("sim/exports.map".into());
        }
        let mut digest = Digest::default();
        digest.add(tool.version.as_bytes());
        for word in self.steps(kernels)?.concat() {
            digest.add(word.as_bytes());
        }
        for file in sources::closure(kernels, &files)? {
            digest.add(file.as_os_str().as_encoded_bytes());
            digest.add(&std::fs::read(kernels.join(&file)).map_err(|error| error.to_string())?);
        }
        Ok(digest.finish())
    }

    /// The commands that make the image at `scratch/image`, for a simulated module with the runtime
    /// at hand. The compilers run in `kernels`, so that no path of this machine enters an image.
    pub fn commands(
        &self,
        tool: &Tool,
        kernels: &Path,
        scratch: &Path,
        runtime: Option<&Path>,
    ) -> Result<Vec<Command>, String> {
        let scratch = scratch.display().to_string();
        let runtime = runtime.unwrap_or(Path::new("")).display().to_string();
        let command = |words: Vec<String>| {
            let words = words.iter().map(|word| word.replace('@', &scratch).replace('%', &runtime));
            let mut command = Command::new(&tool.path);
            command.current_dir(kernels).args(words);
            command
        };
        Ok(self.steps(kernels)?.into_iter().map(command).collect())
    }

    /// The arguments of each run of the compiler; `@` stands for a directory of its own, `%` for
    /// the simulator's runtime.
    fn steps(&self, kernels: &Path) -> Result<Vec<Vec<String>>, String> {
        let sources = self.sources(kernels)?;
        let source = sources.first().map(|path| path.display().to_string()).unwrap_or_default();
        Ok(match self.target {
            Target::Cuda => {
                let mut run =
                    words("-O3 -std=c++17 --expt-relaxed-constexpr -fatbin --threads 2 -o @/image");
                run.extend(CUDA.iter().flat_map(|arch| ["-gencode".into(), arch.to_string()]));
                run.push(source);
                vec![run]
            }
            Target::Hip(arch) => vec![words(&format!(
                "-x hip --offload-device-only --no-gpu-bundle-output --offload-arch={arch} \
                 -nogpuinc -nogpulib -munsafe-fp-atomics -fno-math-errno -O3 -std=c++17 \
                 -o @/image {source}"
            ))],
            Target::Sim(_, define, _) => vec![
                words(&format!("{SIM_COMMON} {SIM_KERNELS} -D{define} {source} -o @/kernels.o")),
                words(&format!("{SIM_LINK} @/kernels.o % -o @/image")),
            ],
            Target::Runtime => {
                let mut runs = Vec::new();
                let mut join = words("-r -nostdlib -o @/image");
                for (index, file) in sources.iter().enumerate() {
                    runs.push(words(&format!("{SIM_COMMON} {} -o @/{index}.o", file.display())));
                    join.push(format!("@/{index}.o"));
                }
                runs.push(join);
                runs
            }
        })
    }
}

/// The simulator's own sources.
fn runtime_sources(kernels: &Path) -> Result<Vec<PathBuf>, String> {
    let directory = kernels.join("sim");
    let entries = std::fs::read_dir(&directory)
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let names = names.filter(|name| name.ends_with(".cpp"));
    let mut files: Vec<PathBuf> = names.map(|name| format!("sim/{name}").into()).collect();
    files.sort();
    Ok(files)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
