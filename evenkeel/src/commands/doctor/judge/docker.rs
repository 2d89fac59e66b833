//! Docker: the daemon, its socket, our image, our network, what is left over.

use super::super::{
    facts::{Docker, Facts},
    finding::{Finding, Verdict},
};
use crate::up::runtime::RuntimeArg;
use node_manager::docker::{
    facts::{DaemonFacts, OurContainer},
    network::network_name,
    subnet::{Subnet, free_subnet},
};
use std::collections::BTreeSet;

/// The oldest API with which Evenkeel is tested.
const OLDEST_API: (usize, usize) = (1, 41);
const BY_PROCESSES: &str =
    "without Docker the nodes are processes of this host (runtime process), without limits on CPU and memory";

pub(super) fn daemon(facts: &Facts) -> Vec<Finding> {
    let Docker { variable, socket, daemon } = &facts.docker;
    let place = variable.clone().unwrap_or_else(|| "this host".to_owned());
    let daemon = match daemon {
        Ok(daemon) => daemon,
        Err(why) => {
            // Somebody counts on it: the cluster is made of containers, or the variable names it.
            let counted_on = facts.runtime == Some(RuntimeArg::Docker) || variable.is_some();
            let verdict = if counted_on { Verdict::Failure } else { Verdict::Warning };
            let bad =
                |what: String, mend: &str| vec![Finding::bad(verdict, "docker", what, BY_PROCESSES, mend)];
            return match (variable, socket) {
                (_, Some(socket)) if socket.denied => bad(
                    format!("this user may not use {}", socket.path.display()),
                    "sudo usermod -aG docker \"$USER\" && newgrp docker",
                ),
                (Some(host), _) => bad(
                    format!("DOCKER_HOST is {host}, and no Docker daemon answers there"),
                    "unset DOCKER_HOST",
                ),
                (None, Some(socket)) if socket.file.is_some() => {
                    bad(format!("no Docker daemon answers: {why}"), "sudo systemctl start docker")
                }
                _ => bad("there is no Docker on this host".to_owned(), "sudo apt-get install docker.io"),
            };
        }
    };
    let (major, minor) = daemon.api;
    let what = format!("Docker {} answers at {place}, API {major}.{minor}", daemon.version);
    let mut findings = vec![if daemon.api < OLDEST_API {
        let (major, minor) = OLDEST_API;
        let why = format!("Evenkeel is tested with API {major}.{minor} and newer");
        Finding::warning("docker", what, &why, "sudo apt-get install --only-upgrade docker.io")
    } else {
        Finding::ok("docker", what)
    }];
    findings.push(limits(daemon));
    findings
}

fn limits(daemon: &DaemonFacts) -> Finding {
    // As Docker's documentation of its rootless mode has it.
    const DELEGATE: &str = "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload";
    const KERNEL: &str =
        "grep CONFIG_CFS_BANDWIDTH \"/boot/config-$(uname -r)\"   # boot a kernel that has it";
    const MEMORY: &str = "sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&cgroup_enable=memory /' /etc/default/grub && sudo update-grub && sudo reboot";
    let version = daemon.cgroup_version.map_or_else(String::new, |version| format!(" (cgroup v{version})"));
    let missing: Vec<&str> =
        [(daemon.limits_cpu, "CPU"), (daemon.limits_memory, "memory"), (daemon.limits_pids, "processes")]
            .iter()
            .filter_map(|(works, what)| (!works).then_some(*what))
            .collect();
    if missing.is_empty() {
        return Finding::ok("limits", format!("Docker can limit CPU, memory and processes{version}"));
    }
    let what = format!("Docker cannot limit {}{version}", missing.join(" and "));
    let mend = match (daemon.cgroup_version, daemon.limits_cpu) {
        (Some(2), _) => DELEGATE,
        (_, true) => MEMORY,
        (_, false) => KERNEL,
    };
    if daemon.limits_cpu {
        Finding::warning("limits", what, "one task may take all of this host's memory or processes", mend)
    } else {
        Finding::failure("limits", what, "nodes cannot be created: each has a CPU limit", mend)
    }
}

pub(super) fn socket(facts: &Facts) -> Option<Finding> {
    let socket = facts.docker.socket.as_ref()?;
    let (mode, group) = socket.file.as_ref()?;
    let path = socket.path.display();
    if mode & 0o002 != 0 {
        return Some(Finding::warning(
            "socket",
            format!("{path} can be used by everyone on this host (mode {:04o})", mode & 0o7777),
            "who uses Docker can become root",
            format!("sudo chmod o-rwx {}", super::shell(&socket.path)),
        ));
    }
    // That it is refused is said of the daemon.
    (!socket.denied).then(|| {
        Finding::ok(
            "socket",
            format!("{path} is for its owner and the group {group}, and this user may use it"),
        )
    })
}

pub(super) fn image(facts: &Facts) -> Option<Finding> {
    facts.docker.daemon.as_ref().ok()?;
    let image = match &facts.image {
        Ok(image) => image,
        Err(why) => {
            return Some(Finding::failure(
                "image",
                why.clone(),
                "nodes are containers of an image made from this program",
                "cargo build --release",
            ));
        }
    };
    let reference = &image.reference;
    Some(match (&image.id, &image.latest) {
        (Some(id), Some(latest)) if id == latest => {
            Finding::ok("image", format!("{reference} is there, and is evenkeel:latest"))
        }
        (_, Some(_)) => Finding::warning(
            "image",
            "evenkeel:latest is the image of another program than this one".to_owned(),
            "`up` makes its own, but containers that you start by hand run the other program",
            "evenkeel image build",
        ),
        (Some(_), None) => Finding::ok("image", format!("{reference} is there")),
        (None, None) => Finding::ok("image", "there is none yet; `evenkeel up` makes it".to_owned()),
    })
}

pub(super) fn network(facts: &Facts) -> Option<Finding> {
    let daemon = facts.docker.daemon.as_ref().ok()?;
    let name = network_name(&facts.cluster);
    let ours = daemon.networks.iter().find(|network| network.name == name);
    let subnets = match (facts.network.wanted, ours) {
        (Some(wanted), _) => vec![wanted],
        (None, Some(ours)) => ours.subnets.clone(),
        (None, None) => Vec::new(),
    };
    let taken = taken(facts, daemon, &name);
    let all: Vec<Subnet> = taken.iter().map(|(subnet, _)| *subnet).chain(subnets.iter().copied()).collect();
    let free = free_subnet(&all);
    let up = |free: Subnet| format!("evenkeel up{} --subnet {free}", facts.flags);
    let meets =
        |subnet: &Subnet| taken.iter().find(|(other, _)| other.overlaps(*subnet)).map(|it| (*subnet, it));
    if let Some((subnet, (_, who))) = subnets.iter().find_map(meets) {
        let first = if ours.is_some() { format!("evenkeel down{} && ", facts.flags) } else { String::new() };
        let mend = free.map_or_else(|| "docker network prune".to_owned(), |free| first + &up(free));
        return Some(Finding::failure(
            "network",
            format!("the subnet {subnet} overlaps with {who}"),
            "what has an address there cannot be reached from the containers, or they cannot be reached",
            mend,
        ));
    }
    Some(match (subnets.as_slice(), free) {
        ([], None) => Finding::warning(
            "network",
            "every private subnet is in use".to_owned(),
            "Docker has none left for the cluster's network",
            "docker network prune",
        ),
        ([], Some(free)) => Finding::ok(
            "network",
            format!("{name} is not there yet; Docker chooses its subnet ({free} is free)"),
        ),
        (subnets, _) => {
            let subnets: Vec<String> = subnets.iter().map(ToString::to_string).collect();
            let subnets = subnets.join(" and ");
            let subject = if facts.network.wanted.is_some() { "" } else { &format!("{name}: ") };
            Finding::ok("network", format!("{subject}{subnets} overlaps with no other network and no route"))
        }
    })
}

/// What has subnets already, and who; the cluster's own network left out.
fn taken(facts: &Facts, daemon: &DaemonFacts, own: &str) -> Vec<(Subnet, String)> {
    let networks = daemon.networks.iter().filter(|network| network.name != own).flat_map(|network| {
        network
            .subnets
            .iter()
            .map(|subnet| (*subnet, format!("Docker's network {} ({subnet})", network.name)))
    });
    // A bridge of Docker's has a route too; its network is named instead.
    let bridges: BTreeSet<&str> = daemon.networks.iter().map(|network| network.interface.as_str()).collect();
    let routes = facts
        .network
        .routes
        .iter()
        .filter(|(_, interface)| !bridges.contains(interface.as_str()) && interface != "docker0");
    let routes =
        routes.map(|(subnet, interface)| (*subnet, format!("this host's route {subnet} ({interface})")));
    networks.chain(routes).collect()
}

pub(super) fn leftovers(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "containers";
    let Ok(daemon) = &facts.docker.daemon else { return Vec::new() };
    let current = facts.image.as_ref().ok().and_then(|image| image.id.as_deref());
    let (ours, others): (Vec<_>, Vec<_>) =
        daemon.containers.iter().partition(|container| container.cluster == facts.cluster);
    let mut findings = Vec::new();
    let ended: Vec<&str> =
        ours.iter().filter(|it| it.has_ended).map(|container| container.name.as_str()).collect();
    if !ended.is_empty() {
        // Of master and manager the state is in volumes; a node that has ended is replaced, not started again.
        let is_started = |it: &&OurContainer| it.has_ended && it.role != "node";
        let started: Vec<&str> =
            ours.iter().copied().filter(is_started).map(|container| container.name.as_str()).collect();
        let mend = match (ended.len() == ours.len(), started.as_slice()) {
            (true, _) => format!("evenkeel up{} --detach", facts.flags),
            (false, []) => format!("docker rm {}", ended.join(" ")),
            (false, started) => format!("docker start {}", started.join(" ")),
        };
        findings.push(Finding::warning(
            CHECK,
            format!("containers of this cluster have ended: {}", ended.join(", ")),
            "they hold their names, and show that something ended them",
            mend,
        ));
    }
    // A node may have an image of its own; master and manager are always made of this program.
    let old: Vec<&str> = ours
        .iter()
        .filter(|it| !it.has_ended && it.role != "node" && current != Some(it.image_id.as_str()))
        .map(|container| container.name.as_str())
        .collect();
    if !old.is_empty() {
        findings.push(Finding::warning(
            CHECK,
            format!("these run another version than this program: {}", old.join(", ")),
            "what is new in this program is not there, and its fixes are not either",
            format!("evenkeel down{0} && evenkeel up{0} --detach   # forgets all tasks", facts.flags),
        ));
    }
    let clusters: BTreeSet<&str> = others.iter().map(|it| it.cluster.as_str()).collect();
    for cluster in clusters {
        if others.iter().filter(|it| it.cluster == cluster).all(|it| it.has_ended) {
            findings.push(Finding::warning(
                CHECK,
                format!("cluster {cluster} has left containers that do not run any more"),
                "they take space and names",
                format!("evenkeel down --cluster {cluster}"),
            ));
        }
    }
    if findings.is_empty() {
        let count = ours.len();
        let text = if count == 0 {
            "none of this cluster, none left over".to_owned()
        } else {
            format!("{count} of this cluster, none left over")
        };
        findings.push(Finding::ok(CHECK, text));
    }
    findings
}
