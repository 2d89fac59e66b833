//! Which node gets a task: the method of this project, and rivals to compare it with.

use std::{fmt, str::FromStr};

/// How a node is chosen among those that have a free slot and fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Earliest predicted end, from effective capacity, estimates and the ledger (design 3.5).
    #[default]
    FinishTime,
    /// Lowest CPU use as last reported. Herds between two reports (Mitzenmacher 2000).
    LeastCpu,
    /// Fewest tasks in flight per effective core.
    LeastConnections,
    /// One after the other, by id.
    RoundRobin,
    /// Any.
    Random,
    /// The one with fewer tasks in flight per effective core of two drawn at random
    /// (Mitzenmacher, "The power of two choices", TPDS 2001).
    P2c,
}

impl Policy {
    /// All of them, the default first.
    pub const ALL: [Self; 6] =
        [Self::FinishTime, Self::LeastCpu, Self::LeastConnections, Self::RoundRobin, Self::Random, Self::P2c];

    /// The word on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FinishTime => "finish-time",
            Self::LeastCpu => "least-cpu",
            Self::LeastConnections => "least-connections",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::P2c => "p2c",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Policy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|policy| policy.as_str() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|policy| policy.as_str()).collect();
            format!("unknown policy {text:?}: one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_read_back_from_its_word_and_others_are_refused() {
        for policy in Policy::ALL {
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        assert!("fastest".parse::<Policy>().is_err_and(|why| why.contains("finish-time")));
    }
}
