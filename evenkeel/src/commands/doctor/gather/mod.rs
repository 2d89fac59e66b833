//! Looks at this machine and at the cluster, and changes nothing but one small file that it takes away again.
//! Every look has a bound; all are made at the same time.

mod cluster;
mod disk;
mod docker;
mod host;
mod ports;

use super::{
    DoctorArgs,
    facts::{Facts, Network, Probe},
};
use crate::{cli::Global, exit::Failure, up::runtime};
use service::state::StateDir;
use std::time::Duration;

/// Longest that one look may take.
const WITHIN: Duration = Duration::from_secs(8);

/// Looks at everything.
///
/// # Errors
/// If there is no name for the state directory, or the command line names what cannot be used.
pub(super) async fn gather(global: &Global, args: &DoctorArgs) -> Result<Facts, Failure> {
    let state: StateDir = global.state()?;
    let found = cluster::find(global, args, &state)?;
    let listen = ports::address(args.listen, &found);
    let (docker, master, state_facts, host, routes) = tokio::join!(
        docker::look(),
        cluster::look(&found),
        disk::look(state.clone()),
        host::look(),
        blocking(host::routes),
    );
    let ports = ports::look(listen, &found, &master).await;
    let clock = host.clock(master.clock);
    Ok(Facts {
        cluster: global.cluster.clone(),
        flags: global.flags(),
        runtime: runtime::noted(&state),
        docker: docker.way,
        image: docker.image,
        network: Network { wanted: args.subnet, routes: routes.unwrap_or_default() },
        cgroup: host.cgroup,
        schedstat: host.schedstat,
        clock,
        master: master.master,
        ports,
        token: master.token,
        state: state_facts,
        docker_space: docker.space,
        files: host.files,
    })
}

/// Runs a look that blocks beside the others.
async fn blocking<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Probe<T> {
    let looking = tokio::task::spawn_blocking(look);
    match tokio::time::timeout(WITHIN, looking).await {
        Ok(Ok(seen)) => Ok(seen),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(late()),
    }
}

/// Waits for a look, but not for ever.
async fn bounded<T>(look: impl Future<Output = Probe<T>>) -> Probe<T> {
    tokio::time::timeout(WITHIN, look).await.unwrap_or_else(|_| Err(late()))
}

fn late() -> String {
    format!("no answer within {} s", WITHIN.as_secs())
}
