//! Compiles the device kernels of `kernels/` with whatever compilers are at hand, and embeds them.
//!
//! ```text
//! kernels/gemm/gemm.cu ──nvcc──▶ gemm.fatbin          ┐
//! kernels/gemm/gemm.hip ─clang─▶ gemm.gfx942.hsaco …  ├─▶ OUT_DIR/images.rs: IMAGES, as bytes
//! both, and kernels/sim ──g++──▶ gemm.sim-sm_90a.so … ┘
//! ```
//!
//! An image is named by a digest of what it is made from, and kept in `kernels/cache` under the
//! target directory: profiles share it, and an edit compiles only what includes the edited file.
//! The images of the last build stand beside it under their plain names, as `MUSTER_KERNEL_DIR`
//! wants them.
//!
//! A compiler that is not there costs its images and one warning; `MUSTER_KERNELS` says which must
//! be there (`all`, or some of `cuda,hip,sim`), or builds none (`off`). A kernel that does not
//! compile fails the build.

#[path = "build/images.rs"]
pub mod images;
#[path = "build/sources.rs"]
pub mod sources;
#[path = "build/tools.rs"]
pub mod tools;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use images::Image;
use tools::{Tool, Vendor};

fn main() {
    if let Err(message) = run() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let out = var("OUT_DIR").ok_or("OUT_DIR is not set")?;
    let root = var("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?.join("../..");
    let root = root.canonicalize().map_err(|error| format!("{}: {error}", root.display()))?;
    println!("cargo::rerun-if-changed={}", root.join("kernels").display());
    println!("cargo::rerun-if-changed={}", root.join("crates/kernels/build.rs").display());
    println!("cargo::rerun-if-changed={}", root.join("crates/kernels/build").display());
    for name in tools::VARIABLES {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let wanted = tools::wanted(std::env::var("MUSTER_KERNELS").ok().as_deref())?;
    let found = tools::find(&wanted, &root)?;
    if let Some(warning) = found.warning() {
        println!("cargo::warning={warning}");
    }
    let store = target_directory(&out).join("kernels");
    let jobs = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let maker = Maker { found: &found, kernels: root.join("kernels"), store: store.clone(), jobs };
    let made = maker.make_all(&images::all())?;
    show(&made, &store)?;
    write(&out.join("images.rs"), images::table(&made).as_bytes())
}

/// The directory that cargo marked as a target directory; above `OUT_DIR` in every layout of it.
///
/// One that was there before cargo, as where the toolchain lies in it, has no mark: `OUT_DIR` is
/// `TARGET/PROFILE/build/PACKAGE/out` then.
fn target_directory(out: &Path) -> PathBuf {
    let marked = out.ancestors().find(|path| path.join("CACHEDIR.TAG").exists());
    marked.or(out.ancestors().nth(4)).unwrap_or(out).to_owned()
}

/// Compiles images into a store.
pub struct Maker<'a> {
    pub found: &'a tools::Found,
    pub kernels: PathBuf,
    pub store: PathBuf,
    pub jobs: usize,
}

impl Maker<'_> {
    /// Makes every image whose compiler is there, a few at a time; the costliest stand first.
    pub fn make_all(&self, images: &[Image]) -> Result<Vec<(Image, PathBuf)>, String> {
        let tool = |image| Some((image, self.found.tool(Image::vendor(image))?));
        let work: Vec<(&Image, &Tool)> = images.iter().filter_map(tool).collect();
        let simulator = self.found.tool(Vendor::Sim);
        let runtime =
            simulator.map(|tool| self.make(&images::runtime(), tool, None)).transpose()?;
        let next = AtomicUsize::new(0);
        let made = Mutex::new(Vec::new());
        let worker = || {
            while let Some((image, tool)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = self.make(image, tool, runtime.as_deref());
                if result.is_err() {
                    next.store(work.len(), Ordering::Relaxed);
                }
                made.lock().expect("no panic inside").push((**image, result));
            }
        };
        std::thread::scope(|scope| {
            (0..self.jobs.clamp(1, work.len().max(1))).for_each(|_| drop(scope.spawn(worker)));
        });
        let mut made = made.into_inner().expect("no panic inside");
        made.sort_by_key(|(image, _)| image.file());
        made.into_iter().map(|(image, path)| Ok((image, path?))).collect()
    }

    /// The path of an image in the store, compiled if it is not there yet.
    fn make(&self, image: &Image, tool: &Tool, runtime: Option<&Path>) -> Result<PathBuf, String> {
        let name = format!("{}-{:032x}", image.file(), image.digest(tool, &self.kernels)?);
        let cache = self.store.join("cache");
        let path = cache.join(&name);
        if path.exists() {
            return Ok(path);
        }
        let scratch = cache.join(format!(".{name}.{}", std::process::id()));
        std::fs::create_dir_all(&scratch).map_err(|error| told(&scratch, error))?;
        let said = image
            .commands(tool, &self.kernels, &scratch, runtime)?
            .iter_mut()
            .map(|command| tools::run(command).map_err(|why| format!("{}: {why}", image.file())))
            .collect::<Result<String, String>>();
        let made = said.and_then(|said| {
            // The compiler's remarks are looked at by scripts/check_kernels.py.
            write(&cache.join(format!("{name}.log")), said.as_bytes())?;
            std::fs::rename(scratch.join("image"), &path).map_err(|error| told(&path, error))
        });
        std::fs::remove_dir_all(&scratch).map_err(|error| told(&scratch, error))?;
        made.map(|()| path)
    }
}

/// Puts the images of this build under their plain names, and takes away all others.
pub fn show(made: &[(Image, PathBuf)], store: &Path) -> Result<(), String> {
    let log = |path: &Path| PathBuf::from(format!("{}.log", path.display()));
    for image in images::all() {
        let shown = store.join(image.file());
        match made.iter().find(|(other, _)| *other == image) {
            Some((_, path)) => {
                copy(path, &shown)?;
                copy(&log(path), &log(&shown))?;
            }
            // It may not have been there.
            None => drop([log(&shown), shown].map(std::fs::remove_file)),
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let bytes = std::fs::read(from).map_err(|error| told(from, error))?;
    if std::fs::read(to).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    write(to, &bytes)
}

/// Whole or not at all: builds of two profiles may run at once.
fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let part = PathBuf::from(format!("{}.{}.part", path.display(), std::process::id()));
    std::fs::write(&part, bytes).map_err(|error| told(&part, error))?;
    std::fs::rename(&part, path).map_err(|error| told(path, error))
}

fn told(path: &Path, error: std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

impl tools::Found {
    fn tool(&self, vendor: Vendor) -> Option<&Tool> {
        self.tools.iter().find(|(of, _)| *of == vendor).map(|(_, tool)| tool)
    }
}
