//! The memory that the ranks of a host share, made by their supervisor.

use crate::error::CliError;

/// Inherited by the ranks, where they share memory.
pub struct SharedMemory {
    #[cfg(target_os = "linux")]
    memory: Option<comm::shm::SharedMemory>,
}

#[cfg(target_os = "linux")]
impl SharedMemory {
    /// Of a job, where `all` so many ranks of it share memory, or the ranks of each host `beside`
    /// what connects the hosts.
    ///
    /// # Errors
    /// The machine has none to give.
    pub fn of(
        job: &str,
        all: Option<usize>,
        beside: Option<usize>,
    ) -> Result<SharedMemory, CliError> {
        let make = |ranks| comm::shm::SharedMemory::create(job, ranks);
        let memory = all.or(beside).map(make).transpose()?;
        Ok(SharedMemory { memory })
    }

    /// By which ranks inherit it.
    pub fn descriptor(&self) -> Option<i32> {
        self.memory.as_ref().map(comm::shm::SharedMemory::descriptor)
    }
}

#[cfg(not(target_os = "linux"))]
impl SharedMemory {
    /// There is none here.
    ///
    /// # Errors
    /// `all` ranks were to share it.
    pub fn of(_: &str, all: Option<usize>, _: Option<usize>) -> Result<SharedMemory, CliError> {
        match all {
            None => Ok(SharedMemory {}),
            Some(_) => {
                Err(CliError::mistake("ranks share memory on Linux only; use --backend tcp"))
            }
        }
    }

    /// None.
    pub fn descriptor(&self) -> Option<i32> {
        None
    }
}
