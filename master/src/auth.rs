//! Who is asking, and what they may do.
//!
//! Tokens live in the store, hashed; a copy of them is held here so that a request costs no query. A
//! token is found by its SHA-256 and compared once more in constant time, so neither the table nor the
//! clock tells anything about the 256 random bits.
//!
//! What was begun with a token ends with it: revoking it, or its expiry (looked at every second), cancels
//! [`Held::over`], which the guard and long streams watch. A node's session is its own, not its join token's.

use protocol::{
    NodeId, Problem, Timestamp,
    auth::{Scope, TokenInfo},
};
use scheduler::event::ClientId;
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};
use tokio_util::sync::CancellationToken;

/// SHA-256 of a token.
pub(crate) type TokenHash = [u8; 32];

/// Most tokens that are valid at a time; a bound for memory, far above one per container of a cluster.
pub(crate) const MAX_TOKENS: usize = 20_000;

/// Who sent a request.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    /// Nobody in particular: the master runs without tokens, on loopback.
    Anyone,
    /// The holder of a token.
    Token {
        /// The token.
        info: Arc<TokenInfo>,
        /// Its hash, the key of the table.
        hash: TokenHash,
        /// Cancelled when it is revoked or has expired.
        over: CancellationToken,
    },
    /// A registered node, by its session token.
    Node(NodeId),
}

impl Principal {
    /// As whom this submits: the id of the token, nil without tokens.
    pub(crate) fn client(&self) -> ClientId {
        match self {
            Self::Token { info, .. } => ClientId(info.id.as_u128()),
            Self::Anyone | Self::Node(_) => ClientId::default(),
        }
    }

    /// Whether this has one of the scopes; `admin` has all.
    pub(crate) fn has(&self, any_of: &[Scope]) -> bool {
        match self {
            Self::Anyone => true,
            Self::Token { info, .. } => {
                info.scopes.iter().any(|scope| *scope == Scope::Admin || any_of.contains(scope))
            }
            Self::Node(_) => false,
        }
    }

    /// Cancelled when what this began has to end; nothing ends it if there is none.
    pub(crate) const fn over(&self) -> Option<&CancellationToken> {
        match self {
            Self::Token { over, .. } => Some(over),
            Self::Anyone | Self::Node(_) => None,
        }
    }

    /// Whether this may see and cancel tasks of others.
    pub(crate) fn sees_all(&self) -> bool {
        self.has(&[Scope::Operate])
    }
}

/// What a route asks of its caller. Every route of the table names one; there is no default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing.
    Open,
    /// A token with one of these scopes.
    Scopes(&'static [Scope]),
    /// A token with scope `node`, or the session token of a node that comes back.
    Join,
    /// The session token of the node that the path names.
    OwnSession,
}

/// Decides whether `principal` passes; `path_node` is the node that the path names, if it names one.
pub(crate) fn check(
    access: Access,
    principal: Option<&Principal>,
    path_node: Option<NodeId>,
) -> Result<(), Problem> {
    let Some(principal) = principal else {
        return match access {
            Access::Open => Ok(()),
            Access::Scopes(_) | Access::Join | Access::OwnSession => {
                Err(Problem::unauthenticated(match access {
                    Access::Join => {
                        "joining needs a valid join token as `Authorization: Bearer …`; it is missing, unknown, revoked, expired, or was for one use and has been used. Make another: evenkeel token create --scope node"
                    }
                    _ => {
                        "this needs a valid token as `Authorization: Bearer …`; it is missing, unknown, revoked or expired"
                    }
                }))
            }
        };
    };
    match access {
        Access::Open => Ok(()),
        Access::Scopes(any_of) if principal.has(any_of) => Ok(()),
        Access::Scopes(any_of) => {
            let names: Vec<&str> = any_of.iter().map(|scope| scope.as_str()).collect();
            let names = if names.is_empty() { "admin".to_owned() } else { names.join(" or ") };
            Err(Problem::forbidden(format!("this needs a token with scope {names}")))
        }
        Access::Join if matches!(principal, Principal::Node(_)) || principal.has(&[Scope::Node]) => Ok(()),
        Access::Join => Err(Problem::forbidden("joining needs a token with scope node")),
        Access::OwnSession => match principal {
            Principal::Node(node) if Some(*node) == path_node => Ok(()),
            Principal::Node(_) => Err(Problem::forbidden("a node speaks only for itself")),
            Principal::Anyone => Err(Problem::unauthenticated(
                "this needs the node's session token, which POST /v1/nodes answers with",
            )),
            Principal::Token { .. } => {
                Err(Problem::forbidden("this needs the node's session token, not another token"))
            }
        },
    }
}

/// A token that is valid.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// What is known of it.
    pub(crate) info: Arc<TokenInfo>,
    /// Cancelled when it is revoked or has expired.
    pub(crate) over: CancellationToken,
}

impl From<Arc<TokenInfo>> for Held {
    fn from(info: Arc<TokenInfo>) -> Self {
        Self { info, over: CancellationToken::new() }
    }
}

/// The tokens that are valid, by hash.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    table: RwLock<HashMap<TokenHash, Held>>,
}

impl Tokens {
    /// A table with these tokens.
    pub(crate) fn new(tokens: impl IntoIterator<Item = (TokenHash, TokenInfo)>) -> Self {
        let table = tokens.into_iter().map(|(hash, info)| (hash, Arc::new(info).into())).collect();
        Self { table: RwLock::new(table) }
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<TokenHash, Held>> {
        // The map is whole at every instant at which a panic could poison it.
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<TokenHash, Held>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token with this hash, if there is one and it has not expired.
    pub(crate) fn find(&self, hash: &TokenHash, wall: Timestamp) -> Option<Held> {
        let table = self.read();
        let (known, held) = table.get_key_value(hash)?;
        let same: bool = subtle::ConstantTimeEq::ct_eq(&known[..], &hash[..]).into();
        (same && !expired(&held.info, wall)).then(|| held.clone())
    }

    /// Adds a token.
    pub(crate) fn insert(&self, hash: TokenHash, info: Arc<TokenInfo>) {
        self.write().insert(hash, info.into());
    }

    /// Takes the token out; of several callers exactly one gets it. This is what makes a single use single.
    pub(crate) fn take(&self, hash: &TokenHash) -> Option<Arc<TokenInfo>> {
        self.write().remove(hash).map(|held| held.info)
    }

    /// Takes the token out for good, and ends what was begun with it.
    pub(crate) fn revoke(&self, hash: &TokenHash) {
        let held = self.write().remove(hash);
        if let Some(held) = held {
            held.over.cancel();
        }
    }

    /// The hash of the token with this id.
    pub(crate) fn hash_of(&self, id: uuid::Uuid) -> Option<TokenHash> {
        self.read().iter().find(|(_, held)| held.info.id == id).map(|(hash, _)| *hash)
    }

    /// All that have not expired, oldest first.
    pub(crate) fn list(&self, wall: Timestamp) -> Vec<TokenInfo> {
        let mut tokens: Vec<TokenInfo> = self
            .read()
            .values()
            .filter(|held| !expired(&held.info, wall))
            .map(|held| (*held.info).clone())
            .collect();
        tokens.sort_by_key(|info| (info.created_at, info.id));
        tokens
    }

    /// Takes the expired ones out, ends what was begun with them, and names them, so that they can leave the
    /// store too.
    pub(crate) fn sweep(&self, wall: Timestamp) -> Vec<uuid::Uuid> {
        // Mostly there are none, and then nobody has to wait.
        if !self.read().values().any(|held| expired(&held.info, wall)) {
            return Vec::new();
        }
        let gone: Vec<Held> =
            self.write().extract_if(|_, held| expired(&held.info, wall)).map(|(_, held)| held).collect();
        gone.iter().for_each(|held| held.over.cancel());
        gone.iter().map(|held| held.info.id).collect()
    }

    /// How many there are, expired ones included.
    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }
}

fn expired(info: &TokenInfo, wall: Timestamp) -> bool {
    info.expires_at.is_some_and(|end| end <= wall)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn token(id: u128, scopes: &[Scope], expires_at: Option<i64>) -> TokenInfo {
        TokenInfo {
            id: uuid::Uuid::from_u128(id),
            scopes: scopes.to_vec(),
            created_at: Timestamp(0),
            expires_at: expires_at.map(Timestamp),
            single_use: false,
            node_name: None,
            note: String::new(),
        }
    }

    fn holder(scopes: &[Scope]) -> Principal {
        Principal::Token {
            info: Arc::new(token(1, scopes, None)),
            hash: [0; 32],
            over: CancellationToken::new(),
        }
    }

    #[test]
    fn a_token_is_good_until_its_end_and_not_at_it() {
        let tokens = Tokens::new([([7; 32], token(1, &[Scope::Read], Some(100)))]);
        assert!(tokens.find(&[7; 32], Timestamp(99)).is_some());
        assert!(tokens.find(&[7; 32], Timestamp(100)).is_none());
        assert!(tokens.find(&[8; 32], Timestamp(0)).is_none());
        assert_eq!(tokens.sweep(Timestamp(100)), vec![uuid::Uuid::from_u128(1)]);
        assert_eq!(tokens.len(), 0);
    }

    #[test]
    fn what_was_begun_with_a_token_ends_when_it_is_revoked_or_expires_and_not_when_it_is_used() {
        let [used, revoked, expired, kept] = [1, 2, 3, 4].map(|byte| [byte; 32]);
        let end = |byte| (byte == 3).then_some(100);
        let tokens = Tokens::new(
            [1, 2, 3, 4].map(|byte: u8| ([byte; 32], token(byte.into(), &[Scope::Node], end(byte)))),
        );
        let over = [used, revoked, expired, kept].map(|hash| tokens.find(&hash, Timestamp(0)).unwrap().over);
        tokens.take(&used);
        tokens.revoke(&revoked);
        assert!(tokens.sweep(Timestamp(99)).is_empty());
        assert_eq!(tokens.sweep(Timestamp(100)), vec![uuid::Uuid::from_u128(3)]);
        assert_eq!(over.map(|over| over.is_cancelled()), [false, true, true, false]);
    }

    #[test]
    fn of_two_takers_one_gets_the_token() {
        let tokens = Tokens::new([([7; 32], token(1, &[Scope::Node], None))]);
        assert!(tokens.take(&[7; 32]).is_some());
        assert!(tokens.take(&[7; 32]).is_none());
    }

    #[test]
    fn admin_passes_every_scope_and_no_other_scope_passes_for_another() {
        let all = [Scope::Read, Scope::Submit, Scope::Operate, Scope::Node, Scope::Manager];
        for wanted in all {
            let access = [wanted];
            assert!(holder(&[Scope::Admin]).has(&access));
            for held in all {
                assert_eq!(holder(&[held]).has(&access), held == wanted);
            }
        }
    }

    #[test]
    fn a_node_speaks_only_for_itself() {
        let [one, two] = [1, 2].map(|id| NodeId(uuid::Uuid::from_u128(id)));
        let status = |principal: Option<Principal>, path| {
            check(Access::OwnSession, principal.as_ref(), path).map_err(|problem| problem.status)
        };
        assert_eq!(status(Some(Principal::Node(one)), Some(one)), Ok(()));
        assert_eq!(status(Some(Principal::Node(one)), Some(two)), Err(403));
        assert_eq!(status(Some(Principal::Node(one)), None), Err(403));
        assert_eq!(status(Some(holder(&[Scope::Admin])), Some(one)), Err(403));
        assert_eq!(status(Some(Principal::Anyone), Some(one)), Err(401));
        assert_eq!(status(None, Some(one)), Err(401));
    }
}
