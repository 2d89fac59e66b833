//! Placement simulated: the production scheduler, beside its rivals and two bounds, on the same machines, tasks,
//! hogs and faults, all from one seed. The clock is virtual; nothing here waits, and a seed replays exactly.
//!
//! A tour:
//! - [`scenario`]: one setting, and what is drawn from a seed; [`catalogue`]: all settings; [`work`]: sizes, arrivals;
//! - [`machine`]: the CPU of a node, with CFS periods; [`host`]: a node, its slots, what it reports;
//! - [`cluster`]: one run; [`balancer`]: what a balancer is told, and what it can ask for;
//! - [`evenkeel`]: the production `scheduler::Core` as a balancer; [`rivals`]: the others, one file each, with their
//!   sources; [`bounds`]: perfect information, and tasks that move for free; [`contenders`]: all of them by name;
//! - [`many`]: seeds on several threads; [`statistics`]: slowdowns, quantiles, confidence; [`table`] and [`plots`]:
//!   what is printed and drawn.

pub mod balancer;
pub mod bounds;
pub mod catalogue;
pub mod cluster;
pub mod contenders;
pub mod evenkeel;
pub mod host;
pub mod machine;
pub mod many;
pub mod plots;
pub mod rivals;
pub mod scenario;
pub mod statistics;
pub mod table;
pub mod work;
