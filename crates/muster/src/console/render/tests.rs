//! A run as people see it, as snapshots: progress, troubles, every ending, with color and without.

use train::event::{
    Action, Corpus, Initialized, NonFinite, Operation, Place, Profile, Restarting, Resumed, Spread,
    Times,
};

use super::*;

fn header() -> Event {
    Event::Header(Header {
        version: "0.1.0".into(),
        name: "quickstart".into(),
        config_digest: "0123456789abcdef".into(),
        data_digest: "fedcba9876543210".into(),
        parameters: 2_123_456,
        active_parameters: 987_654,
        steps: 600,
        tokens_per_step: 4096,
        leaves: 12,
        radices: vec![2, 2, 3],
        ranks: 2,
        backend: "shm".into(),
        threads: 1,
        cpus: "bound: rank 0 in NUMA node 0, rank 1 in NUMA node 1".into(),
        restarts: "3 until the next checkpoint, after 1 s, doubling to 60 s".into(),
        device: "cpu".into(),
        buckets: Some(train::event::Buckets {
            count: 3,
            bytes: 4 << 20,
            reason: "as configured (ranks.bucket_bytes)".into(),
        }),
        offload: None,
        weights: "f32".into(),
        free: true,
        byte_factor: 1.0,
        hosts: None,
        mixed_cpus: false,
        memory: vec![("weights".into(), 8_493_824), ("activations".into(), 52_428_800)],
        optimizer: vec!["muon  100 matrices, rms".into(), "adamw 12 others".into()],
        balance: 0.98,
        critical: Some("model.layers.0.mlp.up_proj.weight".into()),
        clip: "global 1".into(),
        corpus: vec![Corpus {
            name: "crates".into(),
            tokens: 9_000_000,
            documents: 812,
            left_out: None,
            bytes: Some(8_999_188),
            weight: 1.0,
            digest: "abcdef0123456789".into(),
        }],
        run_dir: "runs/quickstart".into(),
    })
}

fn step(step: u64) -> Step {
    Step {
        step,
        loss: 1.83421,
        bits_per_byte: Some(2.6459),
        grad_norm: 0.4123,
        lr: 0.018,
        ms: 152.3,
        tokens: 4096,
        tokens_per_s: 13_474.4,
        expert_load: Some([0.71, 0.98, 1.34]),
        dead_experts: 0,
        skipped: false,
        phases_ms: [100.0, 20.0, 30.0, 2.3],
        data_ms: 0.0,
    }
}

fn finished(reason: FinishReason, step: u64) -> Event {
    Event::Finished(Finished {
        step,
        reason,
        seconds: 91.4,
        tokens: 2_457_600,
        tokens_in_all: 2_457_600,
        final_loss: Some(1.2345),
        final_bits_per_byte: Some(1.781),
        peak_anonymous_bytes: 310 << 20,
        planned_bytes: 300 << 20,
        weights_digest: "00112233445566778899".into(),
        checkpoint: Some("runs/quickstart/checkpoints/step-00000600.g0001".into()),
        times: Times {
            start_ms: 310.0,
            data_ms: 95.0,
            forward_backward_ms: 64_900.0,
            reduce_ms: 4_100.0,
            optimizer_ms: 13_700.0,
            gather_ms: 2_000.0,
            evaluation_ms: 3_600.0,
            saves_ms: 1_700.0,
            sample_ms: 900.0,
            all_ms: 92_300.0,
        },
        spreads: Vec::new(),
    })
}

#[test]
fn ranks_are_compared_where_there_are_several() {
    let spread = |name: &str, [min_ms, median_ms, max_ms]: [f64; 3], slowest| Spread {
        name: name.into(),
        min_ms,
        median_ms,
        max_ms,
        slowest,
    };
    let Event::Finished(mut end) = finished(FinishReason::MaxSteps, 600) else { panic!() };
    end.spreads = vec![
        spread("forward", [20_000.0, 21_000.0, 25_000.0], 3),
        spread("gather", [900.0, 1_000.0, 1_200.0], 12),
        spread("saves", [1.0, 2.0, 3.0], 0),
        spread("all_gather_segments waiting", [3.0, 400.0, 5_000.0], 1),
    ];
    let all = render(&[Event::Finished(end)]);
    let (_, rest) = all.split_once("  ranks ").unwrap();
    let (table, _) = rest.split_once("  validation").unwrap();
    insta::assert_snapshot!(table.trim_end());
}

fn profile() -> Event {
    let operation = |name: &str, calls, ms, flops, bytes| Operation {
        name: name.into(),
        calls,
        ms,
        flops,
        bytes,
    };
    Event::Profile(Profile {
        ms: 91_000.0,
        operations: vec![
            operation("matmul", 120_000, 45_500.0, Some(7_100_000_000_000), None),
            operation("adamw", 600, 1_820.0, None, Some(21_800_000_000)),
            operation("attention_forward", 9_600, 12.3, None, None),
        ],
    })
}

fn render(events: &[Event]) -> String {
    let mut renderer = Renderer::new(false);
    let lines: Vec<String> = events.iter().map(|event| renderer.render(event)).collect();
    lines.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_whole_run() {
    let events = [
        header(),
        Event::Baseline { bits_per_byte: 2.412, train_bytes: 8_500_000, validation_bytes: 500_000 },
        Event::Step(step(1)),
        Event::Step(Step { expert_load: None, bits_per_byte: None, ms: 3.21, ..step(20) }),
        Event::Evaluation(Evaluation {
            step: 100,
            loss: 1.91,
            bits_per_byte: Some(2.755),
            samples: 256,
            ms: 1240.0,
        }),
        Event::Saved(Saved {
            step: 100,
            path: "runs/quickstart/checkpoints/step-00000100.g0001".into(),
            bytes: 25_000_000,
            ms: 210.0,
        }),
        Event::Removed { paths: vec!["step-00000050.g0001".into()] },
        Event::Sample { prompt: "fn ".into(), text: "main() {\n\tlet x = \x1b[2J1;\r\n}".into() },
        profile(),
        finished(FinishReason::Complete, 600),
    ];
    insta::assert_snapshot!(render(&events));
}

#[test]
fn troubles() {
    let Event::Header(plain) = header() else { unreachable!() };
    let odd = Header {
        free: false,
        byte_factor: 1.5,
        hosts: Some(2),
        mixed_cpus: true,
        ranks: 3,
        cpus: "not bound: one NUMA node has all their CPUs".into(),
        radices: vec![],
        ..plain
    };
    let events = [
        Event::Header(odd),
        Event::Resumed(Resumed {
            step: 100,
            path: "runs/quickstart/checkpoints/step-00000100.g0001".into(),
            skipped: vec![("step-00000150.g0002".into(), "it has no COMMIT".into())],
            written_by: 4,
        }),
        Event::Restarting(Restarting {
            failure: "rank 1 failed: killed by signal 9; its last step was 7".into(),
            number: 1,
            of: 3,
            wait_s: 1.0,
            hosts: None,
        }),
        Event::Restarting(Restarting {
            failure: "ranks 2 and 3 failed: the host's supervisor said nothing for 30012 ms".into(),
            number: 2,
            of: 3,
            wait_s: 2.0,
            hosts: Some((1, 2)),
        }),
        Event::Initialized(Initialized { path: "imported".into(), step: 0 }),
        Event::NonFinite(NonFinite {
            step: 101,
            places: vec![
                Place { parameter: "model.embed_tokens.weight".into(), at: Some((1, 7)) },
                Place { parameter: "lm_head.weight".into(), at: None },
            ],
            action: Action::Skipped,
        }),
        Event::Step(Step { skipped: true, dead_experts: 3, ..step(101) }),
        Event::Warning { message: "16 experts got no token for 50 steps".into() },
    ];
    insta::assert_snapshot!(render(&events));
}

#[test]
fn every_ending() {
    let reasons = [
        FinishReason::Complete,
        FinishReason::AlreadyComplete,
        FinishReason::MaxSteps,
        FinishReason::Interrupted,
        FinishReason::Terminated,
    ];
    let baseline = Event::Baseline { bits_per_byte: 1.7, train_bytes: 1000, validation_bytes: 100 };
    let endings: Vec<String> = reasons
        .into_iter()
        .map(|reason| {
            let mut end = finished(reason, 600);
            if let (FinishReason::Complete, Event::Finished(end)) = (reason, &mut end) {
                end.tokens_in_all *= 2; // It had been resumed.
            }
            let all = render(&[header(), baseline.clone(), end]);
            let from = all.find("2 validation").or(all.find("bpb")).unwrap_or(0);
            all[from..].lines().skip(1).collect::<Vec<_>>().join("\n")
        })
        .collect();
    insta::assert_snapshot!(endings.join("\n\n"));
}

#[test]
fn color_is_only_for_terminals_that_show_it() {
    assert!(Renderer::new(true).render(&header()).contains(BOLD));
    assert!(!Renderer::new(false).render(&header()).contains(BOLD));
}
