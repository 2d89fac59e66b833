//! Memory of the node's own container, and how many processes the kernel killed in it for want of it.

use super::{Error, cgroup::value_of, procfs::KeptFile};
use std::{path::Path, sync::Arc};

/// The open memory files of a group.
#[derive(Debug)]
pub(super) struct MemoryGroup {
    usage: KeptFile,
    limit: Option<KeptFile>,
}

impl MemoryGroup {
    /// Opens what is mounted at `root`; `None` where memory is not counted.
    pub(super) fn find(root: &Path) -> Result<Option<Self>, Error> {
        let places = [
            ("memory/memory.usage_in_bytes", "memory/memory.limit_in_bytes"),
            ("memory.current", "memory.max"),
        ];
        for (usage, limit) in places {
            if let Some(usage) = KeptFile::open(root.join(usage))? {
                return Ok(Some(Self { usage, limit: KeptFile::open(root.join(limit))? }));
            }
        }
        Ok(None)
    }

    pub(super) fn used_bytes(&self) -> Result<u64, Error> {
        self.usage.read("a number of bytes", |text| text.trim().parse().ok())
    }

    /// The limit; `None` if there is none. A v1 group without one says a number of almost 2⁶³, which the
    /// caller bounds by what the host has.
    pub(super) fn limit_bytes(&self) -> Result<Option<u64>, Error> {
        let Some(limit) = &self.limit else { return Ok(None) };
        limit.read("a number of bytes, or max", parse_limit)
    }
}

/// Reads a memory limit: `None` if it cannot be read, `Some(None)` if there is none.
#[allow(clippy::option_option, reason = "unreadable and unlimited are different answers")]
#[must_use]
pub fn parse_limit(text: &str) -> Option<Option<u64>> {
    match text.trim() {
        "max" => Some(None),
        number => number.parse().ok().map(Some),
    }
}

/// How often the kernel has killed a process in this container because its memory was used up. A task
/// whose process was killed is `out_of_memory` if this has risen meanwhile.
#[derive(Clone, Debug)]
pub struct OomCounter {
    file: Option<Arc<KeptFile>>,
}

impl OomCounter {
    pub(super) fn find(root: &Path) -> Result<Self, Error> {
        for place in ["memory/memory.oom_control", "memory.events"] {
            if let Some(file) = KeptFile::open(root.join(place))? {
                return Ok(Self { file: Some(Arc::new(file)) });
            }
        }
        Ok(Self::nowhere())
    }

    /// The counter of a node that is in no container.
    pub(super) const fn nowhere() -> Self {
        Self { file: None }
    }

    /// Kills so far; `None` where nobody counts them (outside of containers, and v1 before Linux 4.13).
    #[must_use]
    pub fn kills(&self) -> Option<u64> {
        self.file.as_ref()?.read("lines of keys and numbers", |text| value_of(text, "oom_kill")).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn recorded(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cgroup").join(name)
    }

    #[test]
    fn memory_of_both_versions() {
        let cases = [
            ("v1", 3_534_848, Some(134_217_728), Some(2)),
            ("v1-links", 51_200, Some(9_223_372_036_854_771_712), None),
            ("v2", 4_096_000, Some(268_435_456), Some(1)),
            ("v2-memory-unlimited", 7, None, Some(0)),
        ];
        for (name, used, limit, kills) in cases {
            let group = MemoryGroup::find(&recorded(name)).unwrap().unwrap();
            assert_eq!(group.used_bytes().unwrap(), used, "{name}");
            assert_eq!(group.limit_bytes().unwrap(), limit, "{name}");
            assert_eq!(OomCounter::find(&recorded(name)).unwrap().kills(), kills, "{name}");
        }
    }

    #[test]
    fn where_memory_is_not_counted_nothing_is_made_up() {
        assert!(MemoryGroup::find(&recorded("none")).unwrap().is_none());
        assert_eq!(OomCounter::find(&recorded("none")).unwrap().kills(), None);
    }
}
