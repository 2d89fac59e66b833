//! Findings as a table for people, or as JSON.

use super::finding::{Finding, Verdict, worst};
use console::Style;
use serde::Serialize;

/// Columns before the text: verdict and check.
const VERDICT_COLUMNS: usize = 9;
const CHECK_COLUMNS: usize = 12;
/// A narrower terminal than this wraps by itself.
const LEAST_COLUMNS: usize = 40;

/// The findings as programs read them.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    verdict: Verdict,
    items: &'a [Finding],
}

impl<'a> Report<'a> {
    pub(super) fn new(findings: &'a [Finding]) -> Self {
        Self { verdict: worst(findings), items: findings }
    }
}

/// The findings for people: texts wrapped at so many columns; commands never, so that they can be copied.
pub(super) fn table(findings: &[Finding], columns: usize, colour: bool) -> String {
    let width = columns.max(LEAST_COLUMNS) - VERDICT_COLUMNS - CHECK_COLUMNS;
    let indent = " ".repeat(VERDICT_COLUMNS + CHECK_COLUMNS);
    let mut text = String::new();
    for finding in findings {
        let word = format!("{:<VERDICT_COLUMNS$}", finding.verdict.as_str());
        let word = style(finding.verdict).force_styling(colour).apply_to(word);
        text.push_str(&format!("{word}{:<CHECK_COLUMNS$}", finding.check));
        text.push_str(&wrapped(&finding.what, width, &indent));
        if let Some(why) = &finding.why {
            text.push_str(&indent);
            text.push_str(&wrapped(&format!("why: {why}"), width, &indent));
        }
        if let Some(mend) = &finding.mend {
            text.push_str(&format!("{indent}mend: {mend}\n"));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn style(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Ok => Style::new().green(),
        Verdict::Warning => Style::new().yellow().bold(),
        Verdict::Failure => Style::new().red().bold(),
    }
}

/// Lines of at most `width` characters where words allow it, each but the first behind `indent`, and a line
/// end.
fn wrapped(text: &str, width: usize, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join(&format!("\n{indent}")) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("docker", "Docker answers"),
            Finding::failure(
                "token",
                "a file that can be read by others than its owner",
                "it matters",
                "chmod 600 file",
            ),
        ]
    }

    #[test]
    fn texts_are_wrapped_and_commands_are_not() {
        let table = table(&findings(), 50, false);
        let expected = "ok       docker      Docker answers\n\
                        failure  token       a file that can be read by\n                     \
                        others than its owner\n                     \
                        why: it matters\n                     \
                        mend: chmod 600 file";
        assert_eq!(table, expected);
        assert!(table.lines().all(|line| line.len() <= 50));
    }

    #[test]
    fn colour_is_only_what_was_asked_for() {
        assert!(!table(&findings(), 80, false).contains('\u{1b}'));
        assert!(table(&findings(), 80, true).contains("\u{1b}[31m"));
    }

    #[test]
    fn the_report_is_as_bad_as_its_worst_finding() {
        let findings = findings();
        let json = serde_json::to_value(Report::new(&findings)).unwrap_or_default();
        assert_eq!(json["verdict"], "failure");
        assert_eq!(json["items"][0]["mend"], serde_json::Value::Null);
        assert_eq!(json["items"][1]["mend"], "chmod 600 file");
        assert_eq!(worst(&findings[..1]), Verdict::Ok);
        assert_eq!(worst(&[]), Verdict::Ok);
    }
}
