//! Writes a distributed checkpoint whose bytes follow from their place, for
//! `tests/interop/check_dcp.py`: `dcp_sample DIRECTORY [MEBIBYTES of one more tensor [NUMBER of
//! small ones]]`.

use std::path::Path;

use interop::dcp::{DcpOptions, write_dcp};
use interop::{Elements, Error, Outgoing};
use layout::Dtype;

/// Byte k of a tensor is (31 k + 7) mod 251; of bools, k mod 2.
struct Pattern {
    dtype: Dtype,
    elements: usize,
}

impl Elements for Pattern {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn len(&self) -> usize {
        self.elements
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        let first = start * self.dtype.size_bytes();
        for (k, byte) in (first..).zip(out) {
            *byte = match self.dtype {
                Dtype::Bool => (k % 2) as u8,
                _ => ((31 * k + 7) % 251) as u8,
            };
        }
        Ok(())
    }
}

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Outgoing<'static> {
    let elements = shape.iter().product();
    let elements = Box::new(Pattern { dtype, elements });
    Outgoing { name: name.to_owned(), shape: shape.to_vec(), elements }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().ok_or("give a directory that is not there")?;
    let large: usize = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let small: usize = arguments.next().map_or(Ok(0), |text| text.parse())?;
    let mut tensors: Vec<Outgoing> =
        Dtype::ALL.iter().map(|&dtype| tensor(&format!("types.{dtype}"), dtype, &[5, 7])).collect();
    tensors.extend([
        tensor("scalar", Dtype::F32, &[]),
        tensor("empty", Dtype::F32, &[0, 4]),
        tensor("empty.of.others", Dtype::F8E8M0, &[3, 0]),
        tensor("one", Dtype::Bf16, &[1, 1, 1]),
        tensor("axes", Dtype::I64, &[2, 3, 1, 2, 5]),
        tensor("blocks", Dtype::F32, &[1500, 1001]),
        tensor("名前.weight", Dtype::F16, &[3]),
    ]);
    if large > 0 {
        tensors.push(tensor("large", Dtype::U8, &[large, 1 << 20]));
        tensors.push(tensor("after", Dtype::F32, &[9]));
    }
    tensors.extend((0..small).map(|n| tensor(&format!("small.{n}"), Dtype::F32, &[2, 3])));
    let options = DcpOptions { max_file_bytes: 4 << 20 };
    let written = write_dcp(Path::new(&target), tensors, &options)?;
    println!("{} bytes in {} files of {}", written.bytes, written.files, written.path.display());
    Ok(())
}
