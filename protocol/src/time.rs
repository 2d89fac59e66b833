//! Wall-clock time as it is shown to people and kept in the store.
//!
//! Decisions never use it for durations: they use a monotonic time that the shell passes in.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted. On the wire RFC 3339 in UTC
/// with milliseconds, as `2026-11-21T03:50:00.000Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This instant, `ms` milliseconds later.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        // i64 milliseconds reach 292 million years, so the cast of any sane duration is exact.
        Self(self.0.saturating_add_unsigned(ms))
    }

    /// Milliseconds from `earlier` to this, 0 if it lies before.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => write!(f, "{} ms", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<jiff::Timestamp>().map(|time| Self(time.as_millisecond()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn is_written_as_rfc_3339_utc_with_milliseconds() {
        let time = Timestamp(1_795_232_400_007);
        assert_eq!(serde_json::to_string(&time).unwrap(), r#""2026-11-21T03:40:00.007Z""#);
        assert_eq!(serde_json::from_str::<Timestamp>(r#""2026-11-21T04:40:00.007+01:00""#).unwrap(), time);
    }
}
