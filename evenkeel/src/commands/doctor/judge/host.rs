//! This machine: control groups, the scheduler's counters, clocks, open files, ports.

use super::super::{
    facts::{Cgroup, Facts, Port, PortRole, PortState},
    finding::Finding,
};
use protocol::Timestamp;

/// 2026-01-01T00:00:00Z: no clock that is right is before it.
const EARLIEST: Timestamp = Timestamp(1_767_225_600_000);
/// Clocks that are so far apart, beyond what the measurement can tell, are not kept together by anything.
const MOST_SKEW_MS: i64 = 2_000;
/// A wall clock that moves so much against the monotonic one within a moment was set.
const MOST_STEP_MS: i64 = 500;
/// Fewer open files than a master with its channels and connections wants (it raises its own limit as far as
/// it may).
const FEW_FILES: u64 = 4_096;

pub(super) fn cgroup(facts: &Facts) -> Finding {
    let what = match facts.cgroup {
        Cgroup::V1 => "cgroup v1",
        Cgroup::Hybrid => "cgroup v1 and v2 (hybrid), read as v1",
        Cgroup::V2 => "cgroup v2",
        Cgroup::Nothing => {
            return Finding::warning(
                "cgroup",
                "there are no control groups at /sys/fs/cgroup".to_owned(),
                "a node of this host can only count the CPU of its own processes, not see its limits",
                "sudo mount -t cgroup2 none /sys/fs/cgroup",
            );
        }
    };
    let processes = if facts.docker.daemon.is_err() { "; not used: processes have no limits" } else { "" };
    Finding::ok("cgroup", format!("{what}{processes}"))
}

pub(super) fn schedstat(facts: &Facts) -> Finding {
    const WHY: &str = "a node cannot tell how long its threads wait for a CPU, so it sees neighbours late";
    match &facts.schedstat {
        Ok(times) if times.run_ns > 0 || times.wait_ns > 0 => {
            Finding::ok("schedstat", "the kernel counts how long threads wait for a CPU")
        }
        Ok(_) => Finding::warning(
            "schedstat",
            "the kernel's scheduler statistics stay at 0",
            WHY,
            "sudo sysctl -w kernel.task_delayacct=1",
        ),
        Err(why) => Finding::warning(
            "schedstat",
            format!("the kernel has no scheduler statistics: {why}"),
            WHY,
            "grep CONFIG_SCHED_INFO \"/boot/config-$(uname -r)\"   # boot a kernel that has it",
        ),
    }
}

pub(super) fn clock(facts: &Facts) -> Finding {
    const NTP: &str = "sudo timedatectl set-ntp true";
    let clock = &facts.clock;
    if !clock.monotonic {
        return Finding::failure(
            "clock",
            "the monotonic clock does not go on",
            "every timeout and every back-off is counted by it",
            "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
        );
    }
    if clock.wall < EARLIEST {
        return Finding::failure(
            "clock",
            format!("this host's clock says {}", clock.wall),
            "certificates are not valid yet, and tokens live too long",
            NTP,
        );
    }
    if clock.step_ms.abs() > MOST_STEP_MS {
        return Finding::warning(
            "clock",
            format!("this host's clock was set by {} ms while we looked", clock.step_ms),
            "times that are shown jump; tokens may end early or late",
            NTP,
        );
    }
    match clock.ahead {
        Some((ahead_ms, exact_ms)) if ahead_ms.abs().saturating_sub(exact_ms) > MOST_SKEW_MS => {
            let word = if ahead_ms > 0 { "ahead of" } else { "behind" };
            Finding::warning(
                "clock",
                format!("this host's clock is {:.1} s {word} the master's", ahead_ms.abs() as f64 / 1_000.0),
                "a token's end is judged by the master's clock, and times of both cannot be compared",
                NTP,
            )
        }
        Some(_) => Finding::ok("clock", "this host's clock and the master's agree"),
        None => Finding::ok("clock", "this host's clock is sane"),
    }
}

pub(super) fn open_files(facts: &Facts) -> Finding {
    let (now, most) = facts.files;
    let text = |limit: Option<u64>| limit.map_or_else(|| "any number".to_owned(), |limit| limit.to_string());
    if most.is_some_and(|most| most < FEW_FILES) {
        return Finding::warning(
            "files",
            format!("a program may open at most {} files", text(most)),
            "a master needs one for each node and each client",
            "sudo sh -c 'echo \"* hard nofile 65536\" >> /etc/security/limits.conf'   # then log in again",
        );
    }
    Finding::ok(
        "files",
        format!("a program may open {} files, a master raises that to {}", text(now), text(most)),
    )
}

pub(super) fn ports(facts: &Facts) -> Vec<Finding> {
    facts.ports.iter().map(|port| one_port(facts, port)).collect()
}

fn one_port(facts: &Facts, port: &Port) -> Finding {
    const CHECK: &str = "ports";
    let address = port.address;
    let elsewhere = || {
        let free = port.free.unwrap_or(0);
        format!("evenkeel up{} --listen {}", facts.flags, std::net::SocketAddr::new(address.ip(), free))
    };
    let listeners = format!("ss -ltnp 'sport = :{}'", address.port());
    match (&port.state, port.role) {
        (PortState::Free, PortRole::Master) => {
            Finding::ok(CHECK, format!("{address} is free for the master"))
        }
        (PortState::Free, PortRole::Services) => {
            Finding::ok(CHECK, format!("{address} is free for HTTP services"))
        }
        (PortState::Ours, _) => Finding::ok(CHECK, format!("{address} is this cluster's master")),
        (PortState::OtherMaster, PortRole::Master) => Finding::failure(
            CHECK,
            format!("{address} is the master of another cluster"),
            "this cluster's master cannot listen there",
            elsewhere(),
        ),
        (PortState::Foreign(who), PortRole::Master) => Finding::failure(
            CHECK,
            format!("{address} is in use by {}", who.as_deref().unwrap_or("another program")),
            "the master cannot listen there",
            elsewhere(),
        ),
        (PortState::Foreign(_) | PortState::OtherMaster, PortRole::Services) => Finding::warning(
            CHECK,
            format!("{address} is in use by another program"),
            "HTTP services will be served there",
            listeners,
        ),
        (PortState::Impossible(why), _) => Finding::failure(
            CHECK,
            format!("nobody can listen on {address} here: {why}"),
            "the master cannot either",
            format!("evenkeel up{} --listen 127.0.0.1:7400", facts.flags),
        ),
    }
}
