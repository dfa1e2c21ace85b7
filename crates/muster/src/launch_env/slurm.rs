//! Slurm: tasks of a job step, as `srun` starts them.
//!
//! Source: "OUTPUT ENVIRONMENT VARIABLES" of `srun(1)` and `sbatch(1)`. Variables of the step are
//! taken before those of the job, which may have more nodes and tasks. The script of a batch job
//! has those of the job only: it runs once, on the first node.

use super::error::LaunchError;
use super::vars::{Env, Task, Var};
use super::{Launch, Launcher, Meeting, Seen, hostlist, number_of, port};

const SLURM: Launcher = Launcher::Slurm;
const NODES: [&str; 3] = ["SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"];
const HOSTS: [&str; 3] = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
const PER_NODE: [&str; 2] = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"];

pub(super) fn read(env: &Env) -> Result<Seen, LaunchError> {
    if env.first(&["SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"]).is_none() {
        return outside(env);
    }
    let count = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"];
    let Some(task) = env.index(SLURM, "SLURM_PROCID", &count)? else { return Ok(Seen::Nothing) };
    if let Some((2.., var)) = env.number(SLURM, &["SLURM_HET_SIZE"])? {
        return Err(LaunchError::Components { var });
    }
    let node = env.index(SLURM, "SLURM_NODEID", &NODES)?;
    let per_node = per_node(env)?;
    let here = match (env.number(SLURM, &["SLURM_LOCALID"])?, per_node) {
        (Some((index, var)), Some((count, of_all))) if index < count => {
            Some(Task { index, count, vars: vec![var, of_all] })
        }
        (Some((_, var)), Some((_, of_all))) => {
            return Err(LaunchError::Beyond { launcher: SLURM, var, of_all });
        }
        _ => None,
    };
    if let (Some(node), Some(here)) = (&node, &here)
        && node.count.saturating_mul(here.count) != task.count
    {
        let vars = [&task.vars[1..], &node.vars[1..], &here.vars[1..]].concat();
        let what = format!("{} tasks are not {} on each of {}", task.count, here.count, node.count);
        return Err(LaunchError::Contradiction { launcher: SLURM, vars, what });
    }
    let nodes = node.as_ref().map(|node| (node.count, &node.vars[1]));
    let meeting = meeting(env, nodes)?;
    Ok(Seen::Launch(Launch { launcher: SLURM, task, here, meeting, job: job(env) }))
}

/// Not started by `srun`: of interest where that leaves other nodes idle.
fn outside(env: &Env) -> Result<Seen, LaunchError> {
    Ok(match (env.var("SLURM_JOB_ID"), env.number(SLURM, &NODES[1..])?) {
        (Some(job), Some((nodes, var))) if nodes > 1 => {
            Seen::Partly(LaunchError::OutsideOfSteps { vars: vec![job, var] })
        }
        _ => Seen::Nothing,
    })
}

/// Tasks of each node, if all have as many.
fn per_node(env: &Env) -> Result<Option<(usize, Var)>, LaunchError> {
    let Some(var) = env.first(&PER_NODE) else { return Ok(None) };
    let runs = match hostlist::counts(&var.value) {
        Ok(runs) => runs,
        Err(source) => return Err(LaunchError::Text { launcher: SLURM, var, source }),
    };
    match runs.first() {
        Some(&(tasks, _)) if runs.iter().all(|run| run.0 == tasks) => Ok(Some((tasks, var))),
        _ => Err(LaunchError::Uneven { launcher: SLURM, vars: vec![var] }),
    }
}

/// The first node of the step, where task 0 is unless its place was chosen by hand.
fn meeting(env: &Env, nodes: Option<(usize, &Var)>) -> Result<Option<Meeting>, LaunchError> {
    let Some(var) = env.first(&HOSTS) else { return Ok(None) };
    let hosts = hosts_of(&var)?;
    if let Some((count, of)) = nodes
        && count != hosts.len()
    {
        let what = format!("the list has {}", crate::console::plural(hosts.len(), "host"));
        let vars = vec![var, of.clone()];
        return Err(LaunchError::Contradiction { launcher: SLURM, vars, what });
    }
    Ok(at_first(env, hosts, var, env.var("SLURM_STEP_ID")))
}

/// The first node of the job, where its script runs, for launchers that are started there.
pub(super) fn first_of_job(env: &Env) -> Result<Option<Meeting>, LaunchError> {
    let Some(var) = env.first(&HOSTS[1..]) else { return Ok(None) };
    Ok(at_first(env, hosts_of(&var)?, var, None))
}

fn hosts_of(var: &Var) -> Result<Vec<String>, LaunchError> {
    let named = |source| LaunchError::Text { launcher: SLURM, var: var.clone(), source };
    hostlist::hosts(&var.value).map_err(named)
}

/// Jobs are numbered one after the other, and so are the steps of each.
fn at_first(env: &Env, hosts: Vec<String>, list: Var, step: Option<Var>) -> Option<Meeting> {
    let (id, host) = (env.var("SLURM_JOB_ID")?, hosts.into_iter().next()?);
    let number = |var: &Var| var.value.parse().unwrap_or_else(|_| number_of(&var.value));
    let steps = step.as_ref().map_or(0, |step| number(step).wrapping_mul(997));
    let port = port(number(&id).wrapping_add(steps));
    Some(Meeting { host, port, vars: [list, id].into_iter().chain(step).collect() })
}

/// A requeued job has its old number.
fn job(env: &Env) -> Option<String> {
    let id = env.var("SLURM_JOB_ID")?.value;
    let value = |name| env.var(name).map(|var| var.value);
    let step = value("SLURM_STEP_ID").map(|step| format!(".{step}")).unwrap_or_default();
    let restart = value("SLURM_RESTART_COUNT").unwrap_or("0".into());
    Some(format!("slurm-{id}{step}-start-{restart}"))
}
