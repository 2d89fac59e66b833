//! What could be reached: with perfect information, and with tasks that move for free.

mod perfect;
mod srpt;

pub use perfect::Perfect;
pub use srpt::migratable_srpt;
