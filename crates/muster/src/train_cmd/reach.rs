//! How ranks that listen reach each other.

use std::net::{SocketAddr, TcpListener};

use crate::error::CliError;

/// Over tcp, where `sharing` (the number under which the memory is inherited, and ranks of each
/// host) not alone.
pub fn among_hosts(
    listener: TcpListener,
    peers: Vec<SocketAddr>,
    job: String,
    sharing: Option<(i32, usize)>,
) -> Result<comm::Backend, CliError> {
    #[cfg(target_os = "linux")]
    if let Some((descriptor, each)) = sharing {
        let memory = comm::shm::SharedMemory::inherited(descriptor)?;
        let host_of = (0..peers.len()).map(|rank| rank / each.max(1)).collect();
        return Ok(comm::Backend::Hosts { listener, peers, job, memory, host_of });
    }
    let _ = sharing;
    Ok(comm::Backend::Tcp { listener, peers, job })
}
