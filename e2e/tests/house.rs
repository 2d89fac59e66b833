//! The shape of the house, held by tests: which crate may see which, and what documents say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Names of all crates that a crate needs to be built, itself left out; tests' own are not counted.
fn normal_dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let id = |value: &Value| value.as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let names: HashMap<String, String> = packages.iter().map(|p| (id(&p["id"]), id(&p["name"]))).collect();
    let normal =
        |dep: &&Value| dep["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
    let needs = |node: &Value| {
        node["deps"].as_array().unwrap().iter().filter(normal).map(|d| id(&d["pkg"])).collect()
    };
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let direct: HashMap<String, Vec<String>> =
        nodes.iter().map(|node| (id(&node["id"]), needs(node))).collect();
    let all_below = |member: String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![member.clone()]);
        while let Some(package) = open.pop() {
            open.extend(
                direct[&package].iter().filter(|dependency| seen.insert((*dependency).clone())).cloned(),
            );
        }
        (names[&member].clone(), seen.iter().map(|package| names[package].clone()).collect())
    };
    metadata["workspace_members"].as_array().unwrap().iter().map(id).map(all_below).collect()
}

const FLOORS: [&[&str]; 4] = [
    &["protocol", "scheduler", "session", "pool"],
    &["service", "client"],
    &["master", "node", "node-manager", "status-fetcher"],
    &["evenkeel"],
];

/// Crates that do I/O, read a clock of their own or draw randomness from the system.
const WITH_IO: [&str; 13] = [
    "tokio",
    "mio",
    "hyper",
    "reqwest",
    "axum",
    "sqlx",
    "sqlx-core",
    "bollard",
    "sysinfo",
    "tokio-tungstenite",
    "tracing-subscriber",
    "tempfile",
    "socket2",
];

#[test]
fn the_pure_floor_depends_on_no_crate_that_does_io() {
    let dependencies = normal_dependencies(&metadata());
    for member in FLOORS[0] {
        let found: Vec<_> = WITH_IO.iter().filter(|name| dependencies[*member].contains(**name)).collect();
        assert!(found.is_empty(), "{member} decides and must not act, but depends on {found:?}");
    }
}

#[test]
fn arrows_between_crates_point_downward_only() {
    let dependencies = normal_dependencies(&metadata());
    for (floor, members) in FLOORS.iter().enumerate() {
        for (member, above) in
            members.iter().flat_map(|m| FLOORS[floor + 1..].concat().into_iter().map(move |a| (m, a)))
        {
            assert!(
                !dependencies[*member].contains(above),
                "{member} must not depend on {above}, which is above it"
            );
        }
    }
}

#[test]
fn the_master_never_dials_an_address_that_a_node_told_it() {
    // It dials from one place, and there only whom the store names as the leader.
    let forward = root().join("master/src/lead/forward.rs");
    let mut files = Vec::new();
    sources(&root().join("master/src"), &mut files);
    let of_tests =
        |file: &PathBuf| file.ends_with("tests.rs") || file.components().any(|c| c.as_os_str() == "tests");
    for file in files.into_iter().filter(|file| !of_tests(file)) {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let named = ["reqwest::", "client::Client", "Client::new", "Following::new"];
        for dials in ["TcpStream::connect", "TlsConnector", "UnixStream::connect"].iter().chain(&named) {
            let may = match *dials {
                "reqwest::" => file == forward,
                // Of what a campaign was answered.
                "Following::new" => file.ends_with("lead/keeper.rs"),
                _ => false,
            };
            assert!(may || !code.contains(dials), "{} dials by {dials}", file.display());
        }
    }
    let code = fs::read_to_string(forward).unwrap();
    assert!(
        code.contains("pub(crate) fn new(leader: Leader) -> Option<Self>"),
        "whom it follows is of the store"
    );
}

/// Source files of ours below a folder, `target` left out.
fn sources(below: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// The modules (file or folder right below a crate's `src`) whose code names a crate.
fn modules_naming(krate: &str) -> BTreeSet<String> {
    let (root, mut files) = (root(), Vec::new());
    sources(&root, &mut files);
    let needle = format!("{krate}::");
    let part_of_longer_name =
        |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    let names_it = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(&needle).any(|(at, _)| !part_of_longer_name(&code[..at]))
    };
    let module = |file: &PathBuf| {
        let parts: Vec<_> =
            file.strip_prefix(&root).unwrap().iter().take(3).map(|p| p.to_string_lossy()).collect();
        parts.join("/").trim_end_matches(".rs").to_owned()
    };
    files.iter().filter(|file| fs::read_to_string(file).unwrap().lines().any(names_it)).map(module).collect()
}

#[test]
fn docker_is_spoken_in_one_module() {
    assert_eq!(modules_naming("bollard"), BTreeSet::from(["node-manager/src/docker".to_owned()]));
}

#[test]
fn sql_is_spoken_in_one_module() {
    assert_eq!(modules_naming("sqlx"), BTreeSet::from(["master/src/store".to_owned()]));
}

/// Documents of the project.
fn documents() -> Vec<PathBuf> {
    let top =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name));
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    top.into_iter()
        .chain(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")))
        .collect()
}

/// What stands between backticks in a document.
fn code_in(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_path_that_a_document_names_exists() {
    let mut missing = Vec::new();
    for document in documents() {
        let text =
            fs::read_to_string(&document).unwrap_or_else(|error| panic!("{}: {error}", document.display()));
        for code in code_in(&text) {
            let path = code.split("::").next().unwrap_or_default().trim_end_matches('/');
            let first = path.split('/').next().unwrap_or_default();
            let is_path =
                path.contains('/') && !path.contains([' ', '<', '*', '{', '$', '|']) && !first.is_empty();
            if is_path && root().join(first).is_dir() && !root().join(path).exists() {
                missing.push(format!("{}: {path}", document.file_name().unwrap().to_string_lossy()));
            }
        }
    }
    assert!(missing.is_empty(), "documents name paths that do not exist: {missing:#?}");
}

#[test]
fn every_type_that_the_architecture_names_with_its_file_is_in_that_file() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let hops: Vec<_> = code_in(&text).filter_map(|code| code.split_once(".rs::")).collect();
    for (path, name) in &hops {
        let source = fs::read_to_string(root().join(format!("{path}.rs")))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let last = name.rsplit("::").next().unwrap_or(name).trim_end_matches("()");
        assert!(source.contains(last), "ARCHITECTURE.md says that {name} is in {path}.rs, and it is not");
    }
    assert!(
        hops.len() >= 20,
        "only {} hops name their file and type; the life of a task alone has more",
        hops.len()
    );
}

#[test]
fn the_two_commands_of_the_readme_are_the_ones_that_work() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(text.contains("cargo run --release -- demo"), "the first command is the demo");
    assert!(text.contains("\n./test\n"), "the second command is the test");
    let gate = fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(gate.contains("exec ./test\n"), ".ci/run calls exactly the README's test command");
}
