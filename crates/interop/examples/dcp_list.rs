//! Opens a checkpoint of PyTorch's kinds, lists what is in it, and reads all of it:
//! `dcp_list DIRECTORY`.

use std::path::Path;
use std::time::Instant;

use interop::Elements;
use interop::dcp::{open_dcp, open_dcp_safetensors};
use interop::open_universal;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give a directory")?;
    let path = Path::new(&path);
    let begun = Instant::now();
    let checkpoint = if path.join(".metadata").exists() {
        open_dcp(path)?
    } else if path.join("zero").exists() {
        open_universal(path)?
    } else {
        open_dcp_safetensors(path)?
    };
    let opened = begun.elapsed();
    let foreign = &checkpoint.foreign;
    let pieces: usize = foreign.tensors.values().map(|tensor| tensor.pieces.len()).sum();
    for (name, tensor) in foreign.tensors.iter().take(20) {
        println!("{name} {} {:?} in {} pieces", tensor.dtype, tensor.shape, tensor.pieces.len());
    }
    for (name, value) in checkpoint.values.iter().take(20) {
        println!("{name} = {value}");
    }
    for left in checkpoint.left_out.iter().take(20) {
        println!("left out: {} {}", left.name, left.reason);
    }
    checkpoint.notes.iter().for_each(|note| println!("note: {note}"));
    let begun = Instant::now();
    let (mut block, mut bytes) = (Vec::new(), 0);
    for name in foreign.tensors.keys() {
        let tensor = foreign.tensor(name)?;
        let size = tensor.dtype().size_bytes();
        for start in (0..tensor.len()).step_by(1 << 20) {
            let count = (tensor.len() - start).min(1 << 20);
            block.resize(count * size, 0);
            tensor.read(start, &mut block)?;
            bytes += block.len();
        }
    }
    println!(
        "{} tensors in {pieces} pieces of {} files, opened in {opened:.2?}; {bytes} bytes read in \
         {:.2?}",
        foreign.tensors.len(),
        foreign.files.len(),
        begun.elapsed()
    );
    Ok(())
}
