//! Pods of an indexed Job, alone or in a JobSet.
//!
//! Kubernetes gives a pod its index and nothing else, so the manifest (`launch/kubernetes.yaml`)
//! says the rest: `MUSTER_NODES`, and `MUSTER_RENDEZVOUS` or the name of the headless service in
//! `MUSTER_SERVICE`. Pods of an indexed Job have the host name `JOB-INDEX`, of a JobSet
//! `SET-GROUP-JOB-INDEX`, and answer as `HOSTNAME.SERVICE`.

use super::error::LaunchError;
use super::vars::{Env, Var};
use super::{Launch, Launcher, Meeting, Seen};

const KUBERNETES: Launcher = Launcher::Kubernetes;

/// Where the manifest names a service and no port.
const PORT: u16 = 4000;

pub(super) fn read(env: &Env) -> Result<Seen, LaunchError> {
    let Some(index) = env.var("JOB_COMPLETION_INDEX") else { return Ok(Seen::Nothing) };
    if env.var("MUSTER_NODES").is_none() {
        let missing = vec!["MUSTER_NODES"];
        return Ok(Seen::Partly(LaunchError::Pod { index: index.value, missing }));
    }
    let Some(task) = env.index(KUBERNETES, "JOB_COMPLETION_INDEX", &["MUSTER_NODES"])? else {
        return Ok(Seen::Nothing);
    };
    let stem = stem(env, &index);
    let meeting = match env.var("MUSTER_RENDEZVOUS") {
        Some(var) => Some(named(var)?),
        None => of_service(env, stem.as_ref()),
    };
    if meeting.is_none() && task.count > 1 {
        let missing = vec!["MUSTER_RENDEZVOUS", "MUSTER_SERVICE"];
        return Err(LaunchError::Pod { index: index.value, missing });
    }
    let restart = env.var("MUSTER_RESTART").map_or("0".to_owned(), |var| var.value);
    let job = stem.map(|(stem, _)| format!("kubernetes-{stem}-start-{restart}"));
    Ok(Seen::Launch(Launch { launcher: KUBERNETES, task, here: None, meeting, job }))
}

/// The host name without its index.
fn stem(env: &Env, index: &Var) -> Option<(String, Var)> {
    let var = env.var("HOSTNAME")?;
    let (stem, last) = var.value.rsplit_once('-')?;
    (last == index.value).then(|| (stem.to_owned(), var.clone()))
}

/// The meeting point that the manifest gives in full.
fn named(var: Var) -> Result<Meeting, LaunchError> {
    let parts =
        var.value.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) => Ok(Meeting { host: host.to_owned(), port, vars: vec![var] }),
        None => Err(LaunchError::Address { var }),
    }
}

/// Pod 0 of the service.
fn of_service(env: &Env, stem: Option<&(String, Var)>) -> Option<Meeting> {
    let (service, (stem, hostname)) = (env.var("MUSTER_SERVICE")?, stem?);
    let host = format!("{stem}-0.{}", service.value);
    Some(Meeting { host, port: PORT, vars: vec![service, hostname.clone()] })
}
