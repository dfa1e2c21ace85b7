//! Modules, functions, and what a launch must satisfy before it is enqueued.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Arc;

use device::Grid;
use device::simulated::{SimModule, elf_bytes};

use crate::op::Work;
use crate::world::{Api, ApiCall, FunctionState, Told, code};

/// Most threads of a block, on all devices.
const THREADS: u32 = 1024;
/// Dynamic shared memory that CUDA gives without a function's attribute.
const FREE_SHARED: u32 = 48 << 10;
const ATTRIBUTE_THREADS: i32 = 0;
const ATTRIBUTE_DYNAMIC_SHARED: i32 = 8;

impl ApiCall {
    /// # Safety
    /// `image` is null or the start of a whole image.
    pub(crate) unsafe fn load(&mut self, image: *const c_void) -> Result<u64, i32> {
        if image.is_null() {
            return Err(self.wrong(code::INVALID_VALUE, "a null image"));
        }
        const HEADER: usize = 64;
        // SAFETY: an image is at least as long as an ELF header.
        let header = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), HEADER) };
        let bytes = elf_bytes(header).map_err(|what| self.wrong(code::INVALID_IMAGE, what))?;
        // SAFETY: the image is whole.
        let image = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), bytes) };
        let module =
            SimModule::load(image).map_err(|what| self.wrong(code::INVALID_IMAGE, what))?;
        if module.arch() != self.arch() {
            return Err(code::NO_BINARY);
        }
        let handle = self.fresh();
        self.modules.insert(handle, Arc::new(module));
        Ok(handle)
    }

    pub(crate) fn unload(&mut self, module: u64) -> Told {
        if self.modules.remove(&module).is_none() {
            return Err(self.gone("module", module));
        }
        let of = |function: &u64, call: &ApiCall| {
            call.functions.get(function).is_some_and(|state| state.module == module)
        };
        let busy = self.queue.iter().any(|op| op.function().is_some_and(|f| of(&f, self)));
        self.functions.retain(|_, state| state.module != module);
        match busy {
            true => Err(self.wrong(code::INVALID_VALUE, "a kernel of the module is still to run")),
            false => Ok(()),
        }
    }

    /// # Safety
    /// `name` is null or a string.
    pub(crate) unsafe fn find(&mut self, module: u64, name: *const c_char) -> Result<u64, i32> {
        let Some(code) = self.modules.get(&module).cloned() else {
            return Err(self.gone("module", module));
        };
        if name.is_null() {
            return Err(self.wrong(code::INVALID_VALUE, "a null name"));
        }
        // SAFETY: the caller's, and not null.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let index = code.kernels().iter().position(|kernel| kernel.name == name);
        let index = index.ok_or(code::NOT_FOUND)?;
        let known =
            |(_, state): &(&u64, &FunctionState)| state.module == module && state.index == index;
        if let Some((&function, _)) = self.functions.iter().find(known) {
            return Ok(function);
        }
        let function = self.fresh();
        let state = FunctionState { module, code, index, dynamic_shared: FREE_SHARED };
        self.functions.insert(function, state);
        Ok(function)
    }

    fn function(&self, function: u64) -> Result<&FunctionState, i32> {
        self.functions.get(&function).ok_or_else(|| self.gone("function", function))
    }

    pub(crate) fn attribute_of(&self, function: u64, attribute: i32) -> Result<i32, i32> {
        let state = self.function(function)?;
        let threads = state.code.kernels()[state.index].max_threads;
        match attribute {
            ATTRIBUTE_THREADS => Ok(threads.cast_signed()),
            _ => Err(self.wrong(code::INVALID_VALUE, "this attribute is not known here")),
        }
    }

    pub(crate) fn set_attribute(&mut self, function: u64, attribute: i32, value: i32) -> Told {
        self.function(function)?;
        let limit = self.arch().shared_bytes_per_block();
        let value = u32::try_from(value).ok().filter(|&value| value <= limit);
        let (ATTRIBUTE_DYNAMIC_SHARED, Some(value)) = (attribute, value) else {
            return Err(self.wrong(code::INVALID_VALUE, "no such attribute, or beyond its limit"));
        };
        if let Some(state) = self.functions.get_mut(&function) {
            state.dynamic_shared = value;
        }
        Ok(())
    }

    /// # Safety
    /// `params` is null or an array of pointers to the kernel's arguments.
    pub(crate) unsafe fn launch(
        &mut self,
        stream: u64,
        function: u64,
        grid: Grid,
        params: *mut *mut c_void,
    ) -> Told {
        let state = self.function(function)?;
        let kernel = &state.code.kernels()[state.index];
        let refuse = |what: String| Err(self.wrong(code::INVALID_VALUE, what));
        let Grid { grid: blocks, block, cluster, shared_bytes, .. } = grid;
        let product = |extents: [u32; 3]| extents.iter().map(|&n| u128::from(n)).product::<u128>();
        if product(blocks) == 0 || product(block) == 0 || product(cluster) == 0 {
            return refuse(format!("an extent of {grid:?} is 0"));
        }
        if blocks[0] > i32::MAX as u32 || blocks[1] > 65_535 || blocks[2] > 65_535 {
            return refuse(format!("{blocks:?} blocks are more than a grid has"));
        }
        let most = THREADS.min(kernel.max_threads);
        if product(block) > u128::from(most) || block[2] > 64 {
            return refuse(format!("{block:?} threads, {most} at most"));
        }
        let clusters = self.api == Api::Cuda && matches!(self.arch().name(), "sm_90a" | "sm_100a");
        let divided = blocks.iter().zip(cluster).all(|(&blocks, cluster)| blocks % cluster == 0);
        if product(cluster) > 1 && (!clusters || product(cluster) > 8 || !divided) {
            return refuse(format!("clusters of {cluster:?} in {blocks:?} blocks"));
        }
        let shared = match self.api {
            Api::Cuda => state.dynamic_shared,
            Api::Hip => self.arch().shared_bytes_per_block(),
        };
        if shared_bytes > shared {
            return refuse(format!("{shared_bytes} bytes of shared memory, {shared} are allowed"));
        }
        if params.is_null() {
            return refuse("no arguments".to_owned());
        }
        // SAFETY: the caller's, and not null; kernels here take one argument.
        let args = unsafe { params.read() };
        if args.is_null() {
            return refuse("a null argument".to_owned());
        }
        // SAFETY: the caller's; the kernel tells the size.
        let args =
            unsafe { std::slice::from_raw_parts(args.cast::<u8>(), kernel.args_bytes as usize) };
        let (code, index) = (state.code.clone(), state.index);
        let work = Work::Launch { function, code, index, grid, args: args.into() };
        self.enqueue(stream, work)
    }
}
