//! From our words to the daemon's.

use crate::engine::{ContainerSpec, DEFAULT_TMPFS_BYTES, EngineError, Host, MountSource, NODE_USER, Outcome};
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig, Mount, MountType,
    NetworkingConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};
use std::collections::HashMap;

/// Less memory than this the daemon refuses.
const MIN_MEMORY_BYTES: u64 = 6 << 20;
/// Less CPU than this the daemon refuses, in cores.
const MIN_CPUS: f64 = 0.01;
/// Where the daemon asks for names that it does not know itself, for a container with closed DNS: the
/// container's own loopback, where nobody answers. Without it a daemon whose host has a resolver on its own
/// loopback would ask that one, and so carry words out of a network without a way out.
const NOBODY: &str = "127.0.0.1";

/// `/dev/shm`, unless the container has little memory.
const SHM_BYTES: u64 = 64 << 20;
/// What a program leaves in System V objects outlives it, takes the container's memory and is in no directory
/// that could be emptied: shared memory goes with its last process, queues and semaphores are few (1 MiB and
/// 32,000 in all).
const SYSCTLS: [(&str, &str); 3] =
    [("kernel.shm_rmid_forced", "1"), ("kernel.msgmni", "64"), ("kernel.sem", "250 32000 100 128")];

/// What the daemon would refuse, refused in words that say what would do.
pub(super) fn check(spec: &ContainerSpec, host: &Host) -> Outcome<()> {
    let refused = |text: String| Err(EngineError::Refused(format!("{}: {text}", spec.name)));
    if let Some(cpus) = spec.cpus.filter(|cpus| !(MIN_CPUS..=host.cores).contains(cpus)) {
        return refused(format!("cpus is {cpus}; this host allows {MIN_CPUS} to {}", host.cores));
    }
    if spec.memory_bytes.is_some_and(|bytes| bytes < MIN_MEMORY_BYTES || i64::try_from(bytes).is_err()) {
        return refused(format!("memory_bytes must be at least {MIN_MEMORY_BYTES}"));
    }
    for mount in &spec.mounts {
        if !mount.target.starts_with('/') || mount.target == "/" {
            return refused(format!("the mount target {:?} must be an absolute path below /", mount.target));
        }
    }
    Ok(())
}

/// The request that makes a hardened container (contract section 7).
pub(super) fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    // Files in memory stay when their writer is killed for its memory: unless a size was asked for, they leave
    // room for the agent.
    let at_most = |bytes: u64, part: u64| bytes.min(spec.memory_bytes.map_or(bytes, |memory| memory / part));
    let is_asked_for = spec.tmpfs_bytes != DEFAULT_TMPFS_BYTES;
    let tmp_bytes = if is_asked_for { spec.tmpfs_bytes } else { at_most(DEFAULT_TMPFS_BYTES, 2) };
    // `exec`: a build or a test suite runs what it has made in its work directory, which is below `/tmp`.
    let tmp = format!("size={tmp_bytes},mode=1777,nosuid,nodev,exec");
    let memory = spec.memory_bytes.and_then(|bytes| i64::try_from(bytes).ok());
    let host_config = HostConfig {
        // Cores are at most the host's (checked), so the product fits.
        nano_cpus: spec.cpus.map(|cpus| (cpus * 1e9).round() as i64),
        memory,
        // Equal to memory: no swap beside the limit.
        memory_swap: memory,
        pids_limit: Some(spec.pids),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges".to_owned()]),
        privileged: Some(false),
        readonly_rootfs: Some(true),
        tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmp)])),
        shm_size: i64::try_from(at_most(SHM_BYTES, 8)).ok(),
        sysctls: Some(SYSCTLS.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
        group_add: Some(spec.groups.clone()).filter(|groups| !groups.is_empty()),
        mounts: Some(spec.mounts.iter().map(mount).collect()),
        network_mode: spec.network.clone(),
        dns: spec.closed_dns.then(|| vec![NOBODY.to_owned()]),
        port_bindings: Some(spec.publish.iter().map(port_binding).collect()),
        cgroup_parent: spec.cgroup_parent.clone(),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        ..HostConfig::default()
    };
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: spec.entrypoint.clone(),
        cmd: Some(spec.args.clone()),
        env: Some(spec.env.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        user: Some(spec.user.clone().unwrap_or_else(|| NODE_USER.to_owned())),
        labels: Some(spec.labels().into_iter().collect()),
        exposed_ports: Some(spec.publish.iter().map(|publish| format!("{}/tcp", publish.port)).collect()),
        // What another image may say of these is meant for its own program: a directory that our user may
        // not enter, a signal that ours does not know, a check of something that does not run.
        working_dir: Some("/".to_owned()),
        stop_signal: Some("SIGTERM".to_owned()),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        attach_stdin: Some(spec.takes_stdin),
        open_stdin: Some(spec.takes_stdin),
        stdin_once: Some(spec.takes_stdin),
        host_config: Some(host_config),
        networking_config: spec.network.as_ref().map(|network| networking(network, spec)),
        ..ContainerCreateBody::default()
    }
}

fn mount(mount: &crate::engine::MountSpec) -> Mount {
    let (typ, source) = match &mount.source {
        MountSource::Host(path) => (MountType::BIND, path.display().to_string()),
        MountSource::Volume(name) => (MountType::VOLUME, name.clone()),
    };
    Mount {
        typ: Some(typ),
        source: Some(source),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        ..Mount::default()
    }
}

fn port_binding(publish: &crate::engine::Publish) -> (String, Option<Vec<PortBinding>>) {
    let binding = PortBinding {
        host_ip: Some(publish.host.ip().to_string()),
        host_port: Some(publish.host.port().to_string()),
    };
    (format!("{}/tcp", publish.port), Some(vec![binding]))
}

fn networking(network: &str, spec: &ContainerSpec) -> NetworkingConfig {
    let fixed = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => {
            EndpointIpamConfig { ipv4_address: Some(ip.to_string()), ..Default::default() }
        }
        std::net::IpAddr::V6(ip) => {
            EndpointIpamConfig { ipv6_address: Some(ip.to_string()), ..Default::default() }
        }
    };
    let endpoint = EndpointSettings { ipam_config: spec.ip.map(fixed), ..EndpointSettings::default() };
    NetworkingConfig { endpoints_config: Some(HashMap::from([(network.to_owned(), endpoint)])) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{MountSpec, Role};

    fn spec() -> ContainerSpec {
        ContainerSpec::new("evenkeel-c-p-1", "c", Role::Node, "image", vec!["node".to_owned()])
    }

    fn host() -> Host {
        Host { cores: 2.0, memory_bytes: 1 << 32, runtime: String::new() }
    }

    #[test]
    fn more_cores_than_the_host_has_are_refused_with_what_would_do() {
        for cpus in [0.0, 0.001, 2.01, 64.0, f64::NAN, -1.0] {
            let error =
                check(&ContainerSpec { cpus: Some(cpus), ..spec() }, &host()).map_err(|e| e.to_string());
            assert!(error.is_err_and(|text| text.contains("0.01 to 2")), "{cpus}");
        }
        assert!(check(&ContainerSpec { cpus: Some(2.0), ..spec() }, &host()).is_ok());
    }

    #[test]
    fn a_mount_over_the_root_is_refused() {
        let mount = |target: &str| MountSpec {
            source: MountSource::Volume("v".to_owned()),
            target: target.to_owned(),
            read_only: true,
        };
        for target in ["/", "data", ""] {
            assert!(
                check(&ContainerSpec { mounts: vec![mount(target)], ..spec() }, &host()).is_err(),
                "{target}"
            );
        }
    }

    #[test]
    fn every_container_is_hardened() {
        let made = body(&ContainerSpec { cpus: Some(0.25), memory_bytes: Some(64 << 20), ..spec() });
        let host = made.host_config.unwrap_or_default();
        assert_eq!(made.user.as_deref(), Some(NODE_USER));
        assert_eq!(host.nano_cpus, Some(250_000_000));
        assert_eq!(host.memory, Some(64 << 20));
        assert_eq!(host.memory_swap, host.memory);
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));
        assert_eq!(host.privileged, Some(false));
        assert_eq!(host.sysctls.unwrap_or_default()["kernel.shm_rmid_forced"], "1");
        let tmp = &host.tmpfs.unwrap_or_default()["/tmp"];
        assert!(tmp.starts_with("size=33554432,"), "half of the memory at most: {tmp}");
        assert_eq!(host.shm_size, Some(8 << 20));
    }
}
