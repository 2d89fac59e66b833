//! Balancers that Evenkeel could be replaced by, as their papers and documents describe them.
//!
//! Most send each task on at once, and nodes run what they get side by side: [`push`] joins such a [`Rule`] to the
//! nodes. Only the central queue holds tasks back. What all are given: cores of each node where the rule
//! wants weights; health checks and retries, so that a fault costs them no more than it has to.

mod central_fifo;
mod join_idle_queue;
mod least_connections;
mod least_cpu;
mod peak_ewma;
mod power_of_two;
mod prequal;
pub mod push;
mod random;
mod reported_load;
mod round_robin;

pub use central_fifo::CentralFifo;
pub use join_idle_queue::JoinIdleQueue;
pub use least_connections::LeastConnections;
pub use least_cpu::LeastCpu;
pub use peak_ewma::PeakEwma;
pub use power_of_two::PowerOfTwo;
pub use prequal::Prequal;
pub use push::{Pool, Push, Rule};
pub use random::Random;
pub use reported_load::ReportedLoad;
pub use round_robin::RoundRobin;
