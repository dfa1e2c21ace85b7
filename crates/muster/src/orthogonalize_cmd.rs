//! `muster orthogonalize`: a safetensors file in, one with its matrices orthogonalized out.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use data::input::Input;
use device::{DType, Device};
use half::{bf16, f16};
use kernels::Op as _;
use kernels::Real;
use kernels::newton_schulz::{
    self, Algorithm, Batch, Iteration, Matrix, Method, Orthogonalize, Storage,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use crate::cli::OrthogonalizeArgs;
use crate::console::{duration, plural};
use crate::error::{CliError, Exit};
use crate::method::{default_storage, iteration};
use crate::out_file::{self, Place};
use crate::output::{say, tell_if_slow};

pub fn run(args: OrthogonalizeArgs) -> Result<Exit, CliError> {
    check_paths(&args)?;
    let start = Instant::now();
    let storage = match &args.dtype {
        Some(word) => crate::method::storage(word)?,
        None => default_storage(args.device),
    };
    let method = crate::method::method(&args.algorithm, &args.coefficients, args.steps, storage)?;
    let shown = iteration(&method, args.device)?;
    let device = Device::new(args.device, crate::method::threads(args.threads))?;

    check_beginning(&args.input)?;
    let slow = tell_if_slow(format!("reading {} until its end", args.input.display()));
    let bytes = data::input::read(&args.input)?;
    drop(slow);
    let not_safetensors = |error: safetensors::SafeTensorError| not_safetensors(&args.input, error);
    let file = SafeTensors::deserialize(&bytes).map_err(not_safetensors)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(not_safetensors)?;

    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for pattern in &args.tensors {
        if !tensors.iter().any(|(name, _)| optim::glob::matches(pattern, name)) {
            return Err(CliError::mistake(no_match(pattern, &tensors)));
        }
    }
    let mut lines = Vec::new();
    let mut results = Vec::new();
    let mut matrices = 0;
    for (name, view) in &tensors {
        let selected = args.tensors.is_empty()
            || args.tensors.iter().any(|pattern| optim::glob::matches(pattern, name));
        let action = if selected { action(view) } else { Action::Copy("not asked for") };
        lines.push(format!("  {name} {:?} {:?}: {action}", view.shape(), view.dtype()));
        results.push(match action {
            Action::Copy(_) => view.data().to_vec(),
            Action::Orthogonalize { count, rows, cols } => {
                matrices += count;
                let shape = (count, rows, cols);
                let iteration = iteration(&of_stored(&method, view.dtype()), args.device)?;
                orthogonalize(&device, &iteration, name, view, shape)?
            }
        });
    }
    if matrices == 0 {
        return Err(CliError::mistake(format!(
            "{} holds no matrix to orthogonalize:\n{}",
            args.input.display(),
            lines.join("\n")
        )));
    }
    write(&args.output, &tensors, &results, header.metadata().clone())?;
    say(&format!(
        "{shown}\n{}\n{matrices} {} of {} to {} in {}",
        lines.join("\n"),
        if matrices == 1 { "matrix" } else { "matrices" },
        args.input.display(),
        args.output.display(),
        duration(start.elapsed().as_secs_f64())
    ))?;
    Ok(Exit::Ok)
}

fn not_safetensors(path: &Path, why: impl std::fmt::Display) -> CliError {
    CliError::mistake(format!("{} is not a safetensors file: {why}", path.display()))
}

/// Most bytes of a header that the format allows.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Looks at the length of a regular file's header before all of the file is read.
fn check_beginning(path: &Path) -> Result<(), CliError> {
    let Input::File { bytes } = data::input::look(path)? else { return Ok(()) };
    let mut length = [0; 8];
    let mut file = data::input::open(path)?;
    if bytes < 8 || file.read_exact(&mut length).is_err() {
        return Err(not_safetensors(
            path,
            format!("it has {bytes} bytes, and a header takes more"),
        ));
    }
    let header = u64::from_le_bytes(length);
    match header < 2 || header > HEADER_BYTES_MAX.min(bytes - 8) {
        true => Err(not_safetensors(path, format!("its header would have {header} bytes"))),
        false => Ok(()),
    }
}

fn check_paths(args: &OrthogonalizeArgs) -> Result<(), CliError> {
    let same = match (args.input.canonicalize(), args.output.canonicalize()) {
        (Ok(input), Ok(output)) => input == output,
        _ => false,
    };
    if same {
        let out = args.output.display();
        return Err(CliError::mistake(format!("IN and OUT are one file, {out}; name another OUT")));
    }
    // Output to a device or pipe replaces nothing.
    let is_regular = matches!(out_file::check(&args.output)?, Place::Regular(_));
    if is_regular && args.output.exists() && !args.force {
        let out = args.output.display();
        return Err(CliError::mistake(format!("{out} exists; name another OUT, or use --force")));
    }
    Ok(())
}

fn no_match(pattern: &str, tensors: &[(String, TensorView)]) -> String {
    let names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    let near = match crate::config::nearest(pattern, names.iter().copied()) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    };
    format!("--tensors {pattern} matches none of {}{near}", plural(names.len(), "tensor"))
}

/// The treatment of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Orthogonalize {
        count: usize,
        rows: usize,
        cols: usize,
    },
    /// Unchanged, and why.
    Copy(&'static str),
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Action::Orthogonalize { count: 1, .. } => f.write_str("orthogonalized"),
            Action::Orthogonalize { count, rows, cols } => {
                write!(f, "{count} matrices of {rows}×{cols} orthogonalized")
            }
            Action::Copy(why) => write!(f, "copied ({why})"),
        }
    }
}

fn action(view: &TensorView) -> Action {
    if !matches!(view.dtype(), Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::F16) {
        return Action::Copy("not f64, f32, bf16 or f16");
    }
    let (count, rows, cols) = match *view.shape() {
        [rows, cols] => (1, rows, cols),
        [count, rows, cols] => (count, rows, cols),
        _ => return Action::Copy("not two- or three-dimensional"),
    };
    match count * rows * cols {
        0 => Action::Copy("empty"),
        _ => Action::Orthogonalize { count, rows, cols },
    }
}

/// The bytes of the orthogonalized tensor, in its own type.
fn orthogonalize(
    device: &Device,
    iteration: &Iteration,
    name: &str,
    view: &TensorView,
    shape: (usize, usize, usize),
) -> Result<Vec<u8>, CliError> {
    let data = view.data();
    let Method { algorithm, storage, .. } = *iteration.method();
    // Steps that round to 16 bits compute in f32.
    let in_f64 = storage == Storage::F32 || algorithm == Algorithm::Svd;
    match view.dtype() {
        Dtype::F64 if device.kind().is_host() && in_f64 => {
            let values: Vec<f64> =
                data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
            let result = on_device(device, iteration, name, &values, shape)?;
            Ok(result.iter().flat_map(|x| x.to_le_bytes()).collect())
        }
        Dtype::F64 => {
            let values = into_range(data, shape.1 * shape.2);
            let result = on_device(device, iteration, name, &values, shape)?;
            Ok(narrow(Dtype::F64, &result))
        }
        dtype => {
            let result = on_device(device, iteration, name, &widen(dtype, data), shape)?;
            Ok(narrow(dtype, &result))
        }
    }
}

/// Matrices of f64, of so many elements each, in f32: times a power of two, which changes no
/// result, where they would not fit.
fn into_range(data: &[u8], elements: usize) -> Vec<f32> {
    let values: Vec<f64> = data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    let scaled = values.chunks(elements.max(1)).flat_map(|matrix| {
        let finite = matrix.iter().map(|x| x.abs()).filter(|x| x.is_finite());
        let most = finite.fold(0.0, f64::max);
        // The exponent of the largest element, whose power f32 has room for on both sides.
        let exponent = ((most.to_bits() >> 52) as i32 - 1023).clamp(-1022, 1022);
        let scale = if (-60..=60).contains(&exponent) { 1.0 } else { 2.0_f64.powi(-exponent) };
        matrix.iter().map(move |x| (x * scale) as f32)
    });
    scaled.collect()
}

/// The method for matrices that were stored as `dtype`.
fn of_stored(method: &Method, dtype: Dtype) -> Method {
    let input_roundoff = match dtype {
        Dtype::BF16 => f64::from(bf16::EPSILON) / 2.0,
        Dtype::F16 => f64::from(f16::EPSILON) / 2.0,
        _ => 0.0,
    };
    Method { input_roundoff, ..method.clone() }
}

fn widen(dtype: Dtype, data: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::BF16 => {
            data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()
        }
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

fn narrow(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Dtype::F64 => values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Orthogonalizes `count` matrices that lie one after another.
fn on_device<T: Real>(
    device: &Device,
    iteration: &Iteration,
    name: &str,
    values: &[T],
    (count, rows, cols): (usize, usize, usize),
) -> Result<Vec<T>, CliError> {
    let at = |index| index * rows * cols;
    let matrices = (0..count).map(|index| Matrix::dense(at(index), at(index), rows, cols));
    let batch = Batch::new(iteration, matrices.collect())?;
    let input = device.tensor(&[values.len()], values)?;
    let output = device.zeros(&[values.len()], T::DTYPE)?;
    let status = device.zeros(&[count], DType::U32)?;
    let room = newton_schulz::room(device, &batch, (T::DTYPE, T::DTYPE))?;
    let workspace = device.zeros(&[room.workspace_elements], room.workspace_dtype)?;
    let stream = device.stream();
    let (to, told) = (output.clone(), status.clone());
    Orthogonalize { batch, input, output: to, workspace, status: told }.launch(&stream)?;
    let named = |index| match count {
        1 => name.to_owned(),
        _ => format!("{name}[{index}]"),
    };
    newton_schulz::check_status(&stream, &status, named).map_err(CliError::mistake)?;
    Ok(stream.to_vec(&output)?)
}

fn write(
    path: &Path,
    tensors: &[(String, TensorView)],
    results: &[Vec<u8>],
    metadata: Option<HashMap<String, String>>,
) -> Result<(), CliError> {
    let bug = |error| CliError::bug(format!("{}: {error}", path.display()));
    let views: Vec<(&str, TensorView)> = tensors
        .iter()
        .zip(results)
        .map(|((name, view), data)| {
            let view = TensorView::new(view.dtype(), view.shape().to_vec(), data).map_err(bug)?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<_, CliError>>()?;
    let mut bytes = safetensors::serialize(views, None).map_err(bug)?;
    if let Some(metadata) = metadata {
        let sorted: BTreeMap<_, _> = metadata.into_iter().collect();
        bytes = with_metadata(&bytes, &sorted).map_err(CliError::bug)?;
    }
    out_file::write(path, &bytes)
}

/// A safetensors file without metadata, with it: `metadata` as the first entry of the header.
/// The crate writes it in the order of a hash map, which differs from call to call.
fn with_metadata(
    file: &[u8],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, serde_json::Error> {
    const LEN: usize = 8;
    let (len, rest) = file.split_at(LEN);
    let len = u64::from_le_bytes(len.try_into().expect("eight bytes were split off"));
    let (header, data) = rest.split_at(len as usize);
    // The header is an object of at least one tensor, without its brace, and is padded by spaces.
    let entries = header[1..].trim_ascii_end();
    let mut new = b"{\"__metadata__\":".to_vec();
    new.extend(serde_json::to_vec(metadata)?);
    new.push(b',');
    new.extend_from_slice(entries);
    new.resize(new.len().next_multiple_of(LEN), b' ');
    Ok([&(new.len() as u64).to_le_bytes(), new.as_slice(), data].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dtype: Dtype, shape: &[usize], data: &[u8]) -> Action {
        action(&TensorView::new(dtype, shape.to_vec(), data).unwrap())
    }

    #[test]
    fn matrices_are_orthogonalized_and_all_else_is_copied_with_a_reason() {
        let data = [0_u8; 24];
        assert_eq!(
            of(Dtype::F32, &[2, 3], &data),
            Action::Orthogonalize { count: 1, rows: 2, cols: 3 }
        );
        assert_eq!(
            of(Dtype::BF16, &[2, 2, 3], &data),
            Action::Orthogonalize { count: 2, rows: 2, cols: 3 }
        );
        assert_eq!(of(Dtype::F32, &[6], &data), Action::Copy("not two- or three-dimensional"));
        assert_eq!(of(Dtype::I32, &[2, 3], &data), Action::Copy("not f64, f32, bf16 or f16"));
        assert_eq!(of(Dtype::F32, &[0, 3], &[]), Action::Copy("empty"));
    }

    #[test]
    fn types_go_through_f32_and_back() {
        let values = [1.5_f32, -2.0, 0.25];
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            assert_eq!(widen(dtype, &narrow(dtype, &values)), values, "{dtype:?}");
        }
        assert_eq!(into_range(&narrow(Dtype::F64, &values), values.len()), values);
    }

    #[test]
    fn doubles_that_f32_cannot_hold_are_scaled_by_a_power_of_two() {
        let bytes = |values: [f64; 4]| values.map(f64::to_le_bytes).concat();
        let (large, small) = (2.0_f64.powi(1000), 2.0_f64.powi(-1000));
        // The second matrix fits, and stays as it is.
        let values = into_range(&bytes([large, -1.5 * large, 3.0, 0.5]), 2);
        assert_eq!(values, [1.0, -1.5, 3.0, 0.5]);
        let values = into_range(&bytes([small, 0.0, -1.25 * small, f64::MIN_POSITIVE]), 4);
        assert_eq!(values, [1.0, 0.0, -1.25, 2.0_f32.powi(-22)]);
        assert!(into_range(&bytes([f64::NAN, 0.0, 1.0, 1.0]), 4)[0].is_nan());
    }
}
