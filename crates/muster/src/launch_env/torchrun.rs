//! torchrun (PyTorch's elastic agent), and what sets its variables by hand, such as the operators
//! of Kubeflow.
//!
//! The agent listens at `MASTER_PORT` itself, so the ranks meet at a port that follows from it.
//! Source: `LocalElasticAgent._start_workers` of PyTorch.

use super::error::LaunchError;
use super::vars::{Env, Task};
use super::{Launch, Launcher, Meeting, Seen, port};

const TORCHRUN: Launcher = Launcher::Torchrun;

pub(super) fn read(env: &Env) -> Result<Seen, LaunchError> {
    let Some(task) = env.index(TORCHRUN, "RANK", &["WORLD_SIZE"])? else {
        return Ok(Seen::Nothing);
    };
    let here = env.index(TORCHRUN, "LOCAL_RANK", &["LOCAL_WORLD_SIZE"])?;
    let group = match env.var("GROUP_WORLD_SIZE") {
        Some(_) => env.index(TORCHRUN, "GROUP_RANK", &["GROUP_WORLD_SIZE"])?,
        None => None,
    };
    if let (Some(group), Some(here)) = (&group, &here) {
        check(&task, group, here)?;
    }
    let agent = env.var("TORCHELASTIC_RUN_ID");
    let meeting = meeting(env, agent.is_some())?;
    // Agents count restarts each for itself, so their counts may differ.
    let job = agent.map(|id| format!("torchrun-{}", id.value));
    Ok(Seen::Launch(Launch { launcher: TORCHRUN, task, here, meeting, job }))
}

fn check(task: &Task, group: &Task, here: &Task) -> Result<(), LaunchError> {
    if group.count.saturating_mul(here.count) != task.count {
        let vars = [&task.vars[1..], &group.vars[1..], &here.vars[1..]].concat();
        return Err(LaunchError::Uneven { launcher: TORCHRUN, vars });
    }
    if group.index.saturating_mul(here.count).saturating_add(here.index) != task.index {
        let vars = [&task.vars[..1], &group.vars[..1], &here.vars[..]].concat();
        let what = "they name different tasks".to_owned();
        return Err(LaunchError::Contradiction { launcher: TORCHRUN, vars, what });
    }
    Ok(())
}

fn meeting(env: &Env, has_agent: bool) -> Result<Option<Meeting>, LaunchError> {
    let number = env.number(TORCHRUN, &["MASTER_PORT"])?;
    let (Some(host), Some((number, var))) = (env.var("MASTER_ADDR"), number) else {
        return Ok(None);
    };
    let port = match u16::try_from(number) {
        Ok(_) if has_agent => port(number as u64),
        Ok(own) if own > 0 => own,
        _ => return Err(LaunchError::NoNumber { launcher: TORCHRUN, var }),
    };
    Ok(Some(Meeting { host: host.value.clone(), port, vars: vec![host, var] }))
}
