//! Every operation of the model, on every kind of device: it runs on the host, and where there is
//! no code for it yet it says so; operands of mixed types are refused before anything is enqueued.

use device::{Arch, DType, Device, DeviceError, SimOptions, Stream, Tensor};
use kernels::attention::{self, Heads, Panels};
use kernels::gemm::{Matmul, Matrix};
use kernels::moe::{self, Router, Routing};
use kernels::norm::{self, Rows, Vectors};
use kernels::rope::{self, Pairs, Turn};
use kernels::{KernelError, Onto, Op, elementwise, embedding, loss, mlp};

/// The operands of operations, and the outcome of each.
struct Bench {
    device: Device,
    stream: Stream,
    dtype: DType,
    /// Of the operand that is first in each operation's list.
    first: DType,
    done: Vec<(&'static str, Result<(), KernelError>)>,
}

impl Bench {
    fn new(device: Device, dtype: DType, first: DType) -> Bench {
        let stream = device.stream();
        Bench { device, stream, dtype, first, done: Vec::new() }
    }

    fn zeros(&self, dims: &[usize], dtype: DType) -> Tensor {
        self.device.zeros(dims, dtype).unwrap()
    }

    fn real(&self, dims: &[usize]) -> Tensor {
        self.zeros(dims, self.dtype)
    }

    fn first(&self, dims: &[usize]) -> Tensor {
        self.zeros(dims, self.first)
    }

    fn rows(&self, dims: &[usize]) -> Vectors {
        Vectors::rows_of(self.real(dims))
    }

    fn integers(&self, dims: &[usize]) -> Tensor {
        self.zeros(dims, DType::U32)
    }

    fn launch<O: Op>(&mut self, operation: O) {
        self.done.push((O::NAME, operation.launch(&self.stream)));
    }
}

/// Six rows of eight.
const NARROW: [usize; 2] = [6, 8];
const WIDE: [usize; 2] = [6, 16];

fn norms(b: &mut Bench) {
    let (add, rows) = (Onto::Add, Rows::dense(6, 8));
    let x = Vectors::rows_of(b.first(&NARROW));
    let (gain, y, rstd) = (b.real(&[8]), b.rows(&NARROW), b.real(&[6]));
    b.launch(norm::RmsForward { x: x.clone(), gain, eps: 1e-6, y, rstd });
    b.launch(norm::RmsBackward {
        dy: x.clone(),
        x: b.rows(&NARROW),
        gain: b.real(&[8]),
        rstd: b.real(&[6]),
        dx: b.rows(&NARROW),
        dx_onto: add,
        dgain: b.real(&[8]),
        dgain_onto: add,
    });
    b.launch(norm::RmsBackwardInPlace {
        d: b.real(&NARROW),
        x: x.tensor.clone(),
        rows,
        gain: b.real(&[8]),
        rstd: b.real(&[6]),
        dgain: b.real(&[8]),
        dgain_onto: add,
    });
    let x = x.tensor;
    let (gain, bias, y, stats) = (b.real(&[8]), b.real(&[8]), b.real(&NARROW), b.real(&[6, 2]));
    b.launch(norm::LayerForward { x: x.clone(), gain, bias, eps: 1e-6, y, stats });
    b.launch(norm::LayerBackward {
        dy: x,
        x: b.real(&NARROW),
        gain: b.real(&[8]),
        stats: b.real(&[6, 2]),
        dx: b.real(&NARROW),
        dx_onto: add,
        dgain: b.real(&[8]),
        dbias: b.real(&[8]),
        weights_onto: add,
    });
}

fn attentions(b: &mut Bench) {
    let heads = Heads::packed(2, 3, 2, 1, 4);
    let (qkv, doc_start) = (Panels::packed(heads, b.first(&WIDE)), b.integers(&[6]));
    b.launch(attention::Forward {
        heads,
        qkv: qkv.clone(),
        doc_start: doc_start.clone(),
        out: b.real(&NARROW),
        lse: b.real(&[2, 2, 3]),
        workspace: b.real(&[heads.forward_workspace()]),
    });
    b.launch(attention::Backward {
        heads,
        qkv,
        doc_start,
        out: b.real(&NARROW),
        lse: b.real(&[2, 2, 3]),
        dout: b.real(&NARROW),
        dqkv: Panels::packed(heads, b.real(&WIDE)),
        workspace: b.real(&[heads.backward_workspace()]),
    });
    let table = b.first(&[3, 2, 2]);
    let (rows, pairs, turn) = (Rows::heads(6, 16, 0, 3, 4), Pairs::Halves, Turn::Back);
    b.launch(rope::Rotate { table, x: Vectors { tensor: b.real(&WIDE), rows }, pairs, turn });
    let vectors = |tensor, heads, len| Vectors { tensor, rows: Rows::heads(6, 16, 0, heads, len) };
    b.launch(attention::JoinKeys {
        per_head: vectors(b.first(&WIDE), 3, 2),
        shared: vectors(b.real(&WIDE), 1, 3),
        keys: vectors(b.real(&WIDE), 3, 5),
    });
    b.launch(attention::JoinKeysBackward {
        dkeys: vectors(b.first(&WIDE), 3, 5),
        dper_head: vectors(b.real(&WIDE), 3, 2),
        dshared: vectors(b.real(&WIDE), 1, 3),
    });
}

fn mlps(b: &mut Bench) {
    let add = Onto::Add;
    b.launch(mlp::AddBias { bias: b.first(&[8]), y: b.real(&NARROW) });
    b.launch(mlp::BiasBackward { dy: b.first(&NARROW), dbias: b.real(&[8]), dbias_onto: add });
    b.launch(mlp::SwigluForward { gate_up: b.first(&WIDE), y: b.real(&NARROW) });
    b.launch(mlp::SwigluBackward { dy: b.real(&NARROW), gate_up: b.first(&WIDE) });
    b.launch(mlp::GeluForward { x: b.first(&NARROW), y: b.real(&NARROW) });
    b.launch(mlp::GeluBackward { dy: b.real(&NARROW), x: b.first(&NARROW) });
    let (a, c) = (Matrix::of(b.first(&NARROW)), Matrix::of(b.real(&[6, 6])));
    let right = Matrix::of(b.real(&NARROW)).t();
    b.launch(Matmul { alpha: 1.0, a, b: right, beta: 0.0, c });
}

/// Experts, choices, and a routing of six tokens of which each is its own grouped row.
const ROUTER: Router = Router {
    experts: 2,
    top_k: 1,
    groups: 1,
    top_groups: 1,
    scores: moe::Scores::Softmax,
    shares: moe::Shares::Normalized,
    scale: 1.0,
    aux_loss: 0.1,
    z_loss: 0.1,
};

fn mixtures(b: &mut Bench) {
    let routing = Routing {
        scores: b.real(&[6, 2]),
        chosen: b.integers(&[6, 1]),
        weights: b.real(&[6, 1]),
        grouped: b.integers(&[6]),
        sources: b.integers(&[6]),
        offsets: b.integers(&[3]),
    };
    let routed = || routing.clone();
    let (logits, loads) = (b.real(&[6, 2]), b.integers(&[2]));
    let (router, bias) = (ROUTER, b.first(&[2]));
    b.launch(moe::Route { router, logits: logits.clone(), bias, routing: routed(), loads });
    let (dweights, dlogits) = (b.first(&[6, 1]), b.real(&[6, 2]));
    let (router, routing, tokens) = (ROUTER, routed(), 6.0);
    b.launch(moe::RouteBackward { router, logits, routing, dweights, tokens, dlogits });
    b.launch(moe::GroupRows { routing: routed(), x: b.first(&NARROW), y: b.real(&NARROW) });
    let (dy, dx) = (b.first(&NARROW), b.real(&NARROW));
    b.launch(moe::GroupRowsBackward { routing: routed(), dy, dx });
    b.launch(moe::Combine { routing: routed(), y: b.first(&NARROW), out: b.real(&NARROW) });
    let (y, dout, dweights) = (b.first(&NARROW), b.real(&NARROW), b.real(&[6, 1]));
    b.launch(moe::CombineBackward { routing: routed(), dout, y, dweights });
    let offsets = || routed().offsets;
    let (x, w, y) = (b.first(&NARROW), b.real(&[2, 16, 8]), b.real(&WIDE));
    b.launch(moe::ProductForward { offsets: offsets(), x, w: w.clone(), y });
    b.launch(moe::ProductInput { offsets: offsets(), dy: b.first(&WIDE), w, dx: b.real(&NARROW) });
    let (dy, x, dw) = (b.first(&WIDE), b.real(&NARROW), b.real(&[32, 8]));
    b.launch(moe::ProductWeight { offsets: offsets(), dy, x, dw, dw_onto: Onto::Overwrite });
}

fn tables_and_loops(b: &mut Bench) {
    let tokens = b.integers(&[6]);
    let gather =
        embedding::Gather { tokens: tokens.clone(), table: b.first(&[4, 8]), y: b.real(&NARROW) };
    b.launch(gather);
    let (dy, dtable) = (b.first(&NARROW), b.real(&[4, 8]));
    b.launch(embedding::ScatterAdd { tokens: tokens.clone(), dy: dy.clone(), dtable });
    let (table, y) = (b.first(&[4, 8]), b.real(&NARROW));
    b.launch(embedding::AddPositions { table, positions: 3, y });
    let (dtable, dtable_onto) = (b.real(&[4, 8]), Onto::Overwrite);
    b.launch(embedding::PositionsBackward { dy, positions: 3, dtable, dtable_onto });
    b.launch(loss::CrossEntropy {
        logits: b.real(&NARROW),
        logits_become: loss::Becomes::Gradient,
        targets: tokens,
        losses: b.first(&[6]),
    });
    b.launch(elementwise::Copy { x: b.first(&NARROW), y: b.real(&NARROW) });
    b.launch(elementwise::Add { x: b.first(&NARROW), y: b.real(&NARROW) });
}

/// Operations of one real operand, and those between two types.
fn conversions(b: &mut Bench) {
    let (values, out) = (b.real(&[6]), b.zeros(&[1], DType::F64));
    b.launch(loss::Total { values, out, out_onto: Onto::Add });
    b.launch(elementwise::Zero { y: b.real(&NARROW) });
    b.launch(elementwise::AllFinite { x: b.real(&NARROW), flag: b.integers(&[1]) });
    let (x, y) = (b.zeros(&NARROW, DType::Bf16), b.zeros(&NARROW, DType::F32));
    b.launch(elementwise::Widen { x, y });
}

fn all_of(b: &mut Bench) {
    for family in [norms, attentions, mlps, mixtures, tables_and_loops] {
        family(b);
    }
}

#[test]
fn the_host_runs_them_all() {
    for device in [Device::cpu(2).unwrap(), Device::guarded(1).unwrap()] {
        for dtype in [DType::F32, DType::F64] {
            let mut b = Bench::new(device.clone(), dtype, dtype);
            all_of(&mut b);
            conversions(&mut b);
            b.stream.synchronize().unwrap();
            assert_eq!(b.done.len(), 37);
            for (name, done) in b.done {
                assert!(done.is_ok(), "{name}: {done:?}");
            }
        }
    }
}

#[test]
fn a_device_without_their_code_says_so() {
    let device = Device::sim(Arch::Sm90a, 1, SimOptions::default()).unwrap();
    let mut b = Bench::new(device, DType::F32, DType::F32);
    all_of(&mut b);
    conversions(&mut b);
    for (name, done) in b.done {
        match done {
            Err(KernelError::NoDeviceCode { kernel, .. }) => assert_eq!(kernel, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn mixed_and_other_types_are_refused() {
    let device = Device::cpu(1).unwrap();
    for (dtype, first) in [(DType::F32, DType::F64), (DType::F64, DType::F32)] {
        let mut b = Bench::new(device.clone(), dtype, first);
        all_of(&mut b);
        for (name, done) in b.done {
            let refused =
                matches!(done, Err(KernelError::Argument { kernel, .. }) if kernel == name);
            assert!(refused, "{name}: {done:?}");
        }
    }
    let mut b = Bench::new(device, DType::Bf16, DType::Bf16);
    all_of(&mut b);
    for (name, done) in b.done {
        let refused = matches!(done, Err(KernelError::Dtype { kernel, .. }) if kernel == name);
        assert!(refused, "{name}: {done:?}");
    }
}

#[test]
fn memory_of_another_device_is_refused_where_kernels_get_addresses() {
    let device = Device::sim(Arch::Sm90a, 1, SimOptions::default()).unwrap();
    let mut b = Bench::new(Device::cpu(1).unwrap(), DType::F32, DType::F32);
    b.stream = device.stream();
    all_of(&mut b);
    for (name, done) in b.done {
        let foreign = matches!(
            done,
            Err(KernelError::Device(DeviceError::Foreign { kernel })) if kernel == name
        );
        assert!(foreign, "{name}: {done:?}");
    }
}
