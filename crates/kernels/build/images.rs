//! Which images there are, and how each is compiled.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::sources::{self, Digest};
use super::tools::{Tool, Vendor};

/// Directories of `kernels/` with a source of the same name, the slowest to compile first.
pub const FAMILIES: [&str; 3] = ["gemm", "newton_schulz", "memory"];

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

/// Loads and stores of kernels are announced to hooks of the simulator, in its runtime, which is
/// compiled without them; an image shows three functions and binds its own hooks.
const SIM_KERNELS: &str = "-c -x c++ -std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -I. \
     -fsanitize=thread --param tsan-instrument-func-entry-exit=0";
const SIM_RUNTIME: &str = "-c -x c++ -std=c++17 -O2 -g1 -fPIC -fvisibility=hidden -I.";
const SIM_LINK: &str = "-shared -Wl,-Bsymbolic -o @/image @/kernels.o";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Cuda,
    Hip(&'static str),
    Sim(&'static str, &'static str, &'static str),
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
            Target::Sim(..) => Vendor::Sim,
        }
    }

    pub fn target_name(&self) -> String {
        match self.target {
            Target::Cuda => "cuda".into(),
            Target::Hip(arch) => arch.into(),
            Target::Sim(arch, ..) => format!("sim-{arch}"),
        }
    }

    pub fn file(&self) -> String {
        let (family, target) = (self.family, self.target_name());
        match self.target {
            Target::Cuda => format!("{family}.fatbin"),
            Target::Hip(_) => format!("{family}.{target}.hsaco"),
            Target::Sim(..) => format!("{family}.{target}.so"),
        }
    }

    /// Relative to `kernels/`.
    fn source(&self) -> PathBuf {
        let twin = match self.target {
            Target::Cuda => "cu",
            Target::Hip(_) => "hip",
            Target::Sim(_, _, twin) => twin,
        };
        format!("{0}/{0}.{twin}", self.family).into()
    }

    pub fn exists(&self, kernels: &Path) -> bool {
        kernels.join(self.source()).is_file()
    }

    /// Of all that the image depends on, and of no path of this machine.
    pub fn digest(&self, tool: &Tool, kernels: &Path) -> Result<u128, String> {
        let mut files = vec![self.source()];
        if let Target::Sim(..) = self.target {
            files.extend(runtime(kernels)?);
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

    /// What makes the image at `scratch/image`. The compilers run in `kernels`, so that no path of
    /// this machine enters an image.
    pub fn commands(
        &self,
        tool: &Tool,
        kernels: &Path,
        scratch: &Path,
    ) -> Result<Vec<Command>, String> {
        let scratch = scratch.display().to_string();
        let command = |words: Vec<String>| {
            let mut command = Command::new(&tool.path);
            command.current_dir(kernels).args(words.iter().map(|word| word.replace('@', &scratch)));
            command
        };
        Ok(self.steps(kernels)?.into_iter().map(command).collect())
    }

    /// The arguments of each run of the compiler; `@` stands for a directory of its own.
    fn steps(&self, kernels: &Path) -> Result<Vec<Vec<String>>, String> {
        let source = self.source().display().to_string();
        match self.target {
            Target::Cuda => {
                let mut words = words(
                    "-O3 -std=c++17 --expt-relaxed-constexpr -I. -lineinfo -fatbin --threads 2 \
                         -o @/image",
                );
                words.extend(CUDA.iter().flat_map(|arch| ["-gencode".into(), arch.to_string()]));
                words.push(source);
                Ok(vec![words])
            }
            Target::Hip(arch) => Ok(vec![words(&format!(
                "-x hip --offload-device-only --no-gpu-bundle-output --offload-arch={arch} -nogpuinc \
                 -nogpulib -munsafe-fp-atomics -fno-math-errno -O3 -std=c++17 -I. -o @/image {source}"
            ))]),
            Target::Sim(_, define, _) => {
                let defines = format!("-DDEV_SIM -D{define}");
                let mut steps =
                    vec![words(&format!("{SIM_KERNELS} {defines} {source} -o @/kernels.o"))];
                let mut link = words(SIM_LINK);
                for (index, file) in runtime(kernels)?.iter().enumerate() {
                    let file = file.display();
                    steps.push(words(&format!("{SIM_RUNTIME} {defines} {file} -o @/{index}.o")));
                    link.push(format!("@/{index}.o"));
                }
                steps.push(link);
                Ok(steps)
            }
        }
    }
}

/// The simulator's own sources, which are linked into each of its images.
fn runtime(kernels: &Path) -> Result<Vec<PathBuf>, String> {
    let directory = kernels.join("sim");
    let entries = std::fs::read_dir(&directory)
        .map_err(|error| format!("{}: {error}", directory.display()))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut files: Vec<PathBuf> = names
        .filter(|name| name.ends_with(".cpp"))
        .map(|name| format!("sim/{name}").into())
        .collect();
    files.sort();
    Ok(files)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
