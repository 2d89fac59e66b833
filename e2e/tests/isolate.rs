//! What a task can reach: with `up --isolate` the master and other nodes, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{
    Cluster, docker,
    images::{busybox, debian_python},
};
use std::{net::TcpListener, process::Command};

/// A container of another network, gone when dropped.
struct Stranger {
    name: String,
}

impl Stranger {
    fn new(image: &str) -> (Self, String) {
        let stranger = Self { name: format!("t-stranger-{}", std::process::id()) };
        docker(&["network", "create", &stranger.name]);
        let network = ["--network", &stranger.name, "--name", &stranger.name];
        let serve = ["--entrypoint", "/bin/httpd", image, "-f", "-p", "8080"];
        docker(&[&["run", "-d"], &network[..], &serve].concat());
        let of_network = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let address = docker(&["inspect", "-f", of_network, &stranger.name]);
        (stranger, address)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        for line in [["rm", "-f", &self.name].as_slice(), &["network", "rm", &self.name]] {
            let _ = e2e::try_run(Command::new("docker").args(line), "");
        }
    }
}

/// Addresses of this host on its bridges and beyond.
fn addresses_of_this_host() -> Vec<String> {
    let shown = e2e::run(Command::new("hostname").arg("-I"));
    shown.split_whitespace().filter(|address| address.contains('.')).map(str::to_owned).collect()
}

/// Whether a task on a node reaches each of these, or why not.
fn tried(cluster: &Cluster, targets: &[(String, u16)]) -> Vec<String> {
    let code = "import concurrent.futures, socket, sys\n\
        def tried(target):\n\
        \x20   host, port = target.rsplit(':', 1)\n\
        \x20   try:\n\
        \x20       socket.create_connection((host, int(port)), timeout=5).close()\n\
        \x20       return 'reached'\n\
        \x20   except OSError as error: return error\n\
        with concurrent.futures.ThreadPoolExecutor(32) as all:\n\
        \x20   print(*all.map(tried, sys.argv[1:]), sep='\\n')\n";
    let targets: Vec<_> = targets.iter().map(|(host, port)| format!("{host}:{port}")).collect();
    let mut line = vec!["submit", "-o", "value", "run", "--", "python3", "-c", code];
    line.extend(targets.iter().map(String::as_str));
    cluster.evenkeel(&line).lines().map(str::to_owned).collect()
}

#[test]
fn an_isolated_node_reaches_the_master_and_no_other_network_nor_the_host_nor_the_world() {
    let image = busybox("isolate");
    let (_stranger, address) = Stranger::new(&image.name);
    // A program of this host that listens everywhere.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();

    // That it is reached without isolation shows that the looks below see something.
    let mut host: Vec<(String, u16)> = Vec::new();
    {
        let open = Cluster::up(&["--nodes", "1", "--image", debian_python()]);
        let format = "{{(index .IPAM.Config 0).Gateway}}";
        let network = format!("balancer-net-{}", open.name);
        let gateway = docker(&["network", "inspect", "-f", format, &network]);
        assert_eq!(tried(&open, &[(gateway, port)]), ["reached"]);
    }
    let cluster = Cluster::up(&["--isolate", "--nodes", "2", "--image", debian_python()]);
    let master = (format!("evenkeel-{}-master", cluster.name), 7_400);
    assert_eq!(tried(&cluster, &[master]), ["reached"], "as it has to be, for work to come");

    host.extend(addresses_of_this_host().into_iter().map(|address| (address, port)));
    let format = "{{range .IPAM.Config}}{{.Gateway}} {{end}}";
    let networks = [
        format!("balancer-net-{}", cluster.name),
        format!("evenkeel-{}-out", cluster.name),
        "bridge".to_owned(),
    ];
    for network in networks {
        let gateways = docker(&["network", "inspect", "-f", format, &network]);
        host.extend(gateways.split_whitespace().map(|address| (address.to_owned(), port)));
    }
    host.push((address, 8_080));
    // A public resolver and a name: the world, where there is one.
    host.extend([("9.9.9.9".to_owned(), 53), ("deb.debian.org".to_owned(), 80)]);
    for (target, outcome) in host.iter().zip(tried(&cluster, &host)) {
        assert_ne!(outcome, "reached", "{target:?}");
    }
    let nodes = cluster.containers("node");
    assert_eq!(nodes.len(), 2);
    for node in nodes {
        let networks = docker(&[
            "inspect",
            "-f",
            "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}",
            &node,
        ]);
        assert_eq!(networks, format!("balancer-net-{}", cluster.name));
    }
    let name = cluster.name.clone();
    drop(cluster);
    let left = docker(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(!left.contains(&name), "{left}");
}

#[test]
fn a_network_with_a_way_out_is_not_taken_for_an_isolated_one() {
    let name = format!("t-hand-{}", std::process::id());
    let network = format!("balancer-net-{name}");
    docker(&["network", "create", &network]);
    let ran = Cluster::try_up(&name, &["--isolate", "--nodes", "1"]);
    docker(&["network", "rm", &network]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains(&network) && ran.stderr.contains("way out"), "{ran:?}");
}
