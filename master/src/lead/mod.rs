//! Who leads: this master alone, or one of several on one PostgreSQL.
//!
//! - `keeper`: the shell around `session::lease`, which decides when to ask for the lead and how long it lasts;
//! - `tenure`: how long, for all that act by it; `fence`: the store, which writes nothing after that;
//! - `term`: what there is only while this master leads; `front`: who answers a request meanwhile;
//! - `forward`: from a standby to the leader, the one place from which a master dials.
//!
//! What holds:
//! 1. from the instant at which the lease may be another's, nothing is answered, written or sent: each place
//!    looks at the clock itself, so a process that stood still does nothing first;
//! 2. what slips through between the look and the act is refused by the database (epoch) and by the nodes (epoch);
//! 3. a request is forwarded once at most, and only to the address in the leader's row.

mod fence;
mod forward;
mod front;
mod keeper;
mod tenure;
mod term;

pub(crate) use forward::{Forwarder, master_url};
pub(crate) use front::Front;
pub(crate) use keeper::Keeper;
pub(crate) use tenure::Tenure;
pub(crate) use term::{Founding, Term};
