//! From facts to findings: plain functions, no look at anything.

mod cluster;
mod docker;
mod host;
mod state;

use super::{facts::Facts, finding::Finding};
use std::path::Path;

/// Judges all of it; in the order in which one would mend.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = docker::daemon(facts);
    findings.extend(docker::socket(facts));
    findings.extend(docker::image(facts));
    findings.extend(docker::network(facts));
    findings.extend(docker::leftovers(facts));
    findings.push(host::cgroup(facts));
    findings.push(host::schedstat(facts));
    findings.push(host::clock(facts));
    findings.push(host::open_files(facts));
    findings.extend(host::ports(facts));
    findings.push(cluster::master(facts));
    findings.push(cluster::token(facts));
    findings.push(state::folder(facts));
    findings.extend(state::databases(facts));
    findings.extend(state::space(facts));
    findings
}

/// A path as a shell takes it.
fn shell(path: &Path) -> String {
    // The part after ` --x `.
    crate::connect::flag("x", &path.display().to_string()).split_off(" --x ".len())
}

#[cfg(test)]
mod tests;
