//! A step of 2 or 4 ranks over 12 or 16 leaves moves the gradient bytes of a ring reduce-scatter,
//! (N − 1) · P · 4 over all ranks for P parameters, and over TCP one frame header per peer and
//! operation on top.
//!
//! Bytes are counted by the code that copies out of a peer's window, and that writes to and reads
//! from a socket, not from the plan: what is moved twice, or for nothing, counts.

mod rank;

use comm::{Counters, Operation};
use train::Wants;

const STEPS: u64 = 2;

#[test]
fn the_gradient_bytes_of_a_ring() {
    for (leaves, world) in [(12, 2), (12, 4), (16, 2), (16, 4)] {
        for kind in ["shm", "tcp"] {
            let dir = tempfile::tempdir().unwrap();
            let mut config = rank::config(dir.path(), leaves);
            // Several buckets.
            config.ranks.bucket_bytes = Some(16 << 10);
            let counted = rank::with_group(kind, world, |world| {
                let device = device::Device::cpu(1).unwrap();
                let cache = dir.path().join(world.rank().to_string());
                let mut trainer = rank::trainer(&config, &cache, world, &device);
                for _ in 0..STEPS {
                    trainer.take_step(Wants::default()).unwrap();
                }
                let plan = trainer.plan();
                let parameters = plan.schema.parameters() as u64;
                assert_eq!(plan.byte_factor(), 1.0);
                (trainer.counters(), parameters, plan.flat.buckets.len() as u64)
            });
            let place = format!("{kind}, {world} ranks, {leaves} leaves");
            let (_, parameters, buckets) = counted[0];
            assert!(buckets > 1, "{place}");
            let of = |counters: &Counters| counters.of(Operation::ReduceScatterOrdered);
            let sum = |what: fn(comm::Count) -> u64| -> u64 {
                counted.iter().map(|(counters, ..)| what(of(counters))).sum()
            };
            let ring = (world as u64 - 1) * parameters * 4 * STEPS;
            assert_eq!(sum(|count| count.payload_sent_bytes), ring, "{place}");
            assert_eq!(sum(|count| count.payload_received_bytes), ring, "{place}");
            let frames = (world * (world - 1)) as u64 * buckets * STEPS;
            let headers = if kind == "tcp" { frames * comm::tcp::HEADER_BYTES as u64 } else { 0 };
            assert_eq!(sum(|count| count.header_sent_bytes), headers, "{place}");
            for (counters, ..) in &counted {
                assert_eq!(of(counters).calls, buckets * STEPS, "{place}");
            }
        }
    }
}

#[test]
fn between_hosts_go_the_bytes_that_the_plan_says() {
    // Of 2 hosts one partial each; of 3 hosts two, three and two; of 2 hosts two each.
    for (leaves, world, partials) in [(16, 4, 2.0), (12, 6, 7.0), (6, 4, 4.0)] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = rank::config(dir.path(), leaves);
        config.ranks.bucket_bytes = Some(16 << 10);
        let counted = rank::with_group("2 a host", world, |world| {
            let device = device::Device::cpu(1).unwrap();
            let cache = dir.path().join(world.rank().to_string());
            let mut trainer = rank::trainer(&config, &cache, world, &device);
            for _ in 0..STEPS {
                trainer.take_step(Wants::default()).unwrap();
            }
            let plan = trainer.plan();
            assert!(plan.byte_factor_by_hosts(2, usize::MAX).is_none(), "nothing is as large");
            let factor = plan.byte_factor_by_hosts(2, 0).unwrap();
            let sent = trainer.counters().of(Operation::ReduceScatterOrdered).socket_sent_bytes;
            (factor, plan.schema.parameters() as u64, sent)
        });
        let (factor, parameters, _) = counted[0];
        let sent: u64 = counted.iter().map(|(.., sent)| sent).sum();
        let hosts = world as u64 / 2;
        let ring = (hosts - 1) * parameters * 4 * STEPS;
        let place = format!("{leaves} leaves on {world} ranks");
        assert_eq!((factor * ring as f64).round() as u64, sent, "{place}");
        assert!((factor / (partials / hosts as f64) - 1.0).abs() < 0.2, "{place}: {factor}");
    }
}
