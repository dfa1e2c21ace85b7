//! The entry points of the look-alike, called as a program in C would.

use libloading::Library;

pub struct Raw(pub Library);

/// Calls an entry point: `call!(raw, "name"(type: argument, …))`; its code.
#[allow(unused_macros)] // As in the module around it.
macro_rules! call {
    ($raw:expr, $name:literal ($($type:ty: $arg:expr),*)) => {{
        // SAFETY: the types are those of the entry point; pointers are to locals.
        unsafe {
            let function = $raw.0.get::<unsafe extern "C" fn($($type),*) -> i32>($name).unwrap();
            function($($arg),*)
        }
    }};
}
#[allow(unused_imports)]
pub(crate) use call;

impl Raw {
    pub fn open() -> Raw {
        // SAFETY: the library is ours.
        Raw(unsafe { Library::new(lookalike::library().unwrap()) }.unwrap())
    }

    pub fn with_context() -> Raw {
        let raw = Raw::open();
        let mut context = 0;
        assert_eq!(call!(raw, "cuInit"(u32: 0)), 0);
        assert_eq!(call!(raw, "cuDevicePrimaryCtxRetain"(*mut u64: &raw mut context, i32: 0)), 0);
        assert_eq!(call!(raw, "cuCtxSetCurrent"(u64: context)), 0);
        raw
    }
}
