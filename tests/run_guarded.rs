//! The guarded device, whose memory only kernels may touch, trains, saves and resumes, and ends
//! with the bits of the CPU: nothing on the way assumes that device memory is host memory.

mod common;

use common::{DENSE, LATENT, Workdir};

const GUARDED: [&str; 2] = ["--set", "ranks.device=guarded"];

#[test]
fn the_guarded_device_has_the_bits_of_the_cpu() {
    let run = Workdir::new("guarded");
    let [dense, latent] = [DENSE, LATENT].map(|model| format!("model={model}"));
    let models: [&[&str]; 3] = [
        &["--set", "train.steps=4"],
        &["--set", "train.steps=4", "--set", &dense],
        &["--set", "train.steps=4", "--set", &latent],
    ];
    for (index, model) in models.into_iter().enumerate() {
        let (cpu, guarded) = (format!("cpu-{index}"), format!("guarded-{index}"));
        let expected = run.digest(&cpu, model);
        let device = [&GUARDED[..], model].concat();
        // Two ranks save after step 2; three go on.
        let begin = [&device[..], &["--ranks", "2", "--max-steps", "2"]].concat();
        run.digest(&guarded, &begin);
        assert_eq!(run.finished(&guarded)["reason"], "max_steps");
        let end = [&device[..], &["--ranks", "3", "--backend", "tcp"]].concat();
        assert_eq!(run.digest(&guarded, &end), expected);
        let resumed = run.events_of(&guarded, "resumed");
        assert_eq!((resumed.len(), &resumed[0]["step"]), (1, &2.into()));
        assert_eq!(run.events_of(&guarded, "header")[0]["device"], "guarded");
        assert!(run.verify(&guarded) > 0);
    }
}
