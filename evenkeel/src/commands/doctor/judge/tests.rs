//! Many machines and clusters, as facts.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::{
    super::{
        facts::{
            Cgroup, Clock, Database, Docker, Facts, Image, Master, Network, Port, PortRole, PortState,
            Socket, Space, State, Token, TokenAtMaster, TokenSource,
        },
        finding::{Finding, Verdict, worst},
    },
    judge,
};
use crate::up::runtime::RuntimeArg;
use master::StoreLook;
use node::cpu::text::ThreadTimes;
use node_manager::docker::{
    facts::{DaemonFacts, OurContainer},
    network::KnownNetwork as DockerNetwork,
    subnet::Subnet,
};
use protocol::{
    Timestamp,
    auth::{Scope, TokenInfo},
};
use std::time::Duration;

const NOW: Timestamp = Timestamp(1_795_000_000_000);

fn subnet(text: &str) -> Subnet {
    Subnet::parse(text).unwrap()
}

fn daemon() -> DaemonFacts {
    DaemonFacts {
        version: "27.0".to_owned(),
        api: (1, 46),
        cgroup_version: Some(2),
        limits_cpu: true,
        limits_memory: true,
        limits_pids: true,
        root_dir: "/var/lib/docker".to_owned(),
        warnings: Vec::new(),
        networks: vec![
            DockerNetwork {
                name: "bridge".to_owned(),
                interface: "docker0".to_owned(),
                subnets: vec![subnet("172.17.0.0/16")],
            },
            DockerNetwork {
                name: "balancer-net".to_owned(),
                interface: "br-0123456789ab".to_owned(),
                subnets: vec![subnet("172.18.0.0/16")],
            },
        ],
        containers: vec![container("evenkeel-default-master", "default", "master", false, "sha256:1")],
    }
}

fn container(name: &str, cluster: &str, role: &str, has_ended: bool, image_id: &str) -> OurContainer {
    let [name, cluster, role, image_id] = [name, cluster, role, image_id].map(str::to_owned);
    OurContainer { name, cluster, role, has_ended, image_id }
}

fn admin(expires_at: Option<Timestamp>) -> TokenInfo {
    TokenInfo {
        id: uuid::Uuid::nil(),
        scopes: vec![Scope::Admin],
        created_at: Timestamp(0),
        expires_at,
        single_use: false,
        node_name: None,
        note: String::new(),
    }
}

const ROOM: Space = Space { free_bytes: 50 << 30, free_files: Some(1_000_000) };

/// A machine on which all is well, with a cluster of containers.
fn well() -> Facts {
    Facts {
        cluster: "default".to_owned(),
        flags: String::new(),
        runtime: Some(RuntimeArg::Docker),
        docker: Docker {
            variable: None,
            socket: Some(Socket {
                path: "/var/run/docker.sock".into(),
                file: Some((0o140_660, "docker".to_owned())),
                denied: false,
            }),
            daemon: Ok(daemon()),
        },
        image: Ok(Image {
            reference: "evenkeel:0123456789ab".to_owned(),
            id: Some("sha256:1".to_owned()),
            latest: Some("sha256:1".to_owned()),
        }),
        network: Network {
            wanted: None,
            routes: vec![
                (subnet("192.0.2.0/24"), "eth0".to_owned()),
                (subnet("172.17.0.0/16"), "docker0".to_owned()),
                (subnet("172.18.0.0/16"), "br-0123456789ab".to_owned()),
            ],
        },
        cgroup: Cgroup::V2,
        schedstat: Ok(ThreadTimes { run_ns: 5, wait_ns: 5 }),
        clock: Clock { wall: NOW, monotonic: true, step_ms: 0, ahead: Some((300, 600)) },
        master: Master {
            url: "http://127.0.0.1:7400".to_owned(),
            expected: true,
            lives: Ok(()),
            ready: Ok(()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        },
        ports: vec![port(PortRole::Master, PortState::Ours), port(PortRole::Services, PortState::Free)],
        token: Token {
            source: TokenSource::File { path: "/s/admin.token".into(), mode: Some(0o100_600), read: Ok(()) },
            at_master: TokenAtMaster::Known(Box::new(admin(None))),
        },
        state: State {
            path: "/s".into(),
            mode: Some(0o40_700),
            write: Ok(Duration::from_millis(2)),
            space: Ok(ROOM),
            databases: Vec::new(),
        },
        docker_space: Some(Ok(ROOM)),
        files: (Some(1_024), Some(1_048_576)),
    }
}

fn port(role: PortRole, state: PortState) -> Port {
    let number = if role == PortRole::Master { 7_400 } else { 7_480 };
    Port { address: ([127, 0, 0, 1], number).into(), role, state, free: Some(7_401) }
}

/// A machine without Docker and without any cluster.
fn bare() -> Facts {
    let mut facts = well();
    facts.runtime = None;
    let socket = Socket { path: "/var/run/docker.sock".into(), file: None, denied: false };
    facts.docker = Docker { variable: None, socket: Some(socket), daemon: Err("no daemon".to_owned()) };
    facts.image = Err("no daemon".to_owned());
    facts.docker_space = None;
    facts.clock.ahead = None;
    let gone = Err("no connection".to_owned());
    facts.master.expected = false;
    (facts.master.lives, facts.master.ready, facts.master.version) = (gone.clone(), gone, None);
    facts.ports[0].state = PortState::Free;
    facts.token = Token { source: TokenSource::Nowhere, at_master: TokenAtMaster::NotAsked };
    (facts.state.mode, facts.state.write) = (None, Ok(Duration::ZERO));
    facts
}

/// What is not well.
fn bad(facts: &Facts) -> Vec<Finding> {
    judge(facts).into_iter().filter(|finding| finding.verdict != Verdict::Ok).collect()
}

/// The one finding that this change of a healthy machine makes.
fn only(change: impl FnOnce(&mut Facts)) -> Finding {
    let mut facts = well();
    change(&mut facts);
    let mut bad = bad(&facts);
    assert_eq!(bad.len(), 1, "{bad:#?}");
    bad.remove(0)
}

fn expect(finding: &Finding, check: &str, verdict: Verdict, what: &str, mend: &str) {
    assert_eq!((finding.check, finding.verdict), (check, verdict), "{finding:?}");
    assert!(finding.what.contains(what), "{finding:?}");
    assert!(finding.mend.as_ref().is_some_and(|text| text.contains(mend)), "{finding:?}");
    assert!(finding.why.as_ref().is_some_and(|why| !why.is_empty()), "{finding:?}");
}

#[test]
fn where_all_is_well_nothing_is_said_against_it() {
    let findings = judge(&well());
    assert_eq!(worst(&findings), Verdict::Ok, "{findings:#?}");
    let checks: Vec<&str> = findings.iter().map(|finding| finding.check).collect();
    for check in [
        "docker",
        "limits",
        "socket",
        "image",
        "network",
        "containers",
        "cgroup",
        "schedstat",
        "clock",
        "files",
        "ports",
        "master",
        "token",
        "state",
        "space",
    ] {
        assert!(checks.contains(&check), "nothing is said of {check}");
    }
    assert!(findings.iter().all(|finding| !finding.what.contains('\n')));
}

#[test]
fn without_docker_and_without_a_cluster_there_is_one_warning() {
    let bad = bad(&bare());
    assert_eq!(bad.len(), 1, "{bad:#?}");
    expect(&bad[0], "docker", Verdict::Warning, "no Docker on this host", "install");
    assert!(bad[0].why.as_ref().unwrap().contains("processes of this host"));
}

#[test]
fn the_master_of_somebody_else_is_told_by_its_port_alone() {
    let mut facts = bare();
    (facts.master.lives, facts.master.ready) = (Ok(()), Ok(()));
    facts.ports[0].state = PortState::OtherMaster;
    facts.token.at_master = TokenAtMaster::Refused("401".to_owned());
    let bad = bad(&facts);
    assert_eq!(bad.iter().map(|finding| finding.check).collect::<Vec<_>>(), ["docker", "ports"], "{bad:#?}");
}

#[test]
fn a_docker_that_somebody_counts_on_and_that_does_not_answer_is_a_failure() {
    let mut facts = bare();
    facts.docker.variable = Some("tcp://192.0.2.1:2375".to_owned());
    facts.docker.socket = None;
    expect(&bad(&facts)[0], "docker", Verdict::Failure, "tcp://192.0.2.1:2375", "unset DOCKER_HOST");

    let mut facts = bare();
    facts.runtime = Some(RuntimeArg::Docker);
    expect(&bad(&facts)[0], "docker", Verdict::Failure, "no Docker", "install");
}

#[test]
fn a_socket_that_refuses_this_user_names_the_group() {
    let mut facts = bare();
    let socket = facts.docker.socket.as_mut().unwrap();
    (socket.denied, socket.file) = (true, Some((0o140_660, "docker".to_owned())));
    expect(
        &bad(&facts)[0],
        "docker",
        Verdict::Warning,
        "may not use /var/run/docker.sock",
        "usermod -aG docker",
    );

    facts.docker.socket.as_mut().unwrap().denied = false;
    expect(&bad(&facts)[0], "docker", Verdict::Warning, "no Docker daemon answers", "systemctl start docker");

    let open =
        only(|facts| facts.docker.socket.as_mut().unwrap().file = Some((0o140_666, "docker".to_owned())));
    expect(&open, "socket", Verdict::Warning, "mode 0666", "chmod o-rwx /var/run/docker.sock");
}

fn with_daemon(change: impl FnOnce(&mut DaemonFacts)) -> Finding {
    only(|facts| change(facts.docker.daemon.as_mut().unwrap()))
}

#[test]
fn what_docker_cannot_limit_is_said() {
    let finding = with_daemon(|daemon| daemon.limits_cpu = false);
    expect(&finding, "limits", Verdict::Failure, "CPU (cgroup v2)", "Delegate=cpu");
    let finding = with_daemon(|daemon| (daemon.limits_memory, daemon.cgroup_version) = (false, Some(1)));
    expect(&finding, "limits", Verdict::Warning, "memory (cgroup v1)", "cgroup_enable=memory");
    let finding = with_daemon(|daemon| (daemon.limits_cpu, daemon.cgroup_version) = (false, None));
    expect(&finding, "limits", Verdict::Failure, "CPU", "CONFIG_CFS_BANDWIDTH");
    let finding = with_daemon(|daemon| daemon.api = (1, 40));
    expect(&finding, "docker", Verdict::Warning, "API 1.40", "upgrade");
}

#[test]
fn images_of_other_programs_are_told_and_a_missing_one_is_no_fault() {
    let finding = only(|facts| facts.image.as_mut().unwrap().latest = Some("sha256:2".to_owned()));
    expect(&finding, "image", Verdict::Warning, "evenkeel:latest", "evenkeel image build");
    let finding = only(|facts| {
        facts.image = Err("the program is linked dynamically".to_owned());
        facts.docker.daemon.as_mut().unwrap().containers.clear();
    });
    expect(&finding, "image", Verdict::Failure, "dynamically", "cargo build --release");
    let mut facts = well();
    let image = facts.image.as_mut().unwrap();
    (image.id, image.latest) = (None, None);
    facts.docker.daemon.as_mut().unwrap().containers.clear();
    assert!(bad(&facts).is_empty());
}

#[test]
fn an_overlap_names_who_has_the_subnet_and_a_free_one() {
    // A wanted one, with another network of Docker's.
    let finding = only(|facts| facts.network.wanted = Some(subnet("172.17.128.0/24")));
    expect(&finding, "network", Verdict::Failure, "network bridge (172.17.0.0/16)", "--subnet 172.18.0.0/16");
    // With a route of the host.
    let finding = only(|facts| facts.network.wanted = Some(subnet("192.0.0.0/16")));
    expect(&finding, "network", Verdict::Failure, "route 192.0.2.0/24 (eth0)", "--subnet");
    // The network that is there, with a route that came later (a VPN, say).
    let finding = only(|facts| facts.network.routes.push((subnet("172.16.0.0/12"), "tun0".to_owned())));
    expect(
        &finding,
        "network",
        Verdict::Failure,
        "172.16.0.0/12 (tun0)",
        "down && evenkeel up --subnet 10.0.0.0/16",
    );
    // Its own bridge and Docker's own are no overlap: that is `well`.
    let finding = only(|facts| {
        facts.docker.daemon.as_mut().unwrap().networks.pop();
        facts.network.routes =
            vec![(subnet("172.16.0.0/12"), "a".to_owned()), (subnet("10.0.0.0/8"), "b".to_owned())];
    });
    expect(&finding, "network", Verdict::Warning, "every private subnet", "docker network prune");
}

#[test]
fn containers_that_are_left_over_are_named() {
    let add = |container: OurContainer| with_daemon(|daemon| daemon.containers.push(container));
    let finding = add(container("evenkeel-default-default-1", "default", "node", true, "sha256:1"));
    expect(&finding, "containers", Verdict::Warning, "default-1", "docker rm evenkeel-default-default-1");
    let finding = add(container("evenkeel-default-manager", "default", "manager", true, "sha256:1"));
    expect(&finding, "containers", Verdict::Warning, "manager", "docker start evenkeel-default-manager");
    let finding = with_daemon(|daemon| daemon.containers[0].has_ended = true);
    expect(&finding, "containers", Verdict::Warning, "evenkeel-default-master", "evenkeel up --detach");
    let finding = add(container("evenkeel-default-manager", "default", "manager", false, "sha256:0"));
    expect(&finding, "containers", Verdict::Warning, "another version", "evenkeel up --detach");
    let finding = add(container("evenkeel-old-master", "old", "master", true, "sha256:0"));
    expect(&finding, "containers", Verdict::Warning, "cluster old", "evenkeel down --cluster old");
    // Of another cluster that runs, nothing is said; a node may have an image of its own.
    let mut facts = well();
    let containers = &mut facts.docker.daemon.as_mut().unwrap().containers;
    containers.push(container("evenkeel-x-master", "x", "master", false, "sha256:0"));
    containers.push(container("evenkeel-x-default-1", "x", "node", true, "sha256:0"));
    containers.push(container("evenkeel-default-default-1", "default", "node", false, "sha256:9"));
    assert!(bad(&facts).is_empty());
}

#[test]
fn what_the_kernel_does_not_count_is_a_warning() {
    let finding = only(|facts| facts.schedstat = Err("No such file".to_owned()));
    expect(&finding, "schedstat", Verdict::Warning, "No such file", "CONFIG_SCHED_INFO");
    let finding = only(|facts| facts.schedstat = Ok(ThreadTimes::default()));
    expect(&finding, "schedstat", Verdict::Warning, "stay at 0", "kernel.task_delayacct=1");
    let finding = only(|facts| facts.cgroup = Cgroup::Nothing);
    expect(&finding, "cgroup", Verdict::Warning, "no control groups", "mount -t cgroup2");
    for cgroup in [Cgroup::V1, Cgroup::Hybrid] {
        let mut facts = well();
        facts.cgroup = cgroup;
        assert!(bad(&facts).is_empty());
    }
}

#[test]
fn clocks_are_judged_by_what_the_measurement_can_tell() {
    let with = |change: fn(&mut Clock)| only(|facts| change(&mut facts.clock));
    let finding = with(|clock| clock.ahead = Some((-9_000, 700)));
    expect(&finding, "clock", Verdict::Warning, "9.0 s behind", "set-ntp true");
    let finding = with(|clock| clock.ahead = Some((2_800, 700)));
    expect(&finding, "clock", Verdict::Warning, "2.8 s ahead of", "set-ntp true");
    expect(&with(|clock| clock.wall = Timestamp(0)), "clock", Verdict::Failure, "1970", "set-ntp");
    expect(&with(|clock| clock.step_ms = -3_600_000), "clock", Verdict::Warning, "was set", "set-ntp");
    expect(&with(|clock| clock.monotonic = false), "clock", Verdict::Failure, "monotonic", "clocksource");
    for ahead in [None, Some((2_600, 700)), Some((-1_900, 0))] {
        let mut facts = well();
        facts.clock.ahead = ahead;
        assert!(bad(&facts).is_empty(), "{ahead:?}");
    }
}

#[test]
fn a_port_that_somebody_else_has_names_a_free_one() {
    let with = |role, state: PortState| {
        only(|facts| facts.ports[usize::from(role == PortRole::Services)] = port(role, state))
    };
    let who = Some("python3 (pid 7)".to_owned());
    let finding = with(PortRole::Master, PortState::Foreign(who));
    expect(&finding, "ports", Verdict::Failure, "python3 (pid 7)", "evenkeel up --listen 127.0.0.1:7401");
    let finding = with(PortRole::Master, PortState::OtherMaster);
    expect(&finding, "ports", Verdict::Failure, "another cluster", "--listen 127.0.0.1:7401");
    let finding = with(PortRole::Master, PortState::Impossible("permission denied".to_owned()));
    expect(&finding, "ports", Verdict::Failure, "permission denied", "--listen");
    let finding = with(PortRole::Services, PortState::Foreign(None));
    expect(&finding, "ports", Verdict::Warning, "7480", "ss -ltnp");
}

#[test]
fn a_token_is_private_known_and_lasts() {
    let with = |change: fn(&mut Token)| only(|facts| change(&mut facts.token));
    let file = |mode, read| TokenSource::File { path: "/s/a token".into(), mode, read };
    let finding = only(|facts| facts.token.source = file(Some(0o100_644), Ok(())));
    expect(&finding, "token", Verdict::Failure, "mode 0644", "chmod 600 '/s/a token'");
    let finding = only(|facts| facts.token.source = file(None, Err("cannot be read".to_owned())));
    expect(&finding, "token", Verdict::Failure, "cannot be read", "chown");
    let finding = with(|token| token.at_master = TokenAtMaster::Refused("revoked".to_owned()));
    expect(&finding, "token", Verdict::Failure, "revoked", "evenkeel up");
    let finding =
        with(|token| token.at_master = TokenAtMaster::Known(Box::new(admin(Some(NOW.plus_ms(3_600_000))))));
    expect(&finding, "token", Verdict::Warning, "ends at", "token create");
    let finding = with(|token| token.at_master = TokenAtMaster::Unclear("404".to_owned()));
    expect(&finding, "token", Verdict::Warning, "404", "evenkeel status");
    let finding = with(|token| {
        *token = Token { source: TokenSource::Nowhere, at_master: TokenAtMaster::Refused("401".to_owned()) };
    });
    expect(&finding, "token", Verdict::Failure, "no token", "--token-file");

    for fine in
        [TokenAtMaster::NotNeeded, TokenAtMaster::Known(Box::new(admin(Some(NOW.plus_ms(86_400_001)))))]
    {
        let mut facts = well();
        facts.token.at_master = fine;
        facts.token.source = TokenSource::Variable;
        assert!(bad(&facts).is_empty());
    }
}

#[test]
fn a_master_that_should_be_there_and_is_not_is_a_failure() {
    let finding = only(|facts| {
        facts.master.lives = Err("no connection to the master".to_owned());
        facts.token.at_master = TokenAtMaster::NotAsked;
    });
    expect(&finding, "master", Verdict::Failure, "no connection", "evenkeel up --detach");
    let finding = only(|facts| facts.master.ready = Err("the store refuses".to_owned()));
    expect(
        &finding,
        "master",
        Verdict::Failure,
        "the store refuses",
        "docker logs --tail 20 evenkeel-default-master",
    );
    let finding = only(|facts| facts.master.version = Some("0.0.1".to_owned()));
    expect(&finding, "master", Verdict::Warning, "version 0.0.1", "evenkeel up");
}

#[test]
fn a_state_directory_is_private_writable_and_quick() {
    let with = |change: fn(&mut State)| only(|facts| change(&mut facts.state));
    let finding = with(|state| state.write = Err("No space left on device".to_owned()));
    expect(&finding, "state", Verdict::Failure, "No space left", "df -h /s");
    let finding = with(|state| (state.mode, state.write) = (None, Err("Permission denied".to_owned())));
    expect(&finding, "state", Verdict::Failure, "cannot be made", "install -d -m 700");
    let finding = with(|state| state.mode = Some(0o40_777));
    expect(&finding, "state", Verdict::Failure, "mode 0777", "chmod 700 /s");
    let finding = with(|state| state.write = Ok(Duration::from_millis(900)));
    expect(&finding, "state", Verdict::Warning, "900 ms", "findmnt -T /s");
}

#[test]
fn databases_open_and_are_not_of_a_newer_program() {
    let database = |look, held| Database { folder: "/s/master".into(), look, held };
    let look = |schema| Ok(StoreLook { schema, newest_known: 2 });
    let finding = only(|facts| facts.state.databases.push(database(look(3), false)));
    expect(&finding, "store", Verdict::Failure, "schema 3, this program knows 2", "evenkeel version");
    let finding = only(|facts| facts.state.databases.push(database(Err("not a database".to_owned()), false)));
    expect(&finding, "store", Verdict::Failure, "not a database", "cp -a /s/master");
    let mut facts = well();
    facts.state.databases = vec![database(look(1), false), database(look(2), true)];
    assert!(bad(&facts).is_empty(), "an older schema is brought up to date");
    facts.master.lives = Err("no connection".to_owned());
    let bad = bad(&facts);
    let held = bad.iter().find(|finding| finding.check == "store").unwrap();
    expect(held, "store", Verdict::Failure, "holds the database", "fuser -v /s/master/evenkeel.lock");
}

#[test]
fn space_and_files_run_out_in_steps() {
    let with = |space| only(|facts| facts.state.space = Ok(space));
    let finding = with(Space { free_bytes: 1 << 20, free_files: None });
    expect(&finding, "space", Verdict::Failure, "1 MiB free", "df -h /s");
    let finding = with(Space { free_bytes: 500 << 20, free_files: None });
    expect(&finding, "space", Verdict::Warning, "500 MiB free", "df -h /s");
    let finding = with(Space { free_bytes: 50 << 30, free_files: Some(3) });
    expect(&finding, "space", Verdict::Failure, "inodes", "df -i /s");
    let finding = only(|facts| facts.docker_space = Some(Ok(Space { free_bytes: 0, free_files: None })));
    expect(&finding, "space", Verdict::Failure, "/var/lib/docker", "docker image prune");
    let finding = only(|facts| facts.files = (Some(1_024), Some(1_024)));
    expect(&finding, "files", Verdict::Warning, "1024", "limits.conf");
}

#[test]
fn commands_name_the_cluster_that_was_asked_for() {
    let mut facts = well();
    (facts.cluster, facts.flags) = ("c".to_owned(), " --cluster c".to_owned());
    facts.master.lives = Err("gone".to_owned());
    facts.token.at_master = TokenAtMaster::NotAsked;
    facts.ports[0].state = PortState::Foreign(None);
    let bad = bad(&facts);
    assert!(bad.iter().all(|finding| finding.mend.as_ref().unwrap().contains("--cluster c")), "{bad:#?}");
    assert!(bad.len() >= 2);
}
