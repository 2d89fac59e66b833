//! Joining what the engine and the master say.

use crate::engine::Listed;
use pool::{Container, NodeSeen, Observed, State};
use protocol::node::NodeView;

/// The plan's view of the containers. Without an answer of the master their nodes are unknown.
pub(super) fn join(listed: &[Listed], nodes: Option<&[NodeView]>, isolated: bool) -> Vec<Container> {
    let seen = |node: &NodeView| NodeSeen {
        id: node.id,
        status: node.status,
        running: node.running,
        effective_cores: node.effective_cores,
    };
    let container = |listed: &Listed| Container {
        name: listed.name.clone(),
        id: listed.id.clone(),
        template: listed.template.clone().unwrap_or_default(),
        state: listed.state.clone(),
        age_us: u64::try_from(listed.age.as_micros()).unwrap_or(u64::MAX),
        node: node_of(listed, nodes.unwrap_or_default(), isolated).map(seen),
    };
    listed.iter().map(container).collect()
}

/// The node that runs in a container: the newest of its name. Where the node knows its container's id
/// (`isolated`), that has to be the same, since a dead life's node is still shown for a while.
#[must_use]
pub fn node_of<'a>(listed: &Listed, nodes: &'a [NodeView], isolated: bool) -> Option<&'a NodeView> {
    let newest = nodes
        .iter()
        .filter(|node| node.name == listed.name)
        .max_by_key(|node| (node.registered_at, node.id))?;
    let same = match &newest.runtime_id {
        Some(id) if isolated => !id.is_empty() && listed.id.starts_with(id.as_str()),
        _ => true,
    };
    same.then_some(newest)
}

/// How many are alive.
pub(super) fn living(observed: &Observed) -> u32 {
    let alive = observed.containers.iter().filter(|c| matches!(c.state, State::Running | State::Paused));
    u32::try_from(alive.count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::engine::Role;
    use std::time::Duration;

    fn listed(id: &str) -> Listed {
        Listed {
            name: "n".to_owned(),
            id: id.to_owned(),
            role: Role::Node,
            pool: None,
            template: None,
            state: State::Running,
            age: Duration::ZERO,
        }
    }

    fn node(runtime_id: Option<&str>, registered_ms: i64) -> NodeView {
        serde_json::from_value(serde_json::json!({
            "id": uuid::Uuid::now_v7(), "name": "n", "ip": "10.0.0.1", "pool": "p", "status": "ready",
            "labels": {}, "kinds": [], "allotted_cores": 1.0, "cpu": null, "memory": null, "slots": 1,
            "running": 0, "queued_cpu_ms": 0, "completed": 0, "failed": 0,
            "registered_at": protocol::Timestamp(registered_ms), "last_report_at": null,
            "runtime_id": runtime_id, "effective_cores": 1.0,
        }))
        .unwrap()
    }

    #[test]
    fn the_node_of_a_dead_life_is_not_taken_for_that_of_the_new_one() {
        let nodes = [node(Some("aaaa"), 1)];
        assert!(node_of(&listed("aaaa00"), &nodes, true).is_some());
        assert!(node_of(&listed("bbbb00"), &nodes, true).is_none());
        // A process may see the id of a container around the whole host: that says nothing.
        assert!(node_of(&listed("bbbb00"), &nodes, false).is_some());
    }

    #[test]
    fn of_several_of_one_name_the_newest_counts() {
        let nodes = [node(None, 2), node(None, 1)];
        assert_eq!(node_of(&listed("x"), &nodes, true).unwrap().registered_at, nodes[0].registered_at);
    }
}
