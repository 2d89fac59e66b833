//! Names of containers: `evenkeel-<cluster>-<pool>-<n>`, n from 1. A node has the name of its container.

/// Longest name of a cluster or a pool, in characters, so that a node's name stays below 128.
pub const MAX_PART_CHARS: usize = 40;

/// A name of a cluster or pool that cannot be part of a container's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name {0:?} cannot be used: take 1 to {MAX_PART_CHARS} of a-z, 0-9 and '-', beginning with a letter or digit"
)]
pub struct BadName(pub String);

/// How the containers of one pool are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Naming {
    prefix: String,
}

/// Whether this can be the name of a cluster or a pool.
///
/// # Errors
/// If it cannot, with what would do.
pub fn check(part: &str) -> Result<(), BadName> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let right = part.starts_with(allowed)
        && part.chars().all(|c| allowed(c) || c == '-')
        && part.len() <= MAX_PART_CHARS;
    if right { Ok(()) } else { Err(BadName(part.to_owned())) }
}

impl Naming {
    /// The naming of a pool of a cluster.
    ///
    /// # Errors
    /// If one of the names cannot be part of a container's name.
    pub fn new(cluster: &str, pool: &str) -> Result<Self, BadName> {
        check(cluster)?;
        check(pool)?;
        Ok(Self { prefix: format!("evenkeel-{cluster}-{pool}-") })
    }

    /// The name of the n-th node, n from 1.
    #[must_use]
    pub fn name(&self, n: u32) -> String {
        format!("{}{n}", self.prefix)
    }

    /// Which node of this pool a name means; `None` if it is no name of this pool.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(&self.prefix)?;
        let plain = !digits.starts_with(['0', '+']);
        digits.parse().ok().filter(|_| plain)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_name_gives_its_number_back_and_others_give_none() {
        let naming = Naming::new("c", "p").unwrap();
        assert_eq!(naming.name(7), "evenkeel-c-p-7");
        assert_eq!(naming.number("evenkeel-c-p-7"), Some(7));
        for other in
            ["evenkeel-c-p-", "evenkeel-c-p-07", "evenkeel-c-p-+7", "evenkeel-c-q-7", "evenkeel-c-master"]
        {
            assert_eq!(naming.number(other), None, "{other}");
        }
    }

    #[test]
    fn names_that_docker_or_a_label_would_not_take_are_refused() {
        for bad in ["", "-a", "A", "a b", "a/b", "a_b", &"a".repeat(41)] {
            assert_eq!(Naming::new(bad, "p"), Err(BadName(bad.to_owned())));
            assert_eq!(Naming::new("c", bad), Err(BadName(bad.to_owned())));
        }
    }
}
