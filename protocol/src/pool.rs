//! Pools: what each node-manager keeps running.

use crate::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Body of `PUT /v1/pools/{pool}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// How many nodes to keep; excludes `min` and `max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired: Option<u32>,
    /// Least nodes under autoscaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Most nodes under autoscaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Queue delay that autoscaling aims for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_queue_ms: Option<u64>,
    /// What each node is made of.
    #[serde(default)]
    pub template: Template,
}

/// What each node of a pool is made of. What is absent is the manager's choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Template {
    /// Image to run; our own, made from the running binary, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// CPU limit in cores, 0.01 … the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Labels of the nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Environment of commands.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Host directories; only below the manager's `--allow-mount`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Own kinds, as the text of a `kinds.toml`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<String>,
    /// `uid[:gid]`; 65532:65532 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Size of `/tmp`; 64 MiB if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tmpfs_bytes: Option<u64>,
    /// Whether the kind `run` is allowed.
    #[serde(default)]
    pub allow_commands: bool,
}

/// A host directory inside a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path on the host.
    pub source: String,
    /// Absolute path in the node.
    pub target: String,
    /// Whether writing is refused.
    #[serde(default)]
    pub read_only: bool,
}

/// Answer of `GET` and `PUT /v1/pools/{pool}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Grows with every change; also the ETag, in quotes.
    pub revision: u64,
    /// What is wanted.
    #[serde(flatten)]
    pub spec: PoolSpecFields,
    /// The manager that keeps it, once one is there.
    #[serde(default)]
    pub manager: Option<ManagerView>,
}

/// [`PoolSpec`] without the refusal of unknown fields, which serde cannot combine with flattening.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolSpecFields {
    /// See [`PoolSpec::desired`].
    #[serde(default)]
    pub desired: Option<u32>,
    /// See [`PoolSpec::min`].
    #[serde(default)]
    pub min: Option<u32>,
    /// See [`PoolSpec::max`].
    #[serde(default)]
    pub max: Option<u32>,
    /// See [`PoolSpec::target_queue_ms`].
    #[serde(default)]
    pub target_queue_ms: Option<u64>,
    /// See [`PoolSpec::template`].
    #[serde(default)]
    pub template: Template,
}

impl From<PoolSpec> for PoolSpecFields {
    fn from(spec: PoolSpec) -> Self {
        let PoolSpec { desired, min, max, target_queue_ms, template } = spec;
        Self { desired, min, max, target_queue_ms, template }
    }
}

impl From<PoolSpecFields> for PoolSpec {
    fn from(fields: PoolSpecFields) -> Self {
        let PoolSpecFields { desired, min, max, target_queue_ms, template } = fields;
        Self { desired, min, max, target_queue_ms, template }
    }
}

/// Body of `POST /v1/managers`, sent at start and then every 5 s; also how a manager holds its pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManagerHello {
    /// The pool it keeps.
    pub pool: String,
    /// This life of the manager process: another one on the same pool gets 409 while this one is
    /// heard of (15 s).
    pub instance: uuid::Uuid,
    /// The host's cores.
    pub host_cores: f64,
    /// The host's memory.
    pub host_memory_bytes: u64,
    /// `docker` or `process`, with a version, for people.
    pub runtime: String,
    /// What went wrong most recently, for people; empty if nothing did.
    #[serde(default)]
    pub trouble: String,
}

/// A manager as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManagerView {
    /// See [`ManagerHello::instance`].
    pub instance: uuid::Uuid,
    /// See [`ManagerHello::host_cores`].
    pub host_cores: f64,
    /// See [`ManagerHello::host_memory_bytes`].
    pub host_memory_bytes: u64,
    /// See [`ManagerHello::runtime`].
    pub runtime: String,
    /// See [`ManagerHello::trouble`].
    pub trouble: String,
    /// When it was last heard of.
    pub last_seen_at: Timestamp,
}
