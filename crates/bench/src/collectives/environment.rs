//! Which environment variables a report may hold.
//!
//! A report is shown to others, and nccl-tests' JSON holds the whole environment, passwords
//! included. So a variable is kept only if its name is on one of the lists here, has no part that
//! names a secret, and its value holds no login.

use std::collections::BTreeMap;

/// Beginnings of names: settings of the libraries that carry the data.
pub(crate) const PREFIXES: [&str; 12] = [
    "NCCL_",
    "RCCL_",
    "OMPI_MCA_",
    "UCX_",
    "FI_",
    "HSA_",
    "MSCCL",
    "GLOO_",
    "PSM2_",
    "ANP_",
    "I_MPI_",
    "MPICH_",
];

/// Whole names: devices, threads, and the shape of the job.
pub const NAMES: [&str; 18] = [
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_MODULE_LOADING",
    "HIP_VISIBLE_DEVICES",
    "HIP_FORCE_DEV_KERNARG",
    "ROCR_VISIBLE_DEVICES",
    "GPU_MAX_HW_QUEUES",
    "OMP_NUM_THREADS",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MUSTER_KERNELS",
    "RAYON_NUM_THREADS",
];

/// Parts of names that are never kept, whatever they begin with: secrets, and where a job's
/// daemons listen.
pub const REFUSED: [&str; 11] =
    ["SECRET", "TOKEN", "PASS", "KEY", "CRED", "AUTH", "COOKIE", "LOGIN", "USER", "URI", "CERT"];

/// Whether a variable may be shown.
pub(crate) fn may_be_shown(name: &str, value: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let listed = NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let login = value.contains("://") && value.contains('@');
    listed && !login && !REFUSED.iter().any(|part| upper.contains(part))
}

/// The variables of an environment that may be shown.
pub fn allowed(variables: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    variables.into_iter().filter(|(name, value)| may_be_shown(name, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_kept_and_secrets_are_not() {
        let variables = [
            ("NCCL_ALGO", "Ring"),
            ("OMPI_MCA_btl", "tcp,self"),
            ("WORLD_SIZE", "8"),
            ("NCCL_SECRET_SAUCE", "x"),
            ("OMPI_MCA_sec_basic_key", "x"),
            ("RCCL_api_token", "x"),
            ("OMPI_MCA_orte_hnp_uri", "1.2.3.4:5"),
            ("NCCL_CONF_FILE", "https://me:word@host/conf"),
            ("HF_TOKEN", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("PATH", "/bin"),
            ("HOME", "/root"),
        ];
        let kept = allowed(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["NCCL_ALGO", "OMPI_MCA_btl", "WORLD_SIZE"]);
    }
}
