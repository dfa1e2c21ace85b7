//! Groups beside each other, and work beside operations.

use comm::{EvenPlan, Group, Op, Pending, Window};
use device::{DType, Device, Tensor};
use layout::Tree;

use crate::job::{Job, Rank};

const LEN: usize = 5000;

/// A group with a sum of its own.
struct Sum {
    group: Group,
    tensor: Tensor,
    op: comm::Prepared,
}

impl Sum {
    fn new(group: Group, ranks: usize) -> Sum {
        let window: Window = group.window(4 * LEN).unwrap();
        let tensor = window.tensor(0, &[LEN], DType::F32).unwrap();
        let plan = EvenPlan::new(&Tree::for_leaves(ranks), 0..LEN, DType::F32);
        let op = group.prepare(Op::AllReduce { window, plan }).unwrap();
        Sum { group, tensor, op }
    }

    fn fill(&self, device: &Device, value: f32) {
        device.stream().copy_in(&self.tensor, &[value; LEN]).unwrap();
    }

    fn submit(&self, device: &Device) -> Pending {
        self.group.submit(&device.stream(), &self.op).unwrap()
    }

    fn expect(&self, device: &Device, value: f32) {
        let got = device.stream().to_vec::<f32>(&self.tensor).unwrap();
        assert!(got.iter().all(|&x| x == value), "{} instead of {value}", got[0]);
    }
}

/// Ranks submit to two groups in different orders, and each group goes on by itself.
pub fn interleaved(rank: &Rank) {
    let (world, device) = rank.connect();
    let sums = [(), ()].map(|()| Sum::new(world.group(&device).unwrap(), rank.ranks));
    for round in 0..6_usize {
        for (at, sum) in sums.iter().enumerate() {
            sum.fill(&device, (rank.rank + at + round) as f32);
        }
        let first = (rank.rank + round) % 2;
        let pending = [first, 1 - first].map(|at| (at, sums[at].submit(&device)));
        // Waited for in the same order on all ranks, which is the order of one of them alone.
        for at in [0, 1] {
            let (_, pending) = pending.iter().find(|(of, _)| *of == at).unwrap();
            pending.wait().unwrap();
            let all = (0..rank.ranks).map(|rank| (rank + at + round) as f32).sum();
            sums[at].expect(&device, all);
        }
    }
}

#[test]
fn groups_go_on_beside_each_other_in_both_orders() {
    for (vendor, backend, seed) in [("cuda", "shm", "0"), ("hip", "tcp", "3")] {
        let Some(job) = Job::new("interleaved", vendor, 2) else { return };
        let job = job.backend(backend).env("LOOKALIKE_NCCL_SEED", seed);
        job.passes().iter().for_each(|said| said.without_complaint());
    }
}

/// Nobody waits in `submit`: rank 0 submits everything before rank 1 does anything.
pub fn overlap(rank: &Rank) {
    let (world, device) = rank.connect();
    let sum = Sum::new(world.group(&device).unwrap(), rank.ranks);
    sum.fill(&device, 1.0);
    let go = rank.dir.join("go");
    if rank.rank > 0 {
        crate::job::until("rank 0", || go.exists());
    }
    let pending: Vec<Pending> = (0..4).map(|_| sum.submit(&device)).collect();
    if rank.rank == 0 {
        assert!(!pending[0].is_done().unwrap(), "the other rank has not begun");
        std::fs::write(go, "").unwrap();
    }
    // Later work of the stream waits on the device, and the host does not.
    pending[3].then(&device.stream()).unwrap();
    sum.expect(&device, (rank.ranks as f32).powi(4));
    pending[3].wait().unwrap();
    assert!(pending.iter().all(|pending| pending.is_done().unwrap()));
}

#[test]
fn submitting_waits_for_nobody() {
    for seed in ["0", "9"] {
        let Some(job) = Job::new("overlap", "cuda", 3) else { return };
        let job = job.env("LOOKALIKE_NCCL_SEED", seed);
        job.passes().iter().for_each(|said| said.without_complaint());
    }
}
