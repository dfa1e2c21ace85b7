//! Checkpoints that PyTorch, Megatron-Core and DeepSpeed wrote, by values that follow from their
//! index (`tests/interop/make_dcp.py`), and what Muster writes for them.

mod support;

use std::fs;

use interop::dcp::{
    DcpOptions, LeftOut, Plain, TorchCheckpoint, open_dcp, open_dcp_safetensors, write_dcp,
};
use interop::{Elements, Error, Foreign, Outgoing, open_universal};
use layout::Dtype;
use support::{bytes, copy, find, fixture};

/// Elements as numbers.
fn numbers(foreign: &Foreign, name: &str) -> Vec<f64> {
    let bytes = bytes(foreign, name).unwrap();
    let dtype = foreign.tensors[name].dtype;
    let f32_of = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let element = |b: &[u8]| match dtype {
        Dtype::F32 => f32_of(b),
        Dtype::Bf16 => f32_of(&[0, 0, b[0], b[1]]),
        Dtype::I64 => i64::from_le_bytes(b.try_into().unwrap()) as f64,
        // Sign, four bits of exponent (bias 7), three of mantissa.
        Dtype::F8E4M3 => {
            let (exponent, mantissa) = (i32::from(b[0] >> 3 & 15), f64::from(b[0] & 7));
            match exponent {
                0 => mantissa / 512.0,
                _ => (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
            }
        }
        other => panic!("{other}"),
    };
    bytes.chunks(dtype.size_bytes()).map(element).collect()
}

fn counted(shape: &[usize], modulus: usize) -> Vec<f64> {
    (0..shape.iter().product::<usize>()).map(|n| (n % modulus) as f64).collect()
}

#[track_caller]
fn holds(foreign: &Foreign, name: &str, dtype: Dtype, shape: &[usize]) {
    let found = &foreign.tensors[name];
    assert_eq!((found.dtype, &found.shape[..]), (dtype, shape), "{name}");
    let modulus = match dtype {
        Dtype::Bf16 => 256,
        Dtype::F8E4M3 => 16,
        _ => usize::MAX,
    };
    assert_eq!(numbers(foreign, name), counted(shape, modulus), "{name}");
}

fn names(checkpoint: &TorchCheckpoint) -> Vec<&str> {
    checkpoint.foreign.tensors.keys().map(|name| &**name).collect()
}

fn left_out(checkpoint: &TorchCheckpoint) -> Vec<String> {
    let show = |left: &LeftOut| format!("{}: {}", left.name, left.reason);
    checkpoint.left_out.iter().map(show).collect()
}

#[track_caller]
fn told(result: Result<TorchCheckpoint, Error>, wanted: &str) {
    let told = result.err().unwrap_or_else(|| panic!("no error: {wanted}")).to_string();
    assert!(told.contains(wanted), "{told}");
}

#[test]
fn shards_of_dtensors_are_read_whole() {
    let checkpoint = open_dcp(&fixture("dcp")).unwrap();
    let foreign = &checkpoint.foreign;
    for (name, dtype, shape) in [
        ("model.rows", Dtype::F32, &[6, 4][..]),
        ("model.columns", Dtype::F32, &[4, 9]),
        ("model.uneven", Dtype::F32, &[7, 3]),
        ("model.short", Dtype::F32, &[2, 3]),
        ("model.replicated", Dtype::F32, &[3, 2]),
        ("model.half", Dtype::Bf16, &[4, 8]),
        ("model.eighth", Dtype::F8E4M3, &[6, 4]),
        ("model.whole", Dtype::I64, &[2, 2]),
        ("model.empty", Dtype::F32, &[0, 4]),
        ("optimizer.state.rows.exp_avg", Dtype::F32, &[6, 4]),
    ] {
        holds(foreign, name, dtype, shape);
    }
    assert_eq!(numbers(foreign, "model.scalar"), [3.0]);
    assert_eq!(numbers(foreign, "optimizer.state.rows.step"), [7.0]);
    // Rows 1 and 2 of a tensor of 4 × 6.
    assert_eq!(numbers(foreign, "model.part"), counted(&[4, 6], 99)[6..18]);
    assert_eq!(names(&checkpoint).len(), 13);
}

#[test]
fn plain_values_are_read_and_others_left_out() {
    let checkpoint = open_dcp(&fixture("dcp")).unwrap();
    let all: Vec<String> =
        checkpoint.values.iter().map(|(name, value)| format!("{name} = {value}")).collect();
    let wanted = [
        "name = \"fixture\"",
        "optimizer.param_groups.0.betas = [0.9, 0.95]",
        "optimizer.param_groups.0.lr = 0.25",
        "optimizer.param_groups.0.params = [\"rows\"]",
        "step = 7",
    ];
    assert_eq!(all, wanted);
    let left = left_out(&checkpoint);
    assert_eq!(left, ["big: an int of 9 bytes", "device: of class `torch.device`"]);
}

#[test]
fn safetensors_of_ranks_are_read_whole() {
    let checkpoint = open_dcp_safetensors(&fixture("hf")).unwrap();
    holds(&checkpoint.foreign, "rows", Dtype::F32, &[6, 4]);
    holds(&checkpoint.foreign, "columns", Dtype::Bf16, &[4, 9]);
    holds(&checkpoint.foreign, "uneven", Dtype::F32, &[7, 3]);
    holds(&checkpoint.foreign, "whole", Dtype::I64, &[2, 2]);
    assert_eq!((names(&checkpoint).len(), checkpoint.notes.len()), (4, 0));
    told(open_dcp_safetensors(&fixture("dcp")), "no files `shard-….safetensors`");
}

#[test]
fn megatron_is_read_with_experts_as_a_leading_axis() {
    let checkpoint = open_dcp(&fixture("megatron")).unwrap();
    let foreign = &checkpoint.foreign;
    holds(foreign, "decoder.layers.self_attention.linear_qkv.weight", Dtype::Bf16, &[8, 4]);
    holds(foreign, "decoder.layers.self_attention.linear_proj.weight", Dtype::F32, &[4, 6]);
    holds(foreign, "decoder.final_layernorm.weight", Dtype::F32, &[5]);
    holds(foreign, "decoder.layers.mlp.experts.linear_fc1.weight", Dtype::F32, &[4, 3, 2]);
    assert_eq!(names(&checkpoint).len(), 4);
    let extra = &checkpoint.values["decoder.layers.mlp._extra_state/shard_0_2"];
    assert_eq!(extra.to_string(), "[{\"amax\": [1.0, 2.0]}]");
    let common = &checkpoint.values["common"];
    assert_eq!(common.get("iteration"), Some(&Plain::Int(7)));
    let args = common.get("args").unwrap();
    assert_eq!(args.get("lr"), Some(&Plain::Float(0.25)));
    assert_eq!(args.get("params_dtype"), Some(&Plain::Text("torch.bfloat16".to_owned())));
    assert_eq!(left_out(&checkpoint), ["common.args.shape: of class `pathlib.PosixPath`"]);
}

#[test]
fn universal_checkpoints_are_read_as_parameters_and_moments() {
    let checkpoint = open_universal(&fixture("deepspeed")).unwrap();
    let foreign = &checkpoint.foreign;
    let all = ["first", "first:adam_m", "first:adam_v", "second", "second:adam_m", "second:adam_v"];
    assert_eq!(names(&checkpoint), all);
    holds(foreign, "first", Dtype::F32, &[4, 3]);
    holds(foreign, "second", Dtype::F32, &[7]);
    for (name, count) in [("first", 12), ("second", 7)] {
        let n = || (0..count).map(f64::from);
        let half: Vec<f64> = n().map(|n| n / 2.0).collect();
        assert_eq!(numbers(foreign, &format!("{name}:adam_m")), half);
        let squares: Vec<f64> = n().map(|n| n * n / 2.0).collect();
        assert_eq!(numbers(foreign, &format!("{name}:adam_v")), squares);
        assert_eq!(checkpoint.values[&format!("{name}:step")], Plain::Float(1.0));
    }
    let states = &checkpoint.values["model_states"];
    assert_eq!(states.get("global_steps"), Some(&Plain::Int(1)));
    assert_eq!(checkpoint.notes, [""; 0]);
}

/// A copy that lost files is no checkpoint of fewer parameters.
#[test]
fn a_parameter_without_all_its_files_is_refused_by_name() {
    let zero = |dir: &tempfile::TempDir| dir.path().join("zero");
    for (lost, names) in [
        (&["fp32.pt"][..], "first/fp32.pt: it is missing, and has the values of `first`"),
        (&["exp_avg.pt"], "first/exp_avg.pt: `first` lacks it"),
        (&["exp_avg.pt", "exp_avg_sq.pt"], "first/exp_avg.pt: `first` lacks it"),
        (&["fp32.pt", "exp_avg.pt", "exp_avg_sq.pt", "step.pt"], "first/fp32.pt: it is missing"),
    ] {
        let dir = copy("deepspeed");
        lost.iter().for_each(|file| fs::remove_file(zero(&dir).join("first").join(file)).unwrap());
        told(open_universal(dir.path()), names);
    }
    let dir = copy("deepspeed");
    let file = |parameter: &str| zero(&dir).join(parameter).join("exp_avg.pt");
    fs::copy(file("second"), file("first")).unwrap();
    told(open_universal(dir.path()), "first/exp_avg.pt: `first` is [7] here and [4, 3] in fp32.pt");
    // An optimizer without moments has none of any parameter.
    let dir = copy("deepspeed");
    for parameter in ["first", "second"] {
        for state in ["exp_avg.pt", "exp_avg_sq.pt"] {
            fs::remove_file(zero(&dir).join(parameter).join(state)).unwrap();
        }
    }
    assert_eq!(names(&open_universal(dir.path()).unwrap()), ["first", "second"]);
}

/// Its storage is larger than the tensor: the padding of a vocabulary was taken away.
#[test]
fn a_flipped_bit_beside_a_tensor_in_its_storage_is_found() {
    let dir = copy("deepspeed");
    let checkpoint = open_universal(dir.path()).unwrap();
    let piece = &checkpoint.foreign.tensors["first:adam_m"].pieces[0];
    assert_eq!(piece.crc32, None);
    let path = &checkpoint.foreign.files[piece.file];
    let mut data = fs::read(path).unwrap();
    data[piece.start as usize + 4 * 12 + 1] ^= 1;
    fs::write(path, data).unwrap();
    told(open_universal(dir.path()), "CRC-32");
}

#[test]
fn another_version_of_a_universal_checkpoint_is_refused() {
    let dir = copy("deepspeed");
    let path = dir.path().join("mp_rank_00_model_states.pt");
    let mut archive = fs::read(&path).unwrap();
    // As the pickle has it, and with the sums made right again, which a flipped bit has not.
    let at = find(&archive, &[&b"G"[..], &0.4_f64.to_be_bytes()].concat());
    let pickle = find(&archive, b"\x80\x02}");
    let end = find(&archive, b"PK\x07\x08");
    let sum = |bytes: &[u8]| {
        let algorithm = crc_fast::CrcAlgorithm::Crc32IsoHdlc;
        (crc_fast::checksum(algorithm, bytes) as u32).to_le_bytes()
    };
    let before = sum(&archive[pickle..end]);
    archive[at + 1..at + 9].copy_from_slice(&0.5_f64.to_be_bytes());
    fs::write(&path, &archive).unwrap();
    told(open_universal(dir.path()), "CRC-32");
    let after = sum(&archive[pickle..end]);
    while let Some(at) = archive.windows(4).position(|four| four == before) {
        archive[at..at + 4].copy_from_slice(&after);
    }
    fs::write(&path, &archive).unwrap();
    told(open_universal(dir.path()), "of version 0.5; [0.2, 0.3, 0.4] can be read");
    fs::remove_file(&path).unwrap();
    let checkpoint = open_universal(dir.path()).unwrap();
    assert!(checkpoint.notes[0].contains("mp_rank_00_model_states.pt is not there"));
    told(open_universal(&fixture("dcp")), "no `zero`");
}

/// Bytes in memory as elements.
struct Given(Dtype, Vec<u8>);

impl Elements for Given {
    fn dtype(&self) -> Dtype {
        self.0
    }

    fn len(&self) -> usize {
        self.1.len() / self.0.size_bytes()
    }

    fn read(&self, start: usize, out: &mut [u8]) -> Result<(), Error> {
        out.copy_from_slice(&self.1[start * self.0.size_bytes()..][..out.len()]);
        Ok(())
    }
}

fn given(name: &str, dtype: Dtype, shape: &[usize]) -> Outgoing<'static> {
    let len = shape.iter().product::<usize>() * dtype.size_bytes();
    let bytes = (0..len).map(|k| (31 * k + name.len()) as u8).collect();
    let elements = Box::new(Given(dtype, bytes));
    Outgoing { name: name.to_owned(), shape: shape.to_vec(), elements }
}

#[test]
fn what_is_written_is_read_back() {
    let above = tempfile::tempdir().unwrap();
    let target = above.path().join("out");
    let tensors = || {
        let all = Dtype::ALL.iter().map(|&dtype| given(&format!("t.{dtype}"), dtype, &[3, 5]));
        let others = [
            given("scalar", Dtype::F32, &[]),
            given("empty", Dtype::F32, &[4, 0]),
            given("blocks", Dtype::F32, &[1024, 1025]),
            given("名前", Dtype::Bf16, &[2, 1, 3]),
        ];
        all.chain(others).collect::<Vec<Outgoing>>()
    };
    let written = write_dcp(&target, tensors(), &DcpOptions { max_file_bytes: 20_000 }).unwrap();
    assert_eq!(written.path, target);
    let on_disk = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let lengths: Vec<u64> = on_disk.map(|found| found.len()).collect();
    assert_eq!((lengths.len(), lengths.iter().sum()), (written.files + 1, written.bytes));
    // The large one has a file of its own.
    let small = lengths.iter().filter(|&&len| len <= 20_000).count();
    assert!(written.files >= 3 && small == written.files, "{lengths:?}");
    let checkpoint = open_dcp(&target).unwrap();
    assert_eq!(names(&checkpoint).len(), tensors().len());
    for Outgoing { name, shape, elements } in tensors() {
        let found = &checkpoint.foreign.tensors[&name];
        assert_eq!((found.dtype, &found.shape), (elements.dtype(), &shape), "{name}");
        let mut wanted = vec![0; elements.len() * elements.dtype().size_bytes()];
        elements.read(0, &mut wanted).unwrap();
        assert_eq!(bytes(&checkpoint.foreign, &name).unwrap(), wanted, "{name}");
        assert!(found.pieces.iter().all(|piece| piece.crc32.is_some()));
    }
}

#[test]
fn a_write_that_fails_leaves_nothing() {
    struct Broken;
    impl Elements for Broken {
        fn dtype(&self) -> Dtype {
            Dtype::U8
        }
        fn len(&self) -> usize {
            3
        }
        fn read(&self, _: usize, _: &mut [u8]) -> Result<(), Error> {
            Err(Error::Tensor { name: "broken".to_owned(), reason: "on purpose".to_owned() })
        }
    }
    let above = tempfile::tempdir().unwrap();
    let target = above.path().join("out");
    let broken = || Outgoing {
        name: "broken".to_owned(),
        shape: vec![3],
        elements: Box::new(Broken) as Box<dyn Elements>,
    };
    let twice = vec![given("a", Dtype::U8, &[1]), given("a", Dtype::U8, &[1])];
    let other = Outgoing { shape: vec![4], ..broken() };
    for (tensors, wanted) in [
        (vec![given("a", Dtype::U8, &[1]), broken()], "on purpose"),
        (twice, "two of this name"),
        (vec![other], "shape [4] is not of 3 elements"),
    ] {
        let told = write_dcp(&target, tensors, &DcpOptions::default()).unwrap_err().to_string();
        assert!(told.contains(wanted), "{told}");
        assert_eq!(fs::read_dir(above.path()).unwrap().count(), 0);
    }
}
