//! What is printed: the goals, and one table for each setting.

use crate::{
    catalogue,
    contenders::{self, Contender, Role},
    many::Results,
    scenario::Scenario,
    statistics::{Figures, Interval},
};
use std::fmt::Write;

fn values(
    results: &Results,
    scenario: &str,
    name: &'static str,
    figure: fn(&Figures) -> f64,
) -> Option<Vec<f64>> {
    let figures = results.get(&(scenario.to_owned(), name))?;
    Some(figures.iter().map(figure).collect())
}

/// Three digits, whatever the size.
fn digits(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn with_bounds(interval: Interval) -> String {
    format!("{} ({}–{})", digits(interval.mean), digits(interval.low), digits(interval.high))
}

/// A goal: a figure of ours ÷ that of somebody else in a setting.
struct Goal {
    what: &'static str,
    scenario: &'static str,
    other: &'static str,
    figure: fn(&Figures) -> f64,
    most: f64,
}

const GOALS: [Goal; 4] = [
    Goal {
        what: "p99 slowdown ÷ perfect information",
        scenario: catalogue::GOALS,
        other: contenders::PERFECT,
        figure: |figures| figures.p99,
        most: 1.10,
    },
    Goal {
        what: "p99 slowdown ÷ least connections by capacity",
        scenario: catalogue::GOALS,
        other: contenders::LEAST_CONNECTIONS,
        figure: |figures| figures.p99,
        most: 0.60,
    },
    Goal {
        what: "p99 slowdown ÷ least reported CPU, reports each 1 s",
        scenario: catalogue::GOALS_1S,
        other: contenders::LEAST_CPU,
        figure: |figures| figures.p99,
        most: 0.02,
    },
    Goal {
        what: "hogs on half of the nodes: p99.9 slowdown with CPU reports ÷ without",
        scenario: catalogue::HOGS,
        other: contenders::BLIND,
        figure: |figures| figures.p999,
        most: 0.70,
    },
];

/// The rival with the lowest p99 in a setting.
#[must_use]
pub fn best_rival(results: &Results, scenario: &str) -> Option<&'static str> {
    let rivals = contenders::ALL.iter().filter(|contender| contender.role == Role::Rival);
    let p99 =
        |name| values(results, scenario, name, |figures| figures.p99).map(|all| Interval::of(&all).mean);
    rivals
        .filter_map(|rival| p99(rival.name).map(|mean| (rival.name, mean)))
        .min_by(|one, other| one.1.total_cmp(&other.1))
        .map(|best| best.0)
}

/// The goals, as far as their settings were run.
#[must_use]
pub fn goals(results: &Results) -> String {
    let mut text = String::from("| goal | reached (95 % confidence) | goal | |\n| --- | --- | --- | --- |\n");
    let rows = text.len();
    let mut row = |what: &str, scenario: &str, other, figure: fn(&Figures) -> f64, most: f64| {
        let ours = values(results, scenario, contenders::EVENKEEL, figure);
        let (Some(ours), Some(theirs)) = (ours, values(results, scenario, other, figure)) else { return };
        let ratio = Interval::of_ratio(&ours, &theirs);
        let shown = if most < 0.1 {
            format!("1/{:.0} (1/{:.0}–1/{:.0})", 1.0 / ratio.mean, 1.0 / ratio.low, 1.0 / ratio.high)
        } else {
            with_bounds(ratio)
        };
        let goal = if most < 0.1 { format!("1/{:.0}", 1.0 / most) } else { format!("{most:.2}") };
        let verdict = if ratio.mean <= most { "reached" } else { "missed" };
        let _ = writeln!(text, "| {what} | {shown} | ≤ {goal} | {verdict} |");
    };
    for goal in &GOALS {
        row(goal.what, goal.scenario, goal.other, goal.figure, goal.most);
    }
    if let Some(best) = best_rival(results, catalogue::GOALS) {
        let what = format!("p99 slowdown ÷ the best rival ({best})");
        row(&what, catalogue::GOALS, best, |figures| figures.p99, 0.90);
    }
    if text.len() == rows { String::new() } else { text }
}

fn row(results: &Results, scenario: &str, contender: &Contender) -> Option<String> {
    let mean = |figure| values(results, scenario, contender.name, figure).map(|all| Interval::of(&all));
    let p99 = values(results, scenario, contender.name, |figures| figures.p99)?;
    let ratio = values(results, scenario, contenders::EVENKEEL, |figures| figures.p99)
        .map_or_else(String::new, |ours| with_bounds(Interval::of_ratio(&ours, &p99)));
    let lost = values(results, scenario, contender.name, |figures| figures.lost)?;
    let lost = 100.0 * lost.iter().sum::<f64>() / lost.len().max(1) as f64;
    let name = match contender.role {
        Role::Ours => format!("**{}**", contender.name),
        Role::Bound => format!("*{}*", contender.name),
        Role::Variant | Role::Rival => contender.name.to_owned(),
    };
    Some(format!(
        "| {name} | {} | {} | {} | {} | {} | {ratio} | {lost:.1} |",
        digits(mean(|figures| figures.mean)?.mean),
        digits(mean(|figures| figures.p50)?.mean),
        digits(mean(|figures| figures.p95)?.mean),
        with_bounds(Interval::of(&p99)),
        digits(mean(|figures| figures.p999)?.mean),
    ))
}

/// One setting: slowdowns of everybody, the best p99 first.
#[must_use]
pub fn setting(results: &Results, scenario: &Scenario) -> String {
    let p99 = |name| values(results, &scenario.name, name, |figures| figures.p99);
    let mut found: Vec<_> = contenders::ALL
        .iter()
        .filter_map(|contender| Some((Interval::of(&p99(contender.name)?).mean, contender)))
        .collect();
    found.sort_by(|one, other| one.0.total_cmp(&other.0));
    let rows: Vec<_> =
        found.iter().filter_map(|(_, contender)| row(results, &scenario.name, contender)).collect();
    format!(
        "### {}\n\n| | mean | p50 | p95 | p99 (95 % confidence) | p99.9 | p99 of evenkeel ÷ this | no result, % |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n{}\n",
        scenario.name,
        rows.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(p99: f64) -> Figures {
        Figures { mean: 1.0, p50: 1.0, p95: 1.0, p99, p999: p99, longest_s: 1.0, lost: 0.0 }
    }

    #[test]
    fn a_goal_is_reached_or_missed_by_the_ratio_of_the_same_seeds() {
        let mut results = Results::new();
        let mut put = |name, p99s: [f64; 2]| {
            results.insert((catalogue::GOALS.to_owned(), name), p99s.map(figures).to_vec());
        };
        put(contenders::EVENKEEL, [2.0, 20.0]);
        put(contenders::PERFECT, [1.9, 19.0]);
        put(contenders::LEAST_CONNECTIONS, [3.0, 30.0]);
        let text = goals(&results);
        assert!(
            text.contains("| p99 slowdown ÷ perfect information | 1.05 (1.05–1.05) | ≤ 1.10 | reached |"),
            "{text}"
        );
        assert!(
            text.contains("least connections by capacity | 0.67 (0.67–0.67) | ≤ 0.60 | missed |"),
            "{text}"
        );
        assert!(!text.contains("hogs"), "what was not run is not told: {text}");
        let table = setting(&results, &Scenario::base(catalogue::GOALS));
        let order: Vec<_> = table.match_indices("| *perf").chain(table.match_indices("| **even")).collect();
        assert!(order[0].0 < order[1].0, "the best first: {table}");
    }
}
