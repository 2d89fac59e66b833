//! What the doctor says of one thing.

use serde::Serialize;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// Something does not work, or is not safe.
    Failure,
}

impl Verdict {
    /// The word.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Of what; a stable word.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What was found, one line.
    pub(super) what: String,
    /// Why it matters; nothing where all is well.
    pub(super) why: Option<String>,
    /// The command that mends it; nothing where all is well.
    pub(super) mend: Option<String>,
}

impl Finding {
    /// All is well.
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, what: what.into(), why: None, mend: None }
    }

    /// It works, but.
    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: &str,
        mend: impl Into<String>,
    ) -> Self {
        Self::bad(Verdict::Warning, check, what, why, mend)
    }

    /// It does not work.
    pub(super) fn failure(
        check: &'static str,
        what: impl Into<String>,
        why: &str,
        mend: impl Into<String>,
    ) -> Self {
        Self::bad(Verdict::Failure, check, what, why, mend)
    }

    /// Either of both.
    pub(super) fn bad(
        verdict: Verdict,
        check: &'static str,
        what: impl Into<String>,
        why: &str,
        mend: impl Into<String>,
    ) -> Self {
        Self { check, verdict, what: what.into(), why: Some(why.to_owned()), mend: Some(mend.into()) }
    }
}

/// The worst of all.
pub(super) fn worst(findings: &[Finding]) -> Verdict {
    findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok)
}
