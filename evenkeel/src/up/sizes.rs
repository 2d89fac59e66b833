//! How many nodes, and how large, when nobody says (contract section 7).

use node_manager::engine::Host;

/// Share of the host's cores that nodes get together; the rest is for master, manager and the host itself.
const CPU_SHARE: f64 = 0.9;
/// Share of the host's memory that nodes get together.
const MEMORY_SHARE: f64 = 0.8;
const LEAST_MEMORY: u64 = 64 << 20;
const MOST_MEMORY: u64 = 1 << 30;

/// min(4, cores), at least 1.
pub(crate) fn default_nodes(cores: f64) -> u32 {
    // Cores of a host are at least 1 and few enough for the cast.
    cores.clamp(1.0, 4.0) as u32
}

/// CPU limit in cores and memory limit in bytes of each of so many nodes (if absent: the default number):
/// max(0.1, cores × 0.9 ÷ nodes) rounded down to 0.05, and memory × 0.8 ÷ nodes within 64 MiB … 1 GiB.
pub(crate) fn node_size(host: &Host, nodes: Option<u32>) -> (f64, u64) {
    let nodes = nodes.unwrap_or_else(|| default_nodes(host.cores)).max(1);
    let share = host.cores * CPU_SHARE / f64::from(nodes);
    // A hair more, so that 0.45 does not become 0.4 by the way floats are kept.
    let cpus = ((share * 20.0 + 1e-9).floor() / 20.0).max(0.1);
    // Below 2^53, so exact enough for a limit.
    let memory = (host.memory_bytes as f64 * MEMORY_SHARE / f64::from(nodes)) as u64;
    (cpus, memory.clamp(LEAST_MEMORY, MOST_MEMORY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(cores: f64, gib: u64) -> Host {
        Host { cores, memory_bytes: gib << 30, runtime: String::new() }
    }

    #[test]
    fn nodes_share_the_host_and_leave_some_of_it() {
        assert_eq!([1.0, 2.0, 4.0, 64.0].map(default_nodes), [1, 2, 4, 4]);
        assert_eq!(node_size(&host(2.0, 8), None), (0.9, 1 << 30));
        assert_eq!(node_size(&host(2.0, 8), Some(4)), (0.45, 1 << 30));
        assert_eq!(node_size(&host(2.0, 2), Some(20)).0, 0.1, "never below 0.1");
        assert_eq!(node_size(&host(2.0, 1), Some(20)).1, 64 << 20);
        assert_eq!(node_size(&host(8.0, 64), Some(3)).0, 2.4);
        assert_eq!(node_size(&host(2.0, 8), Some(0)).0, 1.8, "no division by zero");
    }
}
