//! Open MPI (`mpirun` of versions 4 and 5, and what else sets `OMPI_COMM_WORLD_RANK`), and the
//! Hydra of MPICH and Intel MPI (`PMI_RANK`).
//!
//! Neither says where task 0 runs, unless all are on this machine. `PMIX_RANK` alone, as `srun
//! --mpi=pmix` sets it, counts nothing: it has no total.

use super::error::LaunchError;
use super::vars::{Env, Task};
use super::{Launch, Launcher, Meeting, Seen, number_of, port};

const MPI: Launcher = Launcher::Mpi;

pub(super) fn read(env: &Env) -> Result<Seen, LaunchError> {
    let open_mpi = env.index(MPI, "OMPI_COMM_WORLD_RANK", &["OMPI_COMM_WORLD_SIZE"])?;
    let pmi = env.index(MPI, "PMI_RANK", &["PMI_SIZE"])?;
    let (task, here) = match (open_mpi, pmi) {
        (Some(task), _) => {
            let size = ["OMPI_COMM_WORLD_LOCAL_SIZE"];
            let here = env.index(MPI, "OMPI_COMM_WORLD_LOCAL_RANK", &size)?;
            let pmix = env.number(MPI, &["PMIX_RANK"])?;
            if let Some((_, pmix)) = pmix.filter(|(index, _)| *index != task.index) {
                let what = "they name different tasks; one mpirun inside another?".to_owned();
                let vars = vec![task.vars[0].clone(), pmix];
                return Err(LaunchError::Contradiction { launcher: MPI, vars, what });
            }
            (task, here)
        }
        (None, Some(task)) => (task, env.index(MPI, "MPI_LOCALRANKID", &["MPI_LOCALNRANKS"])?),
        (None, None) => return pmix_alone(env),
    };
    check_even(&task, here.as_ref())?;
    let name = env.var("PMIX_NAMESPACE");
    let is_here = here.as_ref().is_some_and(|here| here.count == task.count);
    let meeting = is_here.then(|| Meeting {
        host: "127.0.0.1".into(),
        port: port(name.as_ref().map_or(0, |name| number_of(&name.value))),
        vars: name.iter().cloned().collect(),
    });
    let job = name.map(|name| format!("mpi-{}", name.value));
    Ok(Seen::Launch(Launch { launcher: MPI, task, here, meeting, job }))
}

/// Whether every machine can have as many tasks as this one.
fn check_even(task: &Task, here: Option<&Task>) -> Result<(), LaunchError> {
    match here {
        Some(here) if !task.count.is_multiple_of(here.count) => Err(LaunchError::Uneven {
            launcher: MPI,
            vars: vec![task.vars[1].clone(), here.vars[1].clone()],
        }),
        _ => Ok(()),
    }
}

fn pmix_alone(env: &Env) -> Result<Seen, LaunchError> {
    Ok(match env.var("PMIX_RANK") {
        Some(set) => Seen::Partly(LaunchError::Half {
            launcher: MPI,
            set: vec![set],
            missing: vec!["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
        }),
        None => Seen::Nothing,
    })
}
