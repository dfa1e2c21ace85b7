//! The classical collectives, messages and counters, on both backends.

mod common;

use comm::{AllToAll, EvenPlan, Op, Operation, P2p};
use common::{BACKENDS, PATIENCE_MS, control, with_ranks};
use device::{DType, Device, Stream, Tensor};
use layout::Tree;

fn filled(stream: &Stream, tensor: &Tensor, value: impl Fn(usize) -> f32) {
    let values: Vec<f32> = (0..tensor.len()).map(value).collect();
    stream.copy_in(tensor, &values).unwrap();
}

#[test]
fn all_reduce_adds_in_the_order_of_the_tree() {
    let value = |rank: usize, i: usize| (rank as f32 + 0.1) * 1.000_1_f32.powi(i as i32 % 997);
    for (kind, world) in BACKENDS.into_iter().flat_map(|kind| [1, 2, 3, 6].map(|w| (kind, w))) {
        let tree = Tree::for_leaves(world);
        for len in [0, 1, 5, 70_001] {
            let plan = EvenPlan::new(&tree, 0..len, DType::F32);
            let got = with_ranks(kind, world, PATIENCE_MS, |world| {
                let device = Device::cpu(1 + world.rank() % 2).unwrap();
                let group = world.group(&device).unwrap();
                let stream = device.stream();
                let window = group.window(4 * len).unwrap();
                let tensor = window.tensor(0, &[len], DType::F32).unwrap();
                for _ in 0..2 {
                    filled(&stream, &tensor, |i| value(world.rank(), i));
                    let (window, plan) = (window.clone(), plan.clone());
                    group.run(&stream, Op::AllReduce { window, plan }).unwrap();
                }
                stream.to_vec::<f32>(&tensor).unwrap()
            });
            let leaf = |i: usize| move |rank: usize| value(rank, i);
            let expected: Vec<f32> = (0..len).map(|i| sum(&tree, 0..world, 0, &leaf(i))).collect();
            for (rank, got) in got.iter().enumerate() {
                assert!(*got == expected, "{kind}, rank {rank} of {world}, {len} elements");
            }
        }
    }
}

/// The sum of a node, from the definition: a left fold over its children.
fn sum(
    tree: &Tree,
    node: std::ops::Range<usize>,
    depth: usize,
    leaf: &dyn Fn(usize) -> f32,
) -> f32 {
    if node.len() == 1 {
        return leaf(node.start);
    }
    let width = node.len() / tree.radices()[depth];
    let children = (node.start..node.end).step_by(width);
    let sums = children.map(|start| sum(tree, start..start + width, depth + 1, leaf));
    sums.reduce(|a, b| a + b).unwrap()
}

#[test]
fn broadcast_replaces_a_range_everywhere() {
    for kind in BACKENDS {
        let got = with_ranks(kind, 3, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let (stream, group) = (device.stream(), world.group(&device).unwrap());
            let window = group.window(400).unwrap();
            let tensor = window.tensor(0, &[100], DType::F32).unwrap();
            filled(&stream, &tensor, |_| world.rank() as f32);
            let op = Op::Broadcast { window, root: 2, element_bytes: 4, range: 10..30 };
            group.run(&stream, op).unwrap();
            stream.to_vec::<f32>(&tensor).unwrap()
        });
        for (rank, got) in got.iter().enumerate() {
            let expected = |i| if (10..30).contains(&i) { 2.0 } else { rank as f32 };
            assert!(got.iter().enumerate().all(|(i, &x)| x == expected(i)), "{kind}: {got:?}");
        }
    }
}

#[test]
fn all_to_all_gives_each_rank_its_part() {
    // Rank s gives rank r (s + 2r) elements of value 10s + r; some parts are empty.
    let count = |from: usize, to: usize| (from + 2 * to) * 40_000 / 7;
    let offsets = |counts: [usize; 3]| {
        let mut at = 0;
        counts.map(|count| {
            at += count;
            at - count..at
        })
    };
    for kind in BACKENDS {
        with_ranks(kind, 3, PATIENCE_MS, |world| {
            let rank = world.rank();
            let device = Device::cpu(2).unwrap();
            let (stream, group) = (device.stream(), world.group(&device).unwrap());
            let send = offsets([0, 1, 2].map(|to| count(rank, to)));
            let receive = offsets([0, 1, 2].map(|from| count(from, rank)));
            let window = group.window(4 * 70_000).unwrap();
            let from = window.tensor(0, &[70_000], DType::F32).unwrap();
            filled(&stream, &from, |i| {
                let to = send.iter().position(|part| part.contains(&i)).unwrap_or(9);
                (10 * rank + to) as f32
            });
            let into = device.zeros(&[receive[2].end], DType::F32).unwrap();
            let (send, into_ranges) = (send.to_vec(), receive.to_vec());
            let op = AllToAll { from: window, send, into: into.clone(), receive: into_ranges };
            group.run(&stream, Op::AllToAll(op)).unwrap();
            let got = stream.to_vec::<f32>(&into).unwrap();
            for (source, part) in receive.iter().enumerate() {
                let expected = (10 * source + rank) as f32;
                assert!(got[part.clone()].iter().all(|&x| x == expected), "{kind} {rank}");
            }
            let sent: usize = (0..3).filter(|&to| to != rank).map(|to| count(rank, to)).sum();
            let counted = world.counters().of(Operation::AllToAll);
            assert_eq!(counted.payload_sent_bytes, 4 * sent as u64, "{kind}");
        });
    }
}

#[test]
fn messages_between_two_ranks_keep_their_order_and_size() {
    for kind in BACKENDS {
        with_ranks(kind, 3, PATIENCE_MS, |world| {
            let device = Device::cpu(1).unwrap();
            let (stream, group) = (device.stream(), world.group(&device).unwrap());
            let rank = world.rank();
            let (next, last) = ((rank + 1) % 3, (rank + 2) % 3);
            for round in 0..3 {
                for len in [0, 1, 2048, 2049, 100_000] {
                    let mine = device.zeros(&[len], DType::F32).unwrap();
                    filled(&stream, &mine, |i| (round * 7 + rank * 100 + i) as f32);
                    let theirs = device.zeros(&[len], DType::F32).unwrap();
                    let send = P2p::Send { to: next, tensor: mine };
                    let receive = P2p::Receive { from: last, tensor: theirs.clone() };
                    let run = |messages| group.run(&stream, Op::Exchange(messages)).unwrap();
                    // Around the ring, one by one and all at once.
                    match (round, rank) {
                        (0, 0) => [send, receive].map(|message| run(vec![message])),
                        (0, _) => [receive, send].map(|message| run(vec![message])),
                        _ => [run(vec![send, receive]), ()],
                    };
                    let got = stream.to_vec::<f32>(&theirs).unwrap();
                    let expected = |i| (round * 7 + last * 100 + i) as f32;
                    assert!(got.iter().enumerate().all(|(i, &x)| x == expected(i)), "{kind}");
                }
                control(&world).barrier().unwrap();
            }
        });
    }
}

#[test]
fn control_messages_of_any_length() {
    for kind in BACKENDS {
        with_ranks(kind, 3, PATIENCE_MS, |world| {
            let control = control(&world);
            let message = |rank: usize, len: usize| -> Vec<u8> {
                (0..len).map(|i| (i * 31 + rank) as u8).collect()
            };
            let mut all = Vec::new();
            for len in [0, 1, 7, 65_536, 65_537, 1_500_000] {
                // Each rank has a length of its own.
                let length = |rank: usize| len * (rank + 1) / 3;
                let rank = world.rank();
                control.all_gather_bytes_into(&message(rank, length(rank)), &mut all).unwrap();
                for (from, got) in all.iter().enumerate() {
                    assert!(*got == message(from, length(from)), "{kind} {len} {from}");
                }
                let mut bytes = message(rank, length(rank));
                control.broadcast_bytes(1, &mut bytes).unwrap();
                assert!(bytes == message(1, length(1)), "{kind} {len}");
                let gathered = control.gather_bytes_to(2, &message(rank, length(rank))).unwrap();
                let expected = |from| match rank {
                    2 => message(from, length(from)),
                    _ => Vec::new(),
                };
                assert!(gathered == [0, 1, 2].map(expected), "{kind} {len}");
            }
            let counted = world.counters().of(Operation::AllGatherBytes);
            assert_eq!(counted.calls, 6);
            assert!(counted.payload_received_bytes > 1_000_000);
            // Only the root is sent anything, and by each of the others once.
            let counted = world.counters().of(Operation::GatherBytes);
            assert_eq!(counted.payload_received_bytes > 0, world.rank() == 2, "{kind}");
            // A mistake ends the job, in which nobody should be busy any more; who is told of the
            // barrier's end last may hear of the mistake instead.
            let _ = control.barrier();
            assert!(control.gather_bytes_to(3, b"").is_err());
        });
    }
}
