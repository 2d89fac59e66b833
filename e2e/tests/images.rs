//! Nodes made from images of other kinds than ours: without libraries, with musl, with glibc.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use e2e::{
    Cluster, Ran, docker, eventually,
    images::{busybox, debian_python, from_scratch},
    run, try_run,
};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

/// What a command in a node wrote.
fn said(cluster: &Cluster, argv: &[&str]) -> String {
    cluster.evenkeel(&[&["submit", "-o", "value", "run", "--"], argv].concat()).trim().to_owned()
}

/// A command in a node that has to fail; what it wrote to standard error.
fn refused(cluster: &Cluster, argv: &[&str]) -> String {
    let ran = cluster.try_evenkeel(&[&["submit", "run", "--"], argv].concat());
    assert_eq!(ran.code, 1, "{ran:?}");
    ran.stderr
}

fn inspect(container: &str) -> Value {
    serde_json::from_str::<Value>(&docker(&["inspect", container])).unwrap()[0].take()
}

/// A folder in which everybody may write, as the nodes' user is nobody of this host.
fn shared_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Changes the pool's template over HTTP.
fn change_template(cluster: &Cluster, change: impl FnOnce(&mut Value)) -> Ran {
    let url = format!("http://127.0.0.1:{}/v1/pools/default", cluster.port);
    let bearer = format!("Authorization: Bearer {}", cluster.token());
    let curl = |more: &[&str], body: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail-with-body", "-H", &bearer, "-H", "Content-Type: application/json"]);
        try_run(curl.args(more).arg(&url), body)
    };
    let mut pool = curl(&[], "").json();
    change(&mut pool["template"]);
    let body = json!({"desired": pool["desired"], "template": pool["template"]});
    curl(&["-X", "PUT", "--data-binary", "@-"], &body.to_string())
}

/// Waits until all nodes are made from another template than these, and are ready.
fn replaced(cluster: &Cluster, before: &[String]) -> Vec<String> {
    eventually("the nodes are replaced", 90, || {
        let now = cluster.containers("node");
        let ids: Vec<_> = now.iter().map(|name| docker_id(name)).collect();
        let ready = cluster.nodes().iter().filter(|node| node.text("status") == "ready").count();
        if now.len() == before.len() && ready == now.len() && !ids.iter().any(|id| before.contains(id)) {
            Ok(now)
        } else {
            Err(format!("{now:?}, {ready} ready"))
        }
    })
}

/// Empty if it has gone meanwhile.
fn docker_id(container: &str) -> String {
    try_run(Command::new("docker").args(["inspect", "-f", "{{.Id}}", container]), "").stdout.trim().to_owned()
}

fn ids(cluster: &Cluster) -> Vec<String> {
    cluster.containers("node").iter().map(|name| docker_id(name)).collect()
}

#[test]
fn an_image_with_a_shell_and_no_library_works_hardened_and_with_folders_of_the_host() {
    let image = busybox("busybox");
    let (input, output) = (shared_folder(), shared_folder());
    fs::write(input.path().join("file"), "from the host").unwrap();
    let mount = |folder: &Path, to: &str| format!("{}:{to}", folder.display());
    let (input_mount, output_mount) = (mount(input.path(), "/in:ro"), mount(output.path(), "/out"));
    let arguments =
        ["--nodes", "1", "--image", &image.name, "--mount", &input_mount, "--mount", &output_mount];
    let name = {
        let cluster = Cluster::up(&arguments);
        assert_eq!(cluster.evenkeel(&["submit", "fib", "20"]), r#"{"value":"6765"}"#);
        assert_eq!(said(&cluster, &["sh", "-c", "id -u; cat /in/file"]), "65532\nfrom the host");
        said(&cluster, &["sh", "-c", "tr a-z A-Z < /in/file > /out/file"]);
        assert_eq!(fs::read_to_string(output.path().join("file")).unwrap(), "FROM THE HOST");
        for path in ["/x", "/in/x", "/.evenkeel/x", "/.evenkeel/evenkeel"] {
            let why = refused(&cluster, &["sh", "-c", &format!("echo x > {path}")]);
            assert!(why.contains("Read-only file system") || why.contains("denied"), "{path}: {why}");
        }
        // A program that is made in the work directory can be run there.
        let made = "printf '#!/bin/sh\\necho made here\\n' > tool; chmod +x tool; ./tool";
        assert_eq!(said(&cluster, &["sh", "-c", made]), "made here");
        // The image's environment is for its own program; only where its programs are counts.
        let environment = said(&cluster, &["env"]);
        assert!(environment.contains("PATH=/bin\n") && !environment.contains("MEANT_FOR"), "{environment}");

        let node = inspect(&cluster.containers("node")[0]);
        assert_eq!(node["Config"]["User"], "65532:65532");
        assert_eq!(node["HostConfig"]["ReadonlyRootfs"], true);
        assert_eq!(node["HostConfig"]["CapDrop"], json!(["ALL"]));
        assert_eq!(node["State"]["Health"], Value::Null, "the image's own check does not run");

        // The program comes from a volume of the cluster; one of an earlier program goes with it.
        let volume = node["Mounts"].as_array().unwrap().iter().find(|m| m["Destination"] == "/.evenkeel");
        let volume = volume.unwrap()["Name"].as_str().unwrap().to_owned();
        assert!(volume.starts_with(&format!("evenkeel-{}-bin-", cluster.name)), "{volume}");
        let label = format!("io.evenkeel.cluster={}", cluster.name);
        let earlier = format!("evenkeel-{}-bin-000000000000", cluster.name);
        docker(&["volume", "create", "--label", &label, &earlier]);
        let listed = cluster.evenkeel(&["node-manager", "prune", "--dry-run"]);
        for name in [&volume, &earlier] {
            assert!(listed.contains(&format!("volume {name}")), "{listed}");
        }
        cluster.name.clone()
    };
    let left = docker(&["volume", "ls", "--format", "{{.Name}}"]);
    assert!(!left.contains(&name), "{left}");
}

#[test]
fn an_image_with_musl_and_without_a_shell_runs_its_program() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(
        at("hello.c"),
        r#"#include <stdio.h>
int main(void) { puts("hello from musl"); return 0; }
"#,
    )
    .unwrap();
    run(Command::new("musl-gcc").args(["-o", &at("hello"), &at("hello.c")]));
    let loader = format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH);
    let image = from_scratch("musl", &[(&loader, &loader), (&at("hello"), "/hello")], "");
    let cluster = Cluster::up(&["--nodes", "1", "--image", &image.name]);
    assert_eq!(said(&cluster, &["/hello"]), "hello from musl");
    let why = refused(&cluster, &["sh", "-c", "true"]);
    assert!(why.contains("sh"), "{why}");
}

#[test]
fn a_debian_image_runs_python_and_a_template_decides_user_room_and_environment() {
    let cluster = Cluster::up(&["--nodes", "1", "--image", debian_python()]);
    let python = |code: &str| said(&cluster, &["python3", "-c", code]);
    assert_eq!(python("import json, os; print(json.dumps([os.getuid(), sum(range(10))]))"), "[65532, 45]");

    let before = ids(&cluster);
    let put = change_template(&cluster, |template| {
        template["user"] = json!("12345:54321");
        template["tmpfs_bytes"] = json!(8 << 20);
        template["env"] = json!({"GREETING": "hello", "HOME": "/nowhere"});
    });
    assert_eq!(put.code, 0, "{put:?}");
    replaced(&cluster, &before);
    assert_eq!(python("import os; print(os.getuid(), os.getgid())"), "12345 54321");
    assert_eq!(python("import os; s = os.statvfs('/tmp'); print(s.f_blocks * s.f_frsize)"), "8388608");
    let environment = "import os; print(os.environ['GREETING'], os.environ['HOME'])";
    assert_eq!(python(environment), "hello /nowhere");
    let own =
        r#"{"argv":["python3","-c","import os; print(os.environ['GREETING'])"],"env":{"GREETING":"own"}}"#;
    assert_eq!(cluster.evenkeel(&["submit", "-o", "value", "run", "--input", own]).trim(), "own");
}

#[test]
fn an_update_replaces_nodes_without_killing_what_runs_and_one_that_cannot_work_costs_nothing() {
    let image = busybox("update");
    let missing = Cluster::try_up("t-missing", &["--nodes", "1", "--image", "t-no-such-image:1"]);
    assert_eq!(missing.code, 2, "{missing:?}");
    assert!(missing.stderr.contains("docker pull t-no-such-image:1"), "{missing:?}");
    let no_name = Cluster::try_up("t-missing", &["--nodes", "1", "--image", "T-No:Name:1"]);
    assert_eq!(no_name.code, 2, "{no_name:?}");
    let twice = ["--nodes", "1", "--mount", "/usr:/data", "--mount", "/etc:/data"];
    let twice = Cluster::try_up("t-missing", &twice);
    assert_eq!(twice.code, 2, "{twice:?}");
    assert!(twice.stderr.contains("two mounts"), "{twice:?}");

    let cluster = Cluster::up(&["--nodes", "2", "--image", &image.name, "--cpus", "0.3"]);
    let before = ids(&cluster);
    let tasks = [cluster.submit(&["sleep", "8000"]), cluster.submit(&["sleep", "8000"])];
    tasks.iter().for_each(|task| drop(cluster.wait_for_task(task, "running", 20)));

    let update = ["node-manager", "update", "--cpus", "0.4"];
    let would: Value =
        serde_json::from_str(&cluster.evenkeel(&[&update[..], &["--dry-run"]].concat())).unwrap();
    assert_eq!((would["desired"].as_u64(), would["template"]["cpus"].as_f64()), (Some(2), Some(0.4)));
    cluster.evenkeel(&["node-manager", "update", "--cpus", "0.3"]);
    assert_eq!(ids(&cluster), before, "neither a dry run nor what is so already changes anything");
    cluster.evenkeel(&update);
    for node in replaced(&cluster, &before) {
        assert_eq!(inspect(&node)["HostConfig"]["NanoCpus"], 400_000_000);
    }
    for task in tasks {
        let task = cluster.wait_for_task(&task, "succeeded", 30);
        assert_eq!(task["attempt"], 1, "its node ended only when it had finished: {task}");
    }

    // An image that the manager's daemon does not have: said, tried again with pauses, and nothing is lost.
    let working = ids(&cluster);
    let put = change_template(&cluster, |template| template["image"] = json!("t-no-such-image:1"));
    assert_eq!(put.code, 0, "{put:?}");
    eventually("the manager says what is wrong", 30, || {
        let ran = cluster.try_evenkeel(&["node-manager", "list"]);
        let told = ran.stderr.contains("t-no-such-image:1") && ran.stderr.contains("does not exist");
        if told { Ok(()) } else { Err(format!("{ran:?}")) }
    });
    assert_eq!(ids(&cluster), working);
    assert_eq!(said(&cluster, &["uname"]), "Linux");
    assert_eq!(cluster.try_evenkeel(&["node-manager", "update", "--image", "t-no-such-image:2"]).code, 2);
    // What a manager left behind that died while it filled the volume of our program is in nobody's way.
    let label = format!("io.evenkeel.cluster={}", cluster.name);
    let left = format!("evenkeel-{}-default-filler", cluster.name);
    let left = ["create", "--name", &left, "--label", &label, "--label", "io.evenkeel.role=manager"];
    docker(&[&left[..], &[&image.name]].concat());
    cluster.evenkeel(&["node-manager", "update", "--image", debian_python()]);
    replaced(&cluster, &working);
    assert!(said(&cluster, &["python3", "--version"]).starts_with("Python 3"));
}

#[test]
fn a_link_that_a_task_left_in_a_folder_does_not_bring_another_folder_of_the_host_in() {
    let image = busybox("link");
    let folder = shared_folder();
    let source = folder.path().display().to_string();
    let cluster =
        Cluster::up(&["--nodes", "1", "--image", &image.name, "--mount", &format!("{source}:/data")]);
    said(&cluster, &["ln", "-s", "/etc", "/data/link"]);
    for (mounted, why) in
        [(format!("{source}/link"), "cannot be checked"), ("/etc".to_owned(), "--allow-mount")]
    {
        let put = change_template(&cluster, |template| {
            template["mounts"] = json!([{"source": mounted, "target": "/host", "read_only": false}]);
        });
        assert_eq!(put.code, 0, "{put:?}");
        eventually("the manager refuses the mount", 30, || {
            let said = cluster.try_evenkeel(&["node-manager", "list"]).stderr;
            if said.contains(&mounted) && said.contains(why) { Ok(()) } else { Err(said) }
        });
    }
    let nodes = cluster.containers("node");
    let mounted: Vec<_> = nodes.iter().map(|node| inspect(node)["Mounts"].to_string()).collect();
    assert!(!mounted.iter().any(|mounts| mounts.contains("/host")), "{mounted:?}");
}
