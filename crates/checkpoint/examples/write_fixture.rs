//! Writes the fixture of the current format version: `cargo run -p checkpoint --example
//! write_fixture [DIRECTORY]`. The committed one is never rewritten; a new format version gets a
//! new directory beside it.

#[path = "../tests/support/fixture.rs"]
mod fixture;

use checkpoint::Store;

fn main() -> Result<(), checkpoint::Error> {
    let root = std::env::args().nth(1).unwrap_or_else(|| fixture::ROOT.to_string());
    std::fs::create_dir_all(&root).map_err(|source| checkpoint::Error::Io {
        action: "create",
        path: root.clone().into(),
        offset: None,
        source,
    })?;
    fixture::write(&Store::new(&root))?;
    println!("wrote {root}/{}", fixture::ATTEMPT);
    Ok(())
}
