//! Scopes and tokens.

use crate::Timestamp;
use serde::{Deserialize, Serialize};

/// What a token allows. A request needs one of the scopes that its route names; `admin` allows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// See nodes, pools, kinds and status.
    Read,
    /// Submit tasks and see one's own.
    Submit,
    /// See and cancel all tasks; drain and remove nodes; write pools.
    Operate,
    /// Join as a node.
    Node,
    /// Keep a pool: report exits, mint join tokens.
    Manager,
    /// Everything, tokens included.
    Admin,
}

impl Scope {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Submit => "submit",
            Self::Operate => "operate",
            Self::Node => "node",
            Self::Manager => "manager",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Read, Self::Submit, Self::Operate, Self::Node, Self::Manager, Self::Admin]
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| {
                format!("unknown scope {text:?}: one of read, submit, operate, node, manager, admin")
            })
    }
}

/// Body of `POST /v1/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What it allows; at least one.
    pub scopes: Vec<Scope>,
    /// How long it is valid; without end if absent. Join tokens (`node`): 24 h if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Only for scope `node`: valid for one registration only.
    #[serde(default)]
    pub single_use: bool,
    /// Only for scope `node`: valid only for a node of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// For people.
    #[serde(default)]
    pub note: String,
}

/// Answer of `POST /v1/tokens`: the only time that the token itself is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// The secret: `ek_` and 43 characters of base64url (256 bits).
    pub token: String,
    /// What is known of it.
    #[serde(flatten)]
    pub info: TokenInfo,
}

/// A token as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Its id; no secret.
    pub id: uuid::Uuid,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends; null if never.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Whether it is good for one registration only.
    #[serde(default)]
    pub single_use: bool,
    /// The only node name it is good for; null if any.
    #[serde(default)]
    pub node_name: Option<String>,
    /// For people.
    #[serde(default)]
    pub note: String,
}
