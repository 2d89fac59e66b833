//! Who takes part, by name.

use crate::{
    balancer::Balancer,
    bounds::{self, Perfect},
    cluster::{self, Outcome},
    evenkeel::Evenkeel,
    rivals::{
        CentralFifo, JoinIdleQueue, LeastConnections, LeastCpu, PeakEwma, PowerOfTwo, Prequal, Push, Random,
        ReportedLoad, RoundRobin,
    },
    scenario::{Drawn, Scenario},
};
use scheduler::Policy;

/// What somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The production scheduler.
    Ours,
    /// The production scheduler without what makes it work, for comparison.
    Variant,
    /// Something that it could be replaced by.
    Rival,
    /// What could be reached.
    Bound,
}

/// Somebody who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Name on the command line and in tables.
    pub name: &'static str,
    /// What it is.
    pub role: Role,
}

const fn contender(name: &'static str, role: Role) -> Contender {
    Contender { name, role }
}

/// The production scheduler.
pub const EVENKEEL: &str = "evenkeel";
/// The same without what CPU samples say.
pub const BLIND: &str = "evenkeel-without-cpu-reports";
/// The bound that the goals name.
pub const PERFECT: &str = "perfect-information";
/// Tasks that move for free.
pub const SRPT: &str = "migratable-srpt";
/// The rival that the goals name.
pub const LEAST_CONNECTIONS: &str = "least-connections-by-capacity";
/// The usual practice.
pub const LEAST_CPU: &str = "least-reported-cpu";

/// Everybody, in the order of the tables.
pub const ALL: [Contender; 19] = [
    contender(SRPT, Role::Bound),
    contender(PERFECT, Role::Bound),
    contender(EVENKEEL, Role::Ours),
    contender(BLIND, Role::Variant),
    contender("central-fifo", Role::Rival),
    contender("central-fifo-strongest-first", Role::Rival),
    contender(LEAST_CONNECTIONS, Role::Rival),
    contender("least-connections", Role::Rival),
    contender("p2c-by-capacity", Role::Rival),
    contender("p2c", Role::Rival),
    contender("peak-ewma", Role::Rival),
    contender("prequal-0.6", Role::Rival),
    contender("prequal-0.9", Role::Rival),
    contender("join-idle-queue", Role::Rival),
    contender("reported-load", Role::Rival),
    contender("weighted-round-robin", Role::Rival),
    contender("round-robin", Role::Rival),
    contender("random", Role::Rival),
    contender(LEAST_CPU, Role::Rival),
];

/// Somebody by name, with a seed of its own.
fn balancer(name: &str, seed: u64) -> Option<Box<dyn Balancer>> {
    let least = |weighted| Push::new(LeastConnections { weighted });
    let two = |weighted| Push::new(PowerOfTwo { weighted });
    Some(match name {
        PERFECT => Box::new(Perfect::new(3.0, 10.0)),
        EVENKEEL => Box::new(Evenkeel::new(Policy::FinishTime, true, seed)),
        BLIND => Box::new(Evenkeel::new(Policy::FinishTime, false, seed)),
        "central-fifo" => Box::new(CentralFifo::new(false)),
        "central-fifo-strongest-first" => Box::new(CentralFifo::new(true)),
        LEAST_CONNECTIONS => Box::new(least(true)),
        "least-connections" => Box::new(least(false)),
        "p2c-by-capacity" => Box::new(two(true)),
        "p2c" => Box::new(two(false)),
        "peak-ewma" => Box::new(Push::new(PeakEwma::default())),
        "prequal-0.6" => Box::new(Push::new(Prequal::new(0.6))),
        "prequal-0.9" => Box::new(Push::new(Prequal::new(0.9))),
        "join-idle-queue" => Box::new(Push::new(JoinIdleQueue::default())),
        "reported-load" => Box::new(Push::new(ReportedLoad::default())),
        "weighted-round-robin" => Box::new(Push::new(RoundRobin::new(true))),
        "round-robin" => Box::new(Push::new(RoundRobin::new(false))),
        "random" => Box::new(Push::new(Random)),
        LEAST_CPU => Box::new(Push::new(LeastCpu::default())),
        _ => return None,
    })
}

/// Runs a scenario with somebody; `None` if nobody has this name.
#[must_use]
pub fn run(name: &str, scenario: &Scenario, drawn: &Drawn, seed: u64) -> Option<Vec<Outcome>> {
    if name == SRPT {
        return Some(bounds::migratable_srpt(drawn).into_iter().map(Outcome::Done).collect());
    }
    let mut balancer = balancer(name, seed)?;
    Some(cluster::run(scenario, drawn, seed, balancer.as_mut()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_in_the_list_can_take_part() {
        let scenario = Scenario { nodes: 4, duration_s: 1.0, warm_up_s: 0.0, ..Scenario::base("x") };
        let drawn = scenario.draw(1);
        for contender in ALL {
            let outcomes = run(contender.name, &scenario, &drawn, 1);
            assert_eq!(
                outcomes.map(|outcomes| outcomes.len()),
                Some(drawn.tasks.len()),
                "{}",
                contender.name
            );
        }
        assert!(run("nobody", &scenario, &drawn, 1).is_none());
    }
}
