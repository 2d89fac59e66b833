//! Cuts of the network between nodes, masters and their database, in an order decided by a seed. Of each is said what
//! has to follow, and waited for: while the cut lasts, and once it is healed.

use super::{
    Plan, Report, Scene as _,
    containers::{Containers, Cut},
    play,
};
use crate::eventually;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    thread,
    time::{Duration, Instant},
};

/// What has to follow from a cut has to within this.
const PATIENCE: Duration = Duration::from_secs(40);

/// One kind of cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node leaves the network, and comes back before it is lost.
    NodeAwayShortly,
    /// A node leaves the network until it is lost, and comes back.
    NodeAwayUntilLost,
    /// Between a node and both masters nothing goes any more, until it is lost; its address stays.
    NodeSilentUntilLost,
    /// Between a node and the leader nothing goes any more; the standby reaches both.
    NodeFromLeader,
    /// Between the masters nothing goes any more; each reaches database and nodes.
    LeaderFromStandby,
    /// Between the leader and the database nothing goes any more; it reaches everybody else.
    LeaderFromDatabase,
    /// The leader leaves the network and comes back.
    LeaderAway,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::NodeAwayShortly,
        Self::NodeAwayUntilLost,
        Self::NodeSilentUntilLost,
        Self::NodeFromLeader,
        Self::LeaderFromStandby,
        Self::LeaderFromDatabase,
        Self::LeaderAway,
    ];
}

/// Plays each kind of cut so many times; then the cluster is left alone and asked once more.
///
/// # Panics
/// If the cluster does not come up, or what has to follow from a cut does not.
#[must_use]
pub fn run(plan: &Plan, rounds: usize) -> Report {
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let mut left = Vec::new();
    for _ in 0..rounds {
        let mut kinds = Kind::ALL;
        kinds.shuffle(&mut random);
        left.extend(kinds);
    }
    let (mut played, mut seen) = (BTreeMap::new(), Vec::new());
    let mut left = left.into_iter();
    let mut report = play(plan, Containers::up(plan.nodes), |cluster| {
        let Some(kind) = left.next() else { return ControlFlow::Break(()) };
        thread::sleep(random.random_range(Duration::ZERO..=plan.pause));
        let which = random.random_range(0..plan.nodes);
        let mut followed = Followed { kind, began: Instant::now(), seen: &mut seen };
        Cutting::of(cluster, which).play(kind, &mut followed);
        *played.entry(format!("{kind:?}")).or_default() += 1;
        ControlFlow::Continue(())
    });
    (report.faults, report.seen) = (played, seen);
    report
}

/// Writes down what followed from a cut, and when.
struct Followed<'a> {
    kind: Kind,
    began: Instant,
    seen: &'a mut Vec<String>,
}

impl Followed<'_> {
    fn by(&mut self, what: &str) {
        self.seen.push(format!("{:?}: {what} after {:.1} s", self.kind, self.began.elapsed().as_secs_f64()));
    }
}

/// A cluster that is about to be cut, as it is then.
struct Cutting<'a> {
    cluster: &'a Containers,
    leader: usize,
    node: String,
    nodes: usize,
}

impl<'a> Cutting<'a> {
    fn of(cluster: &'a Containers, which: usize) -> Self {
        let nodes = cluster.nodes();
        Self { cluster, leader: cluster.access().leader(), node: nodes[which].clone(), nodes: nodes.len() }
    }

    fn play(&self, kind: Kind, followed: &mut Followed) {
        let Self { cluster, leader, node, .. } = self;
        let (standby, master) = (1 - leader, cluster.master(*leader));
        match kind {
            Kind::NodeAwayShortly | Kind::NodeAwayUntilLost => {
                cluster.disconnect(node);
                self.node_is(if kind == Kind::NodeAwayShortly { "suspect" } else { "lost" }, followed);
                cluster.connect(node);
                self.node_is("ready", followed);
            }
            Kind::NodeSilentUntilLost => {
                let cuts = [0, 1].map(|at| cluster.cut_from_master(node, at));
                self.node_is("lost", followed);
                cuts.into_iter().for_each(Cut::heal);
                self.node_is("ready", followed);
            }
            Kind::NodeFromLeader => {
                let cut = cluster.cut_from_master(node, *leader);
                self.works_on(followed);
                cut.heal();
            }
            Kind::LeaderFromStandby => {
                let (epoch, cut) = (self.epoch(), cluster.cut_from_master(&cluster.master(standby), *leader));
                // Twice the lease: nobody has a reason to take over.
                thread::sleep(Duration::from_secs(4));
                let asked =
                    cluster.access().ask(standby, PATIENCE, "GET /v1/nodes", &["host: localhost"], "");
                assert!(matches!(asked.0, 502 | 503), "of the standby: {asked:?}");
                followed.by("the standby answers that it does not reach the leader");
                assert_eq!(self.epoch(), epoch, "somebody else leads");
                cut.heal();
                self.stands_by(standby, followed);
            }
            Kind::LeaderFromDatabase => {
                let cut = cluster.cut_from_database(*leader);
                self.taken_over(followed);
                cut.heal();
                self.stands_by(*leader, followed);
            }
            Kind::LeaderAway => {
                cluster.disconnect(&master);
                self.taken_over(followed);
                cluster.connect(&master);
                self.stands_by(*leader, followed);
            }
        }
    }

    /// The node, as the leader shows it.
    fn shown(&self) -> Value {
        let nodes = self.cluster.access().nodes();
        nodes.into_iter().find(|node| node["name"] == self.node.as_str()).unwrap_or_default()
    }

    fn node_is(&self, status: &str, followed: &mut Followed) {
        eventually(&format!("{} is {status}", self.node), PATIENCE.as_secs(), || {
            let node = self.shown();
            if node["status"] == status { Ok(()) } else { Err(node.to_string()) }
        });
        followed.by(&format!("the node is {status}"));
    }

    /// The node has ended more than it can have had in hand.
    fn works_on(&self, followed: &mut Followed) {
        let completed = || self.shown()["completed"].as_u64().unwrap_or_default();
        let before = completed();
        eventually("the node works by the standby", PATIENCE.as_secs(), || {
            let now = completed();
            if now > before + 20 { Ok(()) } else { Err(format!("{before}, then {now}")) }
        });
        followed.by("the node works by the standby");
    }

    fn epoch(&self) -> u64 {
        self.cluster.sql("SELECT epoch FROM master").parse().unwrap()
    }

    /// The other master leads, this one knows that it does not, though nobody can have told it, and all nodes work for
    /// the other one.
    fn taken_over(&self, followed: &mut Followed) {
        let (access, standby) = (self.cluster.access(), 1 - self.leader);
        eventually("the other one leads", PATIENCE.as_secs(), || match access.get(standby, "/readyz") {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        followed.by("the other master leads");
        let asked = access.get(self.leader, "/readyz");
        assert_ne!(asked.0, 200, "two lead: {asked:?}");
        let log = self.cluster.log(self.leader);
        assert!(log.contains("this master does not lead any more"), "{log}");
        access.wait_for_nodes(self.nodes);
        followed.by("all nodes are ready there");
    }

    fn stands_by(&self, at: usize, followed: &mut Followed) {
        let ready = |(status, body): &(u16, String)| *status == 503 && body.contains("/problems/standby");
        eventually("it stands by", PATIENCE.as_secs(), || {
            let asked = self.cluster.access().get(at, "/readyz");
            if ready(&asked) { Ok(()) } else { Err(format!("{asked:?}")) }
        });
        followed.by("it is a standby");
    }
}
