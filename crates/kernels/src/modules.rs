//! Images of the device kernels: which there are, and where they come from.
//!
//! A family (`gemm`, `newton_schulz`, `optimizer`, …) is compiled for each target; `build.rs`
//! embeds what the compilers of the build made. A directory that `MUSTER_KERNEL_DIR` names is asked
//! first.

use std::borrow::Cow;
use std::path::PathBuf;

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Why there is no image of a family for a target.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(
        "this build of muster has no {family} kernels for {target} (it has {present}): build it \
         where scripts/toolchain.sh has installed the compilers, or set MUSTER_KERNEL_DIR to a \
         directory with {file}"
    )]
    Absent { family: String, target: String, present: String, file: String },
    #[error("{}, from MUSTER_KERNEL_DIR: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
}

/// The image of a family for a target: `cuda`, `gfx942`, `sim-sm_90a`, ….
///
/// # Errors
/// There is none in `MUSTER_KERNEL_DIR`, if that is set, nor in this build; or it cannot be read.
pub fn image(target: &str, family: &str) -> Result<Cow<'static, [u8]>, ImageError> {
    let file = file_name(target, family);
    if let Some(directory) = std::env::var_os("MUSTER_KERNEL_DIR") {
        let path = PathBuf::from(directory).join(&file);
        match std::fs::read(&path) {
            Ok(bytes) => return Ok(bytes.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(ImageError::Unreadable { path, source }),
        }
    }
    let embedded = IMAGES.iter().find(|(of, on, _)| *of == family && *on == target);
    embedded.map(|(_, _, bytes)| Cow::Borrowed(*bytes)).ok_or_else(|| ImageError::Absent {
        family: family.into(),
        target: target.into(),
        present: present(family),
        file,
    })
}

/// How an image is called as a file.
pub fn file_name(target: &str, family: &str) -> String {
    match target {
        "cuda" => format!("{family}.fatbin"),
        target if target.starts_with("sim-") => format!("{family}.{target}.so"),
        target => format!("{family}.{target}.hsaco"),
    }
}

/// Targets that this build has a family for, in words.
fn present(family: &str) -> String {
    let targets = IMAGES.iter().filter(|(of, ..)| *of == family).map(|(_, target, _)| *target);
    let targets: Vec<&str> = targets.collect();
    if targets.is_empty() { "none".into() } else { targets.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_named_with_the_way_to_get_it() {
        let error = image("gfx1", "gemm").unwrap_err().to_string();
        for part in ["gemm", "gfx1", "scripts/toolchain.sh", "MUSTER_KERNEL_DIR", "gemm.gfx1.hsaco"]
        {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_embedded_is_an_object_of_its_kind() {
        for (family, target, bytes) in IMAGES {
            let magic: &[u8] =
                if *target == "cuda" { &[0x50, 0xed, 0x55, 0xba] } else { b"\x7fELF" };
            assert!(bytes.starts_with(magic), "{family} for {target}");
            assert_eq!(image(target, family).unwrap().len(), bytes.len());
        }
    }
}
