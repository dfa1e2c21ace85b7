//! Where the ranks of a job are: what each says of its host, its CPUs and its device.

use comm::{Channel, World};
use device::Device;
use serde::{Deserialize, Serialize};

use crate::BenchError;
use crate::collectives::Host;

/// The place of a rank, as it tells the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Here {
    host: String,
    /// The number that tells hosts of one name apart.
    boot: String,
    device: String,
    /// As the kernel lists them.
    cpus: String,
}

/// The hosts of a job, in the order of their first ranks, the same on every rank.
pub fn hosts(world: &World, device: &Device) -> Result<Vec<Host>, BenchError> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let device = match device.kind().is_host() {
        true => kernels::gemm::arithmetic(),
        false if device.properties().simulated => device.kind().to_string(),
        false => device.properties().name,
    };
    let host = read("/proc/sys/kernel/hostname");
    let status = read("/proc/self/status");
    let cpus = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let cpus = cpus.unwrap_or_default().trim().to_owned();
    let here = Here { host, boot: read("/proc/sys/kernel/random/boot_id"), device, cpus };
    let told = postcard::to_stdvec(&here).map_err(BenchError::Stamps)?;
    let all = world.control(Channel::Training).all_gather_bytes(&told)?;
    let read = |bytes: &Vec<u8>| postcard::from_bytes(bytes).map_err(BenchError::Stamps);
    Ok(together(&all.iter().map(read).collect::<Result<Vec<Here>, _>>()?))
}

/// Ranks of one host under its name.
fn together(ranks: &[Here]) -> Vec<Host> {
    let mut hosts: Vec<(&str, Host)> = Vec::new();
    for (rank, here) in ranks.iter().enumerate() {
        let is_same = |known: &(&str, Host)| known.0 == here.boot && known.1.name == here.host;
        let at = hosts.iter().position(is_same).unwrap_or_else(|| {
            let name = here.host.clone();
            let host = Host { name, ranks: Vec::new(), devices: Vec::new(), cpus: Vec::new() };
            hosts.push((&here.boot, host));
            hosts.len() - 1
        });
        hosts[at].1.ranks.push(rank);
        hosts[at].1.devices.push(here.device.clone());
        hosts[at].1.cpus.push(here.cpus.clone());
    }
    hosts.into_iter().map(|(_, host)| host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_in_the_order_of_their_first_ranks() {
        let here = |host: &str, boot: &str, device: &str| Here {
            host: host.into(),
            boot: boot.into(),
            device: device.into(),
            cpus: format!("0-{host}"),
        };
        let ranks =
            [here("b", "1", "x"), here("a", "2", "y"), here("b", "1", "z"), here("b", "3", "x")];
        let hosts = together(&ranks);
        let told = hosts.iter().map(|host| (host.name.as_str(), host.ranks.clone()));
        assert_eq!(told.collect::<Vec<_>>(), [("b", vec![0, 2]), ("a", vec![1]), ("b", vec![3])]);
        assert_eq!(hosts[0].devices, ["x", "z"]);
        assert_eq!(hosts[1].cpus, ["0-a"]);
    }
}
