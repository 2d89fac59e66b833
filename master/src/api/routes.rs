//! Every route, with what it asks of its caller. The router and the guard are both made from this one
//! table, so a route without an access rule cannot be written down.

use super::{app::App, batch, logs, nodes, pools, tasks, tokens, whole};
use crate::auth::Access::{self, Join, Open, OwnSession, Scopes};
use axum::routing::{MethodRouter, delete, get, post, put};
use http::Method;
use protocol::auth::Scope::{Manager, Node, Operate, Read, Submit};
use std::collections::HashMap;

/// One route.
pub(crate) struct Route {
    /// The method; `GET` answers `HEAD` too.
    pub(crate) method: Method,
    /// The path, with `{name}` for its parameters.
    pub(crate) path: &'static str,
    /// Who may.
    pub(crate) access: Access,
    handler: MethodRouter<App>,
}

const SEE: Access = Scopes(&[Read, Operate, Manager]);
const SEE_KINDS: Access = Scopes(&[Read, Submit, Operate, Manager]);
const TASKS: Access = Scopes(&[Submit, Operate]);
const KEEP: Access = Scopes(&[Operate, Manager]);
const ADMIN: Access = Scopes(&[]);
/// All but a join token, which opens the door and nothing else.
const ANY_CALLER: Access = Scopes(&[Read, Submit, Operate, Manager]);

/// The table.
pub(crate) fn table() -> Vec<Route> {
    let route = |method, path, access, handler| Route { method, path, access, handler };
    let (g, p, u, d) = (Method::GET, Method::POST, Method::PUT, Method::DELETE);
    vec![
        route(p.clone(), "/v1/tasks", Scopes(&[Submit]), post(tasks::submit)),
        route(g.clone(), "/v1/tasks", TASKS, get(tasks::list)),
        route(p.clone(), "/v1/tasks/batch", Scopes(&[Submit]), post(batch::batch)),
        route(p.clone(), "/v1/tasks/cancel", TASKS, post(tasks::cancel_labels)),
        route(g.clone(), "/v1/tasks/{id}", TASKS, get(tasks::get)),
        route(d.clone(), "/v1/tasks/{id}", TASKS, delete(tasks::cancel)),
        route(g.clone(), "/v1/tasks/{id}/explain", TASKS, get(tasks::explain)),
        route(g.clone(), "/v1/tasks/{id}/log", TASKS, get(logs::get)),
        route(p.clone(), "/v1/nodes", Join, post(nodes::register)),
        route(g.clone(), "/v1/nodes", SEE, get(nodes::list)),
        route(g.clone(), "/v1/nodes/{id}", SEE, get(nodes::get)),
        route(d.clone(), "/v1/nodes/{id}", KEEP, delete(nodes::remove)),
        route(p.clone(), "/v1/nodes/{id}/report", OwnSession, post(nodes::report)),
        route(g.clone(), "/v1/nodes/{id}/work", OwnSession, get(nodes::work)),
        route(p.clone(), "/v1/nodes/{id}/exited", Scopes(&[Manager]), post(nodes::exited)),
        route(p.clone(), "/v1/nodes/{id}/drain", KEEP, post(nodes::drain)),
        route(p.clone(), "/v1/nodes/{id}/resume", KEEP, post(nodes::resume)),
        route(g.clone(), "/v1/pools/{pool}", SEE, get(pools::get)),
        route(u, "/v1/pools/{pool}", Scopes(&[Operate]), put(pools::put)),
        route(p.clone(), "/v1/managers", Scopes(&[Manager]), post(pools::hello)),
        route(g.clone(), "/v1/status", SEE, get(whole::status)),
        route(g.clone(), "/v1/kinds", SEE_KINDS, get(whole::kinds)),
        route(g.clone(), "/v1/tokens", ADMIN, get(tokens::list)),
        route(g.clone(), "/v1/tokens/current", ANY_CALLER, get(tokens::current)),
        route(p, "/v1/tokens", Scopes(&[Manager]), post(tokens::create)),
        route(d, "/v1/tokens/{id}", ADMIN, delete(tokens::revoke)),
        route(g.clone(), "/livez", Open, get(whole::livez)),
        route(g, "/readyz", Open, get(whole::readyz)),
    ]
}

/// Access by path and method, for the guard.
#[derive(Debug, Default)]
pub(crate) struct Index {
    by_path: HashMap<&'static str, Vec<(Method, Access)>>,
}

impl Index {
    /// The index of these routes.
    pub(crate) fn new(routes: &[Route]) -> Self {
        let mut by_path: HashMap<_, Vec<_>> = HashMap::new();
        for route in routes {
            by_path.entry(route.path).or_default().push((route.method.clone(), route.access));
        }
        Self { by_path }
    }

    /// What a method of a path asks for; `None` if the path does not have the method.
    pub(crate) fn access(&self, path: &str, method: &Method) -> Option<Access> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        self.by_path.get(path)?.iter().find(|(known, _)| known == method).map(|(_, access)| *access)
    }

    /// The methods of a path, as `Allow` lists them.
    pub(crate) fn allow(&self, path: &str) -> String {
        let mut methods: Vec<&str> =
            self.by_path.get(path).into_iter().flatten().map(|(method, _)| method.as_str()).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.sort_unstable();
        methods.join(", ")
    }
}

/// The routes as an axum router.
pub(crate) fn router(routes: Vec<Route>) -> axum::Router<App> {
    routes.into_iter().fold(axum::Router::new(), |router, route| router.route(route.path, route.handler))
}

/// A route as the documentation and the tests see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// The method; `GET` answers `HEAD` too.
    pub method: &'static str,
    /// The path, with `{name}` for its parameters.
    pub path: &'static str,
    /// Whether it needs no token.
    pub open: bool,
    /// Scopes that pass, beside `admin`; none where only `admin` or a node's own session passes.
    pub scopes: Vec<&'static str>,
}

/// Every route of the API.
#[must_use]
pub fn routes() -> Vec<RouteInfo> {
    let info = |route: Route| RouteInfo {
        method: match route.method {
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            _ => "GET",
        },
        path: route.path,
        open: route.access == Open,
        scopes: match route.access {
            Scopes(scopes) => scopes.iter().map(|scope| scope.as_str()).collect(),
            Join => vec![Node.as_str()],
            Open | OwnSession => Vec::new(),
        },
    };
    table().into_iter().map(info).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_health_checks_are_open() {
        let open: Vec<_> =
            table().into_iter().filter(|route| route.access == Open).map(|route| route.path).collect();
        assert_eq!(open, ["/livez", "/readyz"]);
    }

    #[test]
    fn a_path_names_its_methods() {
        let index = Index::new(&table());
        assert_eq!(index.allow("/v1/tasks/{id}"), "DELETE, GET, HEAD");
        assert_eq!(index.access("/v1/tasks/{id}", &Method::HEAD), Some(TASKS));
        assert_eq!(index.access("/v1/tasks/{id}", &Method::PUT), None);
    }

    #[test]
    fn a_node_token_opens_nothing_but_the_door() {
        for route in table() {
            if let Scopes(scopes) = route.access {
                assert!(!scopes.contains(&Node), "{} {}", route.method, route.path);
            }
        }
    }
}
