//! The command line of `muster bench` and `muster orthogonalize`.

use std::path::PathBuf;

use ::bench::collectives::{Op, parse_size};
use ::bench::newton_schulz::Io;
use ::bench::{BatchShape, ProductShape};
use clap::{Args, Subcommand};
use device::DeviceKind;

use super::ReportArgs;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time orthogonalization: shapes × algorithms × coefficients × dtypes
    #[command(after_help = "\
Examples:
  muster bench newton-schulz
  muster bench newton-schulz --shapes 24x768x3072,512x512 --algorithm standard,gram --json ns.json
  muster bench newton-schulz --device cuda:0 --dtype bf16,f16 --svg ns.svg
  muster bench newton-schulz --device sim:gfx942 --shapes 3x100x260 --dtype bf16

A shape is ROWSxCOLS or COUNTxROWSxCOLS; shapes joined by + are one mixed batch. Useful TFLOP/s
count the operations of the algorithm that ran; the limit is what its tiles and waves allow at the
ceiling.")]
    NewtonSchulz(NewtonSchulzArgs),
    /// Time matrix products, whole and of one triangle
    #[command(after_help = "\
Examples:
  muster bench gemm
  muster bench gemm --device cuda:0 --shapes 4096x4096x4096,8192x8192x8192 --dtype bf16
  muster bench gemm --device cuda:0 --shapes 8x2048x2048x2048 --symmetric

A shape is MxNxK or COUNTxMxNxK. On a GPU operands lie in tiles, as Newton-Schulz keeps them;
packing is not timed.")]
    Gemm(GemmArgs),
    /// Time collective operations between ranks, in the columns of nccl-tests
    #[command(after_help = "\
Examples:
  muster bench collectives
  muster bench collectives all_reduce --ranks 4 --min 1KiB --max 256MiB --json ar.json
  muster bench collectives --ranks-sweep 2,4,8 --svg busbw.svg
  muster bench collectives reduce_scatter --ranks 4 --links auto      (for train's buckets)
  muster bench collectives all_reduce --ranks 2 --overlap             (beside Newton-Schulz)
  muster bench collectives send_recv all_to_all --backend tcp --odd
  muster bench collectives --backend tcp --ranks 8 --nodes 2 --node-rank 0 \\
      --rendezvous 10.0.0.7:4000 --bind 10.0.0.7        (and on the other host with --node-rank 1)

Sums are made in the order of a fixed tree, with the same bits on every transport. Times are
medians; algbw and busbw are what nccl-tests means by them. Results are checked on timed
launches. Below the table stands what follows from the sizes of each case: a fit, n1/2 and n90,
percent of a roofline, and a size for buckets of gradients.")]
    Collectives(Box<super::CollectivesArgs>),
    /// Time every pair of ranks, both ways, and name the host, rail, rank or link that is slow
    #[command(after_help = "\
Examples:
  muster bench links --ranks 4
  muster bench links --backend tcp --ranks 16 --nodes 2 --node-rank 0 \\
      --rendezvous 10.0.0.7:4000 --bind 10.0.0.7        (and on the other host with --node-rank 1)
  muster bench links --size 16MiB --json links.json --fail

Every rank meets every other once, first within hosts, then between them, where as many pairs share
a host in every round. All pairs of a round are measured at the same time: round trips of 8 bytes,
then messages in one direction, then in the other. A part is slow if its best direction is: below
90 % of the median of its like, and with a modified z-score below -3.5. Where ranks outnumber the
cores of a machine, what has an end there is slow below a smaller share, which the table tells.
Larger parts come first, and what they explain is not named again.")]
    Links(super::LinksArgs),
    /// Time reading, writing and copying of device memory
    #[command(after_help = "\
Examples:
  muster bench memory
  muster bench memory --device cuda:0 --sizes 256MiB,4GiB --json memory.json")]
    Memory(MemoryArgs),
    /// Compare two reports of collectives: Muster's, nccl-tests' or rccl-tests'
    #[command(after_help = "\
Examples:
  muster bench compare base.json new.json
  muster bench compare nccl-tests.log new.json --threshold 10% --json comparison.json
  muster bench compare old.log new.log --only all_reduce,all_gather --allow-missing

A side is what Muster, nccl-tests or rccl-tests printed or wrote as JSON or CSV; its contents tell
which. A case is slower if its median (or mean, where there is no median) grew by more
than the threshold and, where both sides have an interval of the median, if the two are apart.

Exits with 0 if nothing is slower, wrong or missing; with 1 if something is, if a case has no two
times to compare, if NEW ended early where BASE did not (with --allow-missing, too), or if the run
of a side says that it failed; and with 2 if a side cannot be read or the two have nothing in
common.")]
    Compare(CompareArgs),
}

/// The arguments of every benchmark.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Where: `cpu`, `sim`, `sim:ARCH`, `cuda:N` or `hip:N`. A simulated device checks, and times
    /// nothing
    #[arg(long, default_value = "cpu")]
    pub device: DeviceKind,
    /// Threads on the CPU; 0 uses every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Runs that are not counted
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub warmup: usize,
    /// Runs of which the median is shown
    #[arg(
        long,
        value_name = "N",
        default_value_t = 7,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub iterations: u32,
    #[command(flatten)]
    pub files: ReportArgs,
}

#[derive(Debug, Args)]
pub struct NewtonSchulzArgs {
    #[command(flatten)]
    pub common: BenchArgs,
    /// Batches to orthogonalize
    #[arg(long, value_delimiter = ',', default_value = "8x256x1024,512x512,256x1024+128x512")]
    pub shapes: Vec<BatchShape>,
    /// `auto`, `standard`, `symmetric`, `gram`, or on the CPU `svd`, the exact result
    #[arg(long, value_delimiter = ',', default_value = "standard,symmetric,gram")]
    pub algorithm: Vec<String>,
    /// Coefficient sets, by the names that configs use
    #[arg(long, value_delimiter = ',', default_value = "polar_express")]
    pub coefficients: Vec<String>,
    /// Type of stored matrices: `f32` (CPU only), `bf16`, `f16`; by default what the device is best
    /// at
    #[arg(long, value_delimiter = ',')]
    pub dtype: Vec<String>,
    /// Type of the matrices given and returned: `f32`, or on a GPU `bf16`
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = io)]
    pub io: Io,
    /// Newton–Schulz steps
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// TFLOP/s of the device's products, instead of measuring them first
    #[arg(long, value_name = "TFLOPS")]
    pub ceiling: Option<f64>,
    /// Compare with f64 up to so many GFLOP of work; larger cases show no error
    #[arg(long, value_name = "GFLOP", default_value_t = 50.0)]
    pub check_gflop: f64,
}

#[derive(Debug, Args)]
pub struct GemmArgs {
    #[command(flatten)]
    pub common: BenchArgs,
    /// Products to time
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "256x256x256,512x512x512,768x768x768,1024x1024x1024"
    )]
    pub shapes: Vec<ProductShape>,
    /// `f32` (CPU only), `bf16`, `f16`; by default what the device is best at
    #[arg(long, value_delimiter = ',')]
    pub dtype: Vec<String>,
    /// Time X·Xᵀ, of which one triangle is computed (M and N must be equal)
    #[arg(long)]
    pub symmetric: bool,
}

#[derive(Debug, Args)]
pub struct MemoryArgs {
    #[command(flatten)]
    pub common: BenchArgs,
    /// Bytes of a buffer, such as 64MiB or 4GiB
    #[arg(long, value_delimiter = ',', default_value = "64MiB,256MiB", value_parser = byte_size)]
    pub sizes: Vec<usize>,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Results to compare with
    #[arg(value_name = "BASE")]
    pub base: PathBuf,
    /// Results that may have become slower
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// By how much a time may grow
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent)]
    pub threshold: f64,
    /// Write the comparison as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Compare only these operations
    #[arg(long, value_name = "OP", value_delimiter = ',')]
    pub only: Vec<Op>,
    /// Cases that NEW lacks, or that have no times, are no regression
    #[arg(long)]
    pub allow_missing: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  muster orthogonalize momentum.safetensors out.safetensors
  muster orthogonalize in.safetensors out.safetensors --algorithm gram --dtype f16 --device cuda:0
  muster orthogonalize in.safetensors out.safetensors --algorithm svd

Every matrix of IN is replaced by the nearest matrix with orthonormal rows or columns, as far as the
method goes; of a three-dimensional tensor each matrix along the first axis. All else is copied, and
named.")]
pub struct OrthogonalizeArgs {
    /// A safetensors file
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Where: `cpu`, `sim`, `sim:ARCH`, `cuda:N` or `hip:N`
    #[arg(long, default_value = "cpu")]
    pub device: DeviceKind,
    /// Threads on the CPU; 0 uses every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// `auto`, `standard`, `symmetric`, `gram`, or on the CPU `svd`, the exact result
    #[arg(long, default_value = "auto")]
    pub algorithm: String,
    /// Coefficient set, by the name that configs use
    #[arg(long, default_value = "polar_express")]
    pub coefficients: String,
    /// Newton–Schulz steps
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Type of stored matrices: `f32` (CPU only), `bf16`, `f16`; by default what the device is best
    /// at
    #[arg(long)]
    pub dtype: Option<String>,
    /// Only tensors whose names match; `*` stands for anything. May be repeated
    #[arg(long, value_name = "GLOB")]
    pub tensors: Vec<String>,
    /// Write over an existing OUT
    #[arg(long)]
    pub force: bool,
}

fn io(text: &str) -> Result<Io, String> {
    let known = [Io::F32, Io::Bf16].into_iter().find(|io| io.word() == text);
    known.ok_or_else(|| format!("`{text}` is neither f32 nor bf16"))
}

/// The part that `5%` is of the whole.
fn percent(text: &str) -> Result<f64, String> {
    let Some(number) = text.strip_suffix('%') else {
        let with_sign = format!("{}%", text.trim());
        let near = if percent(&with_sign).is_ok() { with_sign.as_str() } else { "5%" };
        return Err(format!("`{text}` has no percent sign; write {near}"));
    };
    let percent = number.trim().parse::<f64>().ok().filter(|percent| percent.is_finite());
    match percent {
        Some(percent) if percent >= 0.0 => Ok(percent / 100.0),
        Some(_) => Err(format!("`{text}` is below 0; use 0% or more")),
        None => Err(format!("`{text}` is no percentage; write 5%")),
    }
}

/// A size as [`parse_size`] has them.
fn byte_size(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| format!("`{text}` is out of range; use 1 byte or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_have_their_sign() {
        assert_eq!(percent("5%"), Ok(0.05));
        assert_eq!((percent("0%"), percent("12.5 %")), (Ok(0.0), Ok(0.125)));
        for (wrong, words) in [
            ("5", "write 5%"),
            ("12.5", "write 12.5%"),
            ("x", "write 5%"),
            ("inf", "write 5%"),
            ("nan", "write 5%"),
            ("-1", "write 5%"),
            ("-1%", "0% or more"),
            ("inf%", "write 5%"),
        ] {
            let advice = percent(wrong).unwrap_err();
            assert!(advice.contains(words), "{wrong}: {advice}");
            let value = advice.split(' ').find(|word| word.ends_with('%') && *word != wrong);
            assert!(percent(value.unwrap()).is_ok(), "{wrong}: {advice}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(byte_size("64MiB"), Ok(64 << 20));
        assert_eq!(byte_size("4 KiB"), Ok(4096));
        assert_eq!((byte_size("12"), byte_size("4MB")), (Ok(12), Ok(4_000_000)));
        for wrong in ["", "MiB", "0", "99999999999GiB", "-1KiB"] {
            assert!(byte_size(wrong).is_err(), "{wrong}");
        }
    }
}
