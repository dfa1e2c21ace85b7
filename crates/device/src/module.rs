//! Modules of device kernels, their functions, and graphs of captured launches.
//!
//! ```text
//! Graph ──keeps──▶ Function ──keeps──▶ Module ──keeps──▶ driver
//! ```

use std::sync::Arc;

use crate::driver::{Driver, Found, Handle};
use crate::release::release;
use crate::{DeviceError, Grid};

/// A loaded module; clones share it, and its functions keep it loaded.
#[derive(Clone)]
pub struct Module {
    inner: Arc<Loaded>,
}

struct Loaded {
    driver: Arc<dyn Driver>,
    handle: Handle,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let module = self.handle;
        release(&self.driver, move |driver| driver.module_unload(module));
    }
}

impl Module {
    pub(crate) fn load(driver: &Arc<dyn Driver>, image: &[u8]) -> Result<Module, DeviceError> {
        let handle = driver.module_load(image)?;
        Ok(Module { inner: Arc::new(Loaded { driver: driver.clone(), handle }) })
    }

    /// A kernel of the module.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn function(&self, name: &str) -> Result<Function, DeviceError> {
        let found = self.inner.driver.function(self.inner.handle, name)?;
        let module = self.clone();
        Ok(Function { inner: Arc::new(Entry { module, name: name.to_owned(), found }) })
    }
}

/// A kernel of a module; clones are the same.
#[derive(Clone)]
pub struct Function {
    inner: Arc<Entry>,
}

struct Entry {
    module: Module,
    name: String,
    found: Found,
}

impl Function {
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Most threads of a block.
    pub fn max_threads(&self) -> u32 {
        self.inner.found.max_threads
    }

    /// Size of the argument, where the module tells.
    pub fn args_bytes(&self) -> Option<u32> {
        self.inner.found.args_bytes
    }

    /// How many clusters of this kernel surely run at the same time, with threads, cluster and
    /// shared memory as in `grid`. One on devices that do not say.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn clusters_together(&self, grid: &Grid) -> Result<u32, DeviceError> {
        self.inner.module.inner.driver.clusters_together(self.handle(), grid)
    }

    pub(crate) fn handle(&self) -> Handle {
        self.inner.found.function
    }

    pub(crate) fn check(
        &self,
        driver: &Arc<dyn Driver>,
        grid: &Grid,
        args_bytes: usize,
    ) -> Result<(), DeviceError> {
        let refuse = |message| {
            let (device, kernel) = (driver.kind(), self.name().to_owned());
            Err(DeviceError::Launch { device, kernel, message })
        };
        if !Arc::ptr_eq(driver, &self.inner.module.inner.driver) {
            return refuse("its module was loaded on another device".to_owned());
        }
        if let Some(expected) = self.args_bytes().filter(|&size| size as usize != args_bytes) {
            return refuse(format!("an argument of {args_bytes} bytes, it takes {expected}"));
        }
        grid.check(driver.properties(), self.max_threads()).or_else(refuse)
    }
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kernel `{}`", self.name())
    }
}

/// Captured work, to be run as often as wanted by [`crate::Stream::launch_graph`].
pub struct Graph {
    driver: Arc<dyn Driver>,
    handle: Handle,
    _functions: Vec<Function>,
}

impl Graph {
    pub(crate) fn new(driver: Arc<dyn Driver>, handle: Handle, functions: Vec<Function>) -> Graph {
        Graph { driver, handle, _functions: functions }
    }

    pub(crate) fn launch(&self, on: &Arc<dyn Driver>, stream: Handle) -> Result<(), DeviceError> {
        if !Arc::ptr_eq(on, &self.driver) {
            let message = "the graph was captured on another device".to_owned();
            return Err(DeviceError::Misuse { device: on.kind(), message });
        }
        on.graph_launch(stream, self.handle)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let graph = self.handle;
        release(&self.driver, move |driver| driver.graph_destroy(graph));
    }
}
