//! What our threads obtained, and what others take beside us: the arithmetic of design 3.1.

use super::window::Span;

/// Less run and wait time than this in the window says nothing.
const LEAST_NS: u64 = 100_000_000;
/// Task CPU time that the clocks of processes saw and those of threads did not, from which on it is
/// counted: below, it may be the rounding of clock ticks (10 ms for each of user and system time).
const MISSED_NS: u64 = 50_000_000;
/// What placement leaves a node, however disturbed it is.
const LEAST_SHARE: f64 = 0.05;

/// 1 − e_g: of what an undisturbed node of `cores` would have given the threads of our tasks, the part
/// that they got, 0 … 1. `None` if they did too little to tell.
///
/// `g = Σrun ÷ Σ(run + wait)` is what they got of what they wanted. `k = max(1, Σ(run + wait) ÷ B)` of
/// them were ready at once while there was work (B), and an undisturbed node gives each of k threads
/// `min(1, cores ÷ k)`. Threads that lived and died between two looks show in no Σ: where the clocks of
/// whole processes saw more CPU time than those of the threads, k is made greater by the same factor, as
/// the unseen ones were ready side by side with the seen ones.
///
/// A quota is given out by the period (100 ms as a rule), so that a span of 590 ms holds the use of 5 or 6
/// of them: alone that would look like a loss of 15 %. Where the quota ran out in each period the container
/// had all that it was entitled to, so what it used in the span is what was there to be had.
#[must_use]
pub fn obtained_share(span: &Span, cores: f64) -> Option<f64> {
    let wanted = span.run_ns.saturating_add(span.wait_ns);
    if wanted < LEAST_NS || span.busy_ns == 0 {
        return None;
    }
    let got = share(span.run_ns, wanted);
    let missed_ns = span.task_cpu_ns.saturating_sub(span.run_ns);
    let unseen =
        if missed_ns >= MISSED_NS && span.run_ns > 0 { share(span.task_cpu_ns, span.run_ns) } else { 1.0 };
    let ready = (share(wanted, span.busy_ns) * unseen).max(1.0);
    let quota_ran_out = span.periods > 0 && span.throttled.saturating_add(1) >= span.periods;
    let there = if quota_ran_out { cores.min(share(span.used_ns, span.busy_ns)) } else { cores };
    let fair = (there / ready).min(1.0);
    if fair <= 0.0 {
        return Some(0.0);
    }
    Some((got / fair).clamp(0.0, 1.0))
}

/// o in a container of `cores`: `min((used − own) ÷ cores, h ÷ (h + 1))`, h = mean ready threads that are
/// not ours, 0 … 1. Against h hogs a first task of ours still gets a fair share, however much they use.
#[must_use]
pub fn others_share(span: &Span, cores: f64) -> f64 {
    let others = share(span.used_ns.saturating_sub(span.own_ns), span.at_ns);
    let hogs = share(span.foreign_ns, span.at_ns);
    (others / cores).min(hogs / (hogs + 1.0)).clamp(0.0, 1.0)
}

/// o of a process of a host with `host_cpus`, that may use `cores` of it: what others leave of the host,
/// if that is less than `cores`, but no more than a first thread of ours would lose to them: it gets
/// `min(1, host_cpus ÷ (h + 1))` of a core. How many threads of others are ready is not known there; at
/// least as many as they keep CPUs busy.
pub(super) fn others_share_on_host(span: &Span, cores: f64, host_cpus: f64) -> f64 {
    let others = share(span.host_others_ns, span.at_ns);
    let left = (host_cpus - others).max(0.0);
    let lost_to_them = 1.0 - (host_cpus / (others + 1.0)).min(1.0);
    (1.0 - left / cores).min(lost_to_them).clamp(0.0, 1.0)
}

/// Ĉ of design 3.1 for a sample of age 0, without the memory of the past that the master adds.
pub(super) fn effective_cores(cores: f64, obtained_share: Option<f64>, others_share: f64) -> f64 {
    let lost = obtained_share.map_or(0.0, |share| 1.0 - share).max(others_share);
    cores * (1.0 - lost).max(LEAST_SHARE)
}

/// `part ÷ whole`, 0 if the whole is 0. Times of a span are far below 2⁵³ ns, so the casts are exact.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests;
