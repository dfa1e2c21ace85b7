//! Opening a vendor's library, and what it does without a communicator.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use libloading::os::unix::{Library as Opened, RTLD_LOCAL, RTLD_NOW};

use crate::error::{Attempt, Attempts};
use crate::table::{RawUniqueId, Table, Texts, Told, version_of};
use crate::vendor::{Places, candidates};
use crate::{Code, Error, JobId, UniqueId, Vendor, Version};

/// An open library. Clones are the same one; it stays open until the process ends, because it has
/// threads of its own.
///
/// ```no_run
/// use nccl_rs::{JobId, Library, Vendor};
///
/// let library = Library::open(Vendor::Nvidia)?;
/// println!("NCCL {} from {}", library.version(), library.path());
/// let id = library.unique_id(JobId([7; 16]))?;
/// # Ok::<(), nccl_rs::Error>(())
/// ```
#[derive(Clone)]
pub struct Library(Arc<Loaded>);

struct Loaded {
    vendor: Vendor,
    version: Version,
    path: String,
    table: Table,
    texts: Texts,
}

impl Library {
    /// Opens the file that the environment names (`MUSTER_NCCL_LIB`, `MUSTER_RCCL_LIB`), or the
    /// first of what the loader finds under the library's names, of the Python wheels of an active
    /// environment, and of ROCm.
    ///
    /// # Errors
    /// All places with the loader's reasons; a symbol that it lacks; a version below 2.18.
    pub fn open(vendor: Vendor) -> Result<Library, Error> {
        Library::open_first(vendor, &candidates(vendor, &places(vendor)))
    }

    /// Opens one file.
    ///
    /// # Errors
    /// As [`Library::open`].
    pub fn open_at(vendor: Vendor, path: &Path) -> Result<Library, Error> {
        Library::open_first(vendor, &[path.to_owned()])
    }

    fn open_first(vendor: Vendor, candidates: &[PathBuf]) -> Result<Library, Error> {
        let mut tried = Vec::new();
        for path in candidates {
            // Both vendors' symbols have the same names, so each library's stay its own.
            // SAFETY: it runs its initializers, which is what it is opened for.
            match unsafe { Opened::open(Some(path), RTLD_NOW | RTLD_LOCAL) } {
                Ok(opened) => return Library::load(vendor, opened, path),
                Err(error) => {
                    let reason = std::error::Error::source(&error)
                        .map_or_else(|| error.to_string(), ToString::to_string);
                    tried.push(Attempt { place: path.display().to_string(), reason });
                }
            }
        }
        Err(Error::Missing { vendor, tried: Attempts(tried) })
    }

    fn load(vendor: Vendor, opened: Opened, path: &Path) -> Result<Library, Error> {
        let opened = libloading::Library::from(opened);
        let path = path.display().to_string();
        let lacks = |symbol| Error::Symbol { vendor, library: path.clone(), symbol };
        // SAFETY: the types are those of nccl.h, which the baseline's successors have kept.
        let version = unsafe { version_of(&opened) }.map_err(lacks)?;
        if version < Version::BASELINE {
            return Err(Error::TooOld { vendor, library: path, version });
        }
        // SAFETY: as above.
        let table = unsafe { Table::load(&opened, vendor, version) }.map_err(lacks)?;
        // SAFETY: as above.
        let texts = unsafe { Texts::load(&opened) }.map_err(lacks)?;
        // It has threads, and is not made to be closed.
        std::mem::forget::<libloading::Library>(opened);
        Ok(Library(Arc::new(Loaded { vendor, version, path, table, texts })))
    }

    pub fn vendor(&self) -> Vendor {
        self.0.vendor
    }

    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The name that it was opened by.
    pub fn path(&self) -> &str {
        &self.0.path
    }

    /// Whether it has a function of [`crate::LATER`], such as `ncclCommShrink`.
    pub fn has(&self, symbol: &str) -> bool {
        self.0.table.has(symbol)
    }

    /// A new id, for the ranks of one communicator of `job`. The process that calls this must live
    /// until all of them have come.
    ///
    /// # Errors
    /// The library found no network interface that it could listen on.
    pub fn unique_id(&self, job: JobId) -> Result<UniqueId, Error> {
        let mut raw = RawUniqueId([0; 128]);
        // SAFETY: `raw` is written.
        let told = unsafe { self.table().get_unique_id(&raw mut raw) };
        self.check(told)?;
        Ok(UniqueId { raw, vendor: self.vendor(), version: self.version(), job })
    }

    /// The library's own words for one of its codes.
    pub fn error_text(&self, code: i32) -> String {
        self.0.texts.error(code)
    }

    pub(crate) fn table(&self) -> &Table {
        &self.0.table
    }

    pub(crate) fn last_error(&self) -> String {
        self.0.texts.last()
    }

    /// Success, or the error in the library's words.
    pub(crate) fn check(&self, told: Told) -> Result<(), Error> {
        let Told { call, code: number } = told;
        match Code::of(number) {
            None => Ok(()),
            Some(code) => {
                let (text, detail) = (self.error_text(number), self.last_error());
                Err(Error::Call { call, code, text, detail })
            }
        }
    }

    /// As [`Library::check`]; what goes on in the background is no error.
    pub(crate) fn check_begun(&self, told: Told) -> Result<(), Error> {
        match Code::of(told.code) {
            Some(Code::InProgress) => Ok(()),
            _ => self.check(told),
        }
    }

    pub(crate) fn is_same(&self, other: &Library) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} from {}", self.vendor(), self.version(), self.path())
    }
}

fn places(vendor: Vendor) -> Places {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let roots = [("VIRTUAL_ENV", "lib"), ("CONDA_PREFIX", "lib"), ("HOME", ".local/lib")];
    let libs =
        roots.into_iter().filter_map(|(name, lib)| Some(PathBuf::from(variable(name)?).join(lib)));
    // `lib/python3.x/site-packages`, whatever x is.
    let pythons = libs.filter_map(|lib| std::fs::read_dir(lib).ok()).flatten().flatten();
    let packages = pythons.map(|entry| entry.path().join("site-packages"));
    let mut packages: Vec<PathBuf> = packages.filter(|path| path.is_dir()).collect();
    // Directories are read in no order.
    packages.sort();
    Places {
        named: variable(vendor.variable()).map(PathBuf::from),
        rocm: variable("ROCM_PATH").map(PathBuf::from),
        packages,
    }
}
