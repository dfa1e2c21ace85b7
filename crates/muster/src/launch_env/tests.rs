//! Environments as launchers made them, shortened to what matters, and what is read of them.

use crate::cli::HostArgs;

use super::*;

/// `srun` of Slurm 22.05, two tasks on one machine.
const SLURM_ONE_MACHINE: &str = "
    SLURM_JOB_ID=7
    SLURM_JOBID=7
    SLURM_JOB_NODELIST=n1
    SLURM_JOB_NUM_NODES=1
    SLURM_LOCALID=1
    SLURM_NNODES=1
    SLURM_NODEID=0
    SLURM_NODELIST=n1
    SLURM_NPROCS=2
    SLURM_NTASKS=2
    SLURM_PROCID=1
    SLURM_STEP_ID=3
    SLURM_STEP_NODELIST=n1
    SLURM_STEP_NUM_NODES=1
    SLURM_STEP_NUM_TASKS=2
    SLURM_STEP_TASKS_PER_NODE=2
    SLURM_TASKS_PER_NODE=2";

/// `srun --ntasks-per-node=1` on three of the job's four nodes, after the job was requeued.
const SLURM: &str = "
    SLURM_JOB_ID=481516
    SLURM_JOB_NODELIST=gpu[008-010],login2
    SLURM_JOB_NUM_NODES=4
    SLURM_LOCALID=0
    SLURM_NNODES=4
    SLURM_NODEID=2
    SLURM_NTASKS=4
    SLURM_PROCID=2
    SLURM_RESTART_COUNT=1
    SLURM_STEP_ID=0
    SLURM_STEP_NODELIST=gpu[008-010]
    SLURM_STEP_NUM_NODES=3
    SLURM_STEP_NUM_TASKS=3
    SLURM_STEP_TASKS_PER_NODE=1(x3)
    SLURM_TASKS_PER_NODE=1(x4)";

/// The script of a batch job of two nodes.
const SLURM_SCRIPT: &str = "
    SLURM_JOB_ID=9
    SLURM_JOB_NODELIST=n[1-2]
    SLURM_JOB_NUM_NODES=2
    SLURM_LOCALID=0
    SLURM_NNODES=2
    SLURM_NODEID=0
    SLURM_NTASKS=2
    SLURM_PROCID=0
    SLURM_TASKS_PER_NODE=1(x2)";

/// `mpirun -n 2` of Open MPI 5.0.
const OPEN_MPI: &str = "
    OMPI_COMM_WORLD_LOCAL_RANK=1
    OMPI_COMM_WORLD_LOCAL_SIZE=2
    OMPI_COMM_WORLD_NODE_RANK=1
    OMPI_COMM_WORLD_RANK=1
    OMPI_COMM_WORLD_SIZE=2
    OMPI_UNIVERSE_SIZE=2
    PMIX_HOSTNAME=n1
    PMIX_NAMESPACE=prterun-n1-6811@1
    PMIX_RANK=1
    PRTE_LAUNCHED=1";

/// `mpirun -n 8 --map-by ppr:4:node` of Open MPI.
const OPEN_MPI_TWO_MACHINES: &str = "
    OMPI_COMM_WORLD_LOCAL_RANK=1
    OMPI_COMM_WORLD_LOCAL_SIZE=4
    OMPI_COMM_WORLD_RANK=5
    OMPI_COMM_WORLD_SIZE=8
    PMIX_NAMESPACE=prterun-n1-77@1
    PMIX_RANK=5";

/// `mpiexec.hydra -n 2` of Intel MPI 2021.
const HYDRA: &str = "
    MPI_LOCALNRANKS=2
    MPI_LOCALRANKID=0
    PMI_RANK=0
    PMI_SIZE=2";

/// `torchrun --nnodes 2 --nproc-per-node 2`.
const TORCHRUN: &str = "
    GROUP_RANK=1
    GROUP_WORLD_SIZE=2
    LOCAL_RANK=0
    LOCAL_WORLD_SIZE=2
    MASTER_ADDR=n1
    MASTER_PORT=29500
    RANK=2
    ROLE_RANK=2
    ROLE_WORLD_SIZE=4
    TORCHELASTIC_RESTART_COUNT=2
    TORCHELASTIC_RUN_ID=none
    TORCHELASTIC_USE_AGENT_STORE=True
    WORLD_SIZE=4";

/// The variables that the operators of Kubeflow set.
const BY_HAND: &str = "
    MASTER_ADDR=train-master-0
    MASTER_PORT=23456
    RANK=1
    WORLD_SIZE=2";

/// As `launch/kubernetes.yaml` makes it.
const KUBERNETES: &str = "
    HOSTNAME=train-workers-0-1
    JOB_COMPLETION_INDEX=1
    KUBERNETES_SERVICE_HOST=10.96.0.1
    MUSTER_NODES=2
    MUSTER_RESTART=3
    MUSTER_SERVICE=train";

/// An environment with some variables changed; `NAME=` takes one away.
fn env(lines: &str, changes: &str) -> Env {
    Env::of(&format!("{lines}\n{}", changes.replace(' ', "\n")))
}

fn args(words: &str) -> HostArgs {
    let mut args = HostArgs::default();
    for word in words.split_whitespace() {
        let (flag, value) = word.split_once('=').unwrap();
        match flag {
            "--nodes" => args.nodes = Some(value.parse().unwrap()),
            "--node-rank" => args.node_rank = Some(value.parse().unwrap()),
            "--rendezvous" => args.rendezvous = Some(value.to_owned()),
            "--bind" => args.bind = Some(value.parse().unwrap()),
            _ => args.launcher = clap::ValueEnum::from_str(value, false).unwrap(),
        }
    }
    args
}

/// `node/nodes xBESIDE at RENDEZVOUS on BIND: JOB`, or the error.
fn told(env: &Env, words: &str) -> String {
    match hosts(&args(words), env) {
        Err(error) => error.message,
        Ok(hosts) => {
            let Hosts { nodes, node, beside, rendezvous, bind, job, .. } = hosts;
            let at = rendezvous.map_or("-".into(), |at| at.text);
            let bind = bind.map_or("-".into(), |bind| bind.to_string());
            format!("{node}/{nodes} x{beside} at {at} on {bind}: {}", job.unwrap_or("-".into()))
        }
    }
}

#[test]
fn each_launcher_is_understood() {
    for (lines, changes, expected) in [
        ("", "", "0/1 x1 at - on -: -"),
        (SLURM_ONE_MACHINE, "", "1/2 x2 at 127.0.0.1:22998 on -: slurm-7.3-start-0"),
        (SLURM, "", "2/3 x1 at gpu008:21516 on 0.0.0.0: slurm-481516.0-start-1"),
        (OPEN_MPI, "", "1/2 x2 at 127.0.0.1:PORT on -: mpi-prterun-n1-6811@1"),
        (HYDRA, "", "0/2 x2 at 127.0.0.1:20000 on -: -"),
        (TORCHRUN, "", "2/4 x2 at n1:29500 on 0.0.0.0: torchrun-none"),
        (BY_HAND, "", "1/2 x1 at train-master-0:23456 on 0.0.0.0: -"),
        (
            KUBERNETES,
            "",
            "1/2 x1 at train-workers-0-0.train:4000 on 0.0.0.0: kubernetes-train-workers-0-start-3",
        ),
        (
            KUBERNETES,
            "MUSTER_RENDEZVOUS=p-0.s.ns.svc:4001",
            "1/2 x1 at p-0.s.ns.svc:4001 on 0.0.0.0: kubernetes-train-workers-0-start-3",
        ),
        // One task has nobody to meet.
        (
            SLURM_ONE_MACHINE,
            "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_STEP_NUM_TASKS=1 SLURM_STEP_TASKS_PER_NODE=1",
            "0/1 x1 at - on -: slurm-7.3-start-0",
        ),
        (SLURM_SCRIPT, "SLURM_JOB_NUM_NODES=1 SLURM_NNODES=1", "0/1 x1 at - on -: -"),
        (BY_HAND, "MASTER_ADDR=fd00::7", "1/2 x1 at [fd00::7]:23456 on ::: -"),
    ] {
        let told = told(&env(lines, changes), "");
        let mpi = super::port(super::number_of("prterun-n1-6811@1")).to_string();
        assert_eq!(told, expected.replace("PORT", &mpi), "{lines} {changes}");
    }
}

#[test]
fn what_the_command_says_wins() {
    for (lines, words, expected) in [
        (SLURM, "--launcher=none", "0/1 x1 at - on -: -"),
        (SLURM, "--rendezvous=a:1", "2/3 x1 at a:1 on 0.0.0.0: slurm-481516.0-start-1"),
        (SLURM, "--bind=10.0.0.7", "2/3 x1 at gpu008:21516 on 10.0.0.7: slurm-481516.0-start-1"),
        (SLURM, "--nodes=9", "2/9 x1 at gpu008:21516 on 0.0.0.0: slurm-481516.0-start-1"),
        // All of it was said: the environment is not asked, whatever it holds.
        ("RANK=x", "--nodes=2 --node-rank=1 --rendezvous=a:1", "1/2 x1 at a:1 on -: -"),
        (
            OPEN_MPI_TWO_MACHINES,
            "--rendezvous=n1:4000",
            "5/8 x4 at n1:4000 on 0.0.0.0: mpi-prterun-n1-77@1",
        ),
    ] {
        assert_eq!(told(&env(lines, ""), words), expected, "{words}");
    }
    let refused = told(&env(SLURM, ""), "--nodes=2");
    let expected = "SLURM_PROCID=2 is not one of --nodes 2; nodes count from 0: give both --nodes \
                    and --node-rank, or neither";
    assert_eq!(refused, expected);
    let expected = "--nodes without --node-rank and --rendezvous: no launcher (Slurm, Kubernetes, \
                    MPI, torchrun) that could say them has started this process; give all three";
    assert_eq!(told(&env("", ""), "--nodes=2"), expected);
}

#[test]
fn launchers_inside_each_other() {
    let both = |outer: &str, inner: &str, changes: &str| {
        told(&env(&format!("{outer}\n{inner}"), changes), "")
    };
    // mpirun in the script of a batch job: its first node is where task 0 is.
    assert_eq!(
        both(SLURM_SCRIPT, OPEN_MPI_TWO_MACHINES, ""),
        "5/8 x4 at n1:20009 on 0.0.0.0: mpi-prterun-n1-77@1"
    );
    // srun --mpi=pmix, and --mpi=pmi2: the same tasks, told twice.
    let slurm = "2/3 x1 at gpu008:21516 on 0.0.0.0: slurm-481516.0-start-1";
    assert_eq!(both(SLURM, "PMIX_RANK=2", ""), slurm);
    assert_eq!(both(SLURM, "PMI_RANK=2", "PMI_SIZE=3 PMI_JOBID=481516.0"), slurm);
    // One torchrun on each of Slurm's nodes; its task 2 is the first on the second.
    assert_eq!(
        both(
            SLURM,
            TORCHRUN,
            "SLURM_PROCID=1 SLURM_NODEID=1 SLURM_STEP_NUM_TASKS=2 \
              SLURM_STEP_NUM_NODES=2 SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_STEP_NODELIST=n[1-2]"
        ),
        "2/4 x2 at n1:29500 on 0.0.0.0: torchrun-none"
    );
    // mpirun's daemons come to the second and third of Slurm's nodes by a step of their own.
    let daemon = "SLURM_PROCID=1 SLURM_NODEID=1 SLURM_LOCALID=0 SLURM_STEP_NUM_TASKS=2 \
                  SLURM_STEP_NUM_NODES=2 SLURM_STEP_TASKS_PER_NODE=1(x2) \
                  SLURM_JOB_NODELIST=n[1-3] SLURM_STEP_NODELIST=n[2-3]";
    let third = "OMPI_COMM_WORLD_SIZE=12 PMIX_RANK=9 OMPI_COMM_WORLD_RANK=9";
    assert_eq!(
        both(SLURM, OPEN_MPI_TWO_MACHINES, &format!("{daemon} {third}")),
        "9/12 x4 at n1:21516 on 0.0.0.0: mpi-prterun-n1-77@1"
    );
    let few = "OMPI_COMM_WORLD_SIZE=2 PMIX_RANK=1 OMPI_COMM_WORLD_RANK=1 \
               OMPI_COMM_WORLD_LOCAL_SIZE=1 OMPI_COMM_WORLD_LOCAL_RANK=0 SLURM_PROCID=0 \
               SLURM_NODEID=0";
    assert_eq!(
        both(SLURM, OPEN_MPI_TWO_MACHINES, &format!("{daemon} {few}")),
        "1/2 x1 at n1:21516 on 0.0.0.0: mpi-prterun-n1-77@1"
    );
    // One mpirun in each of three tasks is a mistake.
    let apart = format!(
        "{daemon} SLURM_STEP_NUM_TASKS=3 SLURM_STEP_NUM_NODES=3 SLURM_PROCID=2 \
                         SLURM_NODEID=2 SLURM_STEP_TASKS_PER_NODE=1(x3) SLURM_STEP_NODELIST=n[1-3]"
    );
    assert!(both(SLURM, OPEN_MPI, &apart).starts_with("two launchers tell"));
    // Agents of torchrun that came in another order than Slurm's nodes.
    assert_eq!(
        both(
            SLURM,
            TORCHRUN,
            "SLURM_PROCID=0 SLURM_NODEID=0 SLURM_STEP_NUM_TASKS=2 \
              SLURM_STEP_NUM_NODES=2 SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_STEP_NODELIST=n[1-2]"
        ),
        "2/4 x2 at n1:29500 on 0.0.0.0: torchrun-none"
    );
    // mpirun in an interactive step of one task.
    let one = "SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_STEP_NUM_TASKS=1 SLURM_STEP_TASKS_PER_NODE=1";
    assert!(both(SLURM_ONE_MACHINE, OPEN_MPI, one).starts_with("1/2 x2 at 127.0.0.1:"));
    // Under torchrun in pods, Kubernetes has nothing to add, and need not.
    assert_eq!(
        both("JOB_COMPLETION_INDEX=1", TORCHRUN, ""),
        "2/4 x2 at n1:29500 on 0.0.0.0: torchrun-none"
    );
}

#[test]
fn what_is_half_set_or_contradictory_is_named() {
    let cases: [(&str, &str, &str); 24] = [
        ("RANK=0", "", ""),
        ("WORLD_SIZE=4", "", ""),
        ("OMPI_COMM_WORLD_RANK=0", "", ""),
        ("PMIX_RANK=3", "", ""),
        ("PMI_SIZE=3", "", ""),
        (TORCHRUN, "LOCAL_RANK=", ""),
        (SLURM, "SLURM_PROCID=", ""),
        ("RANK=4", "WORLD_SIZE=4", ""),
        (SLURM, "SLURM_PROCID=3", ""),
        (SLURM_ONE_MACHINE, "SLURM_LOCALID=2", ""),
        (SLURM, "SLURM_NODEID=3", ""),
        ("RANK=-1", "WORLD_SIZE=4", ""),
        (SLURM, "SLURM_STEP_NUM_TASKS=many", ""),
        (SLURM, "SLURM_STEP_TASKS_PER_NODE=2,1", ""),
        (SLURM, "SLURM_STEP_TASKS_PER_NODE=1(x", ""),
        (SLURM, "SLURM_STEP_TASKS_PER_NODE=2(x3)", ""),
        (SLURM, "SLURM_STEP_NODELIST=gpu[008-009]", ""),
        (SLURM, "SLURM_STEP_NODELIST=gpu[008-", ""),
        (OPEN_MPI_TWO_MACHINES, "OMPI_COMM_WORLD_SIZE=6", ""),
        (OPEN_MPI, "PMIX_RANK=0", ""),
        (TORCHRUN, "WORLD_SIZE=5", ""),
        (TORCHRUN, "RANK=3", ""),
        (TORCHRUN, "MASTER_PORT=0 TORCHELASTIC_RUN_ID=", ""),
        (KUBERNETES, "MUSTER_RENDEZVOUS=train", ""),
    ];
    let more = [
        (format!("{SLURM}\nSLURM_HET_SIZE=2"), "", ""),
        (format!("{SLURM}\n{OPEN_MPI}"), "", ""),
        (SLURM_SCRIPT.into(), "", ""),
        (KUBERNETES.into(), "MUSTER_NODES=", ""),
        (KUBERNETES.into(), "MUSTER_SERVICE=", ""),
        (OPEN_MPI_TWO_MACHINES.into(), "", ""),
        (BY_HAND.into(), "MASTER_PORT=", ""),
        (BY_HAND.into(), "", "--launcher=slurm"),
    ];
    let cases = cases.map(|(lines, changes, words)| (lines.to_owned(), changes, words));
    let all: Vec<String> = cases
        .into_iter()
        .chain(more)
        .map(|(lines, changes, words)| told(&env(&lines, changes), words))
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn one_line_says_what_was_found_and_where() {
    let found = |lines, changes, words| hosts(&args(words), &env(lines, changes)).unwrap().found;
    assert_eq!(found("", "", ""), None);
    let lines = [
        found(SLURM, "", ""),
        found(SLURM, "", "--nodes=4 --rendezvous=10.0.0.7:4000"),
        found(
            SLURM_ONE_MACHINE,
            "SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_LOCALID=0 \
               SLURM_STEP_TASKS_PER_NODE=1",
            "",
        ),
        found(OPEN_MPI, "", ""),
        found(OPEN_MPI_TWO_MACHINES, "", "--rendezvous=n1:4000"),
        found(HYDRA, "", ""),
        found(TORCHRUN, "", ""),
        found(KUBERNETES, "", ""),
    ];
    insta::assert_snapshot!(lines.map(Option::unwrap).join("\n"));
}

/// Jobs that share machines should not share ports.
#[test]
fn jobs_nearby_have_other_ports() {
    let ports: std::collections::BTreeSet<u16> = (481_500..481_600).map(port).collect();
    assert_eq!(ports.len(), 100);
    assert!(ports.iter().all(|port| PORTS.contains(port)));
}
