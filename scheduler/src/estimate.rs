//! Rule 2: what a task will cost, as CPU-seconds `w` and off-CPU seconds `p`.
//!
//! Source: design.md 3.2. `fib` by its definition makes about φⁿ calls, so `w = k·φⁿ` with k learned;
//! `sleep` says its own p and `burn` its own w; `fib` by doubling and `sum` are learned per size class;
//! everything else per kind. The error is tracked as σ of log(actual ÷ estimate): sizes with σ > 1
//! count as unknown, and are then placed by tasks in flight instead of by finish time.

use protocol::kinds::{self, FibAlgorithm};
use serde_json::value::RawValue;
use std::{collections::BTreeMap, sync::Arc};

/// The golden ratio.
const PHI: f64 = 1.618_033_988_749_895;
/// CPU-seconds of one φ-th of recursive `fib` before anything was learned: some ns per call.
const FIB_PRIOR_K: f64 = 2e-9;
/// CPU time below which a measurement is mostly overhead and teaches nothing of k, in seconds.
const FIB_LEARN_FROM_S: f64 = 0.000_5;
/// CPU-seconds that any task costs beside its work.
const OVERHEAD_S: f64 = 0.000_02;
/// Most weight of an old mean: a new value counts at least a tenth.
const MOST_WEIGHT: f64 = 10.0;
/// σ of what was never measured.
const UNKNOWN_SIGMA: f64 = 2.0;
/// σ above which a size counts as unknown.
pub const SIGMA_KNOWN: f64 = 1.0;
/// Most size classes that are learned; past it new ones share one per kind.
const MOST_CLASSES: usize = 10_000;

/// What a task is expected to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// w: CPU time, in seconds.
    pub cpu_s: f64,
    /// p: time that it holds its slot without CPU, in seconds.
    pub off_cpu_s: f64,
    /// σ of log(actual ÷ estimate).
    pub sigma: f64,
}

impl Estimate {
    /// Whether it is good enough to place by.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.sigma <= SIGMA_KNOWN
    }
}

/// How the size of a task is found; made once from its input, so that the input is not read again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// CPU time goes as φⁿ.
    FibRecursive(u32),
    /// It says itself how long it takes no CPU, in seconds.
    OffCpu(f64),
    /// It says itself how much CPU it takes, in seconds.
    Cpu(f64),
    /// Learned by this class of its kind, for each number of slots by itself: what a command does without
    /// CPU, and what its threads cost each other, differs with them.
    Class {
        /// The class; 0 if all of the kind are alike.
        class: u32,
        /// Slots that the task takes.
        slots: u32,
    },
}

/// The size of a task of this kind with this input on so many slots; an input that cannot be read is class 0.
#[must_use]
pub fn size_of(kind: &str, input: Option<&RawValue>, slots: u32) -> Size {
    let alike = Size::Class { class: 0, slots };
    let Some(input) = input else { return alike };
    // Sizes are told apart by powers of two, so a class spans less than σ = 1.
    let class = |size: u64| Size::Class { class: 64 - size.leading_zeros(), slots };
    match kind {
        "fib" => match kinds::fib_input(input) {
            // The bound of n is 60, so the cast is exact.
            Ok(fib) if fib.algorithm == FibAlgorithm::Recursive => Size::FibRecursive(fib.n as u32),
            Ok(fib) => class(fib.n),
            Err(_) => alike,
        },
        "sleep" => kinds::sleep_input(input).map_or(alike, |sleep| Size::OffCpu(sleep.ms as f64 / 1e3)),
        "burn" => kinds::burn_input(input).map_or(alike, |burn| Size::Cpu(burn.cpu_ms as f64 / 1e3)),
        "sum" => class(input.get().len() as u64),
        _ => alike,
    }
}

/// A mean and the error of its predictions.
#[derive(Clone, Copy, Debug)]
struct Learned {
    /// Measurements so far, at most [`MOST_WEIGHT`].
    weight: f64,
    cpu_s: f64,
    off_cpu_s: f64,
    /// Mean of log²(actual ÷ estimate).
    error2: f64,
}

impl Learned {
    fn first(cpu_s: f64, off_cpu_s: f64) -> Self {
        // One measurement says the order of magnitude: a second one within a factor e makes it known.
        Self { weight: 1.0, cpu_s, off_cpu_s, error2: 1.0 }
    }

    fn learn(&mut self, cpu_s: f64, off_cpu_s: f64) {
        let log = ((cpu_s + off_cpu_s).max(1e-6) / (self.cpu_s + self.off_cpu_s).max(1e-6)).ln();
        self.weight = (self.weight + 1.0).min(MOST_WEIGHT);
        let part = 1.0 / self.weight;
        self.error2 += part * (log * log - self.error2);
        self.cpu_s += part * (cpu_s - self.cpu_s);
        self.off_cpu_s += part * (off_cpu_s - self.off_cpu_s);
    }
}

/// All that was learned.
#[derive(Clone, Debug)]
pub struct Estimates {
    /// log k of recursive `fib`, its weight and error.
    fib_log_k: f64,
    fib_weight: f64,
    fib_error2: f64,
    /// By kind, then by class and slots.
    classes: BTreeMap<Arc<str>, BTreeMap<(u32, u32), Learned>>,
    class_count: usize,
}

impl Default for Estimates {
    fn default() -> Self {
        Self {
            fib_log_k: FIB_PRIOR_K.ln(),
            fib_weight: 0.0,
            fib_error2: 0.25,
            classes: BTreeMap::new(),
            class_count: 0,
        }
    }
}

impl Estimates {
    /// What a task of this kind and size is expected to cost.
    #[must_use]
    pub fn of(&self, kind: &str, size: Size) -> Estimate {
        match size {
            Size::FibRecursive(n) => Estimate {
                cpu_s: OVERHEAD_S + self.fib_log_k.exp() * PHI.powi(n as i32),
                off_cpu_s: 0.0,
                sigma: self.fib_error2.sqrt(),
            },
            Size::OffCpu(off_cpu_s) => Estimate { cpu_s: 0.0, off_cpu_s, sigma: 0.0 },
            Size::Cpu(cpu_s) => Estimate { cpu_s: cpu_s + OVERHEAD_S, off_cpu_s: 0.0, sigma: 0.0 },
            Size::Class { class, slots } => {
                let learned = self.classes.get(kind).and_then(|of_kind| of_kind.get(&(class, slots)));
                learned.map_or(Estimate { cpu_s: 0.0, off_cpu_s: 0.0, sigma: UNKNOWN_SIGMA }, |learned| {
                    Estimate {
                        cpu_s: learned.cpu_s,
                        off_cpu_s: learned.off_cpu_s,
                        sigma: learned.error2.sqrt(),
                    }
                })
            }
        }
    }

    /// A run ended with a result: it took this much CPU, and ran for `run_s` at about `rate_cores`.
    pub fn learn(&mut self, kind: &Arc<str>, size: Size, cpu_s: f64, run_s: f64, rate_cores: f64) {
        if !(cpu_s.is_finite() && run_s.is_finite()) || cpu_s < 0.0 || run_s < 0.0 {
            return;
        }
        match size {
            Size::FibRecursive(n) => self.learn_fib(n, cpu_s),
            Size::OffCpu(_) | Size::Cpu(_) => {}
            Size::Class { class, slots } => {
                let off_cpu_s = (run_s - cpu_s / rate_cores.max(0.01)).max(0.0);
                if !self.classes.contains_key(kind) {
                    self.classes.insert(Arc::clone(kind), BTreeMap::new());
                }
                let room = self.class_count < MOST_CLASSES;
                if let Some(of_kind) = self.classes.get_mut(kind) {
                    match of_kind.get_mut(&(class, slots)) {
                        Some(learned) => learned.learn(cpu_s, off_cpu_s),
                        None if room => {
                            of_kind.insert((class, slots), Learned::first(cpu_s, off_cpu_s));
                            self.class_count += 1;
                        }
                        None => {}
                    }
                }
            }
        }
    }

    fn learn_fib(&mut self, n: u32, cpu_s: f64) {
        if cpu_s < FIB_LEARN_FROM_S {
            return;
        }
        let error = (cpu_s - OVERHEAD_S).ln() - f64::from(n) * PHI.ln() - self.fib_log_k;
        self.fib_weight = (self.fib_weight + 1.0).min(MOST_WEIGHT);
        let part = 1.0 / self.fib_weight;
        if self.fib_weight > 1.0 {
            self.fib_error2 += part * (error * error - self.fib_error2);
        }
        self.fib_log_k += part * error;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    const ALIKE: Size = Size::Class { class: 0, slots: 1 };

    fn size(kind: &str, input: &str) -> Size {
        size_of(kind, Some(&RawValue::from_string(input.to_owned()).unwrap()), 1)
    }

    #[test]
    fn sleep_takes_no_cpu_and_burn_says_what_it_takes() {
        let estimates = Estimates::default();
        let sleep = estimates.of("sleep", size("sleep", r#"{"ms":1500}"#));
        assert_eq!((sleep.cpu_s, sleep.off_cpu_s), (0.0, 1.5));
        let burn = estimates.of("burn", size("burn", r#"{"cpu_ms":200}"#));
        assert!((burn.cpu_s - 0.2).abs() < 0.001 && burn.off_cpu_s == 0.0 && burn.is_known());
    }

    #[test]
    fn one_fib_teaches_the_cost_of_every_other() {
        let mut estimates = Estimates::default();
        let kind: Arc<str> = "fib".into();
        estimates.learn(&kind, size("fib", r#"{"n":30}"#), 0.004, 0.02, 0.2);
        let big = estimates.of("fib", size("fib", r#"{"n":40}"#));
        assert!((big.cpu_s / (0.004 * PHI.powi(10)) - 1.0).abs() < 0.02, "{big:?}");
        assert!(big.is_known());
        let fast = size("fib", r#"{"n":500000,"algorithm":"doubling"}"#);
        assert!(!estimates.of("fib", fast).is_known());
    }

    #[test]
    fn an_own_kind_is_unknown_until_it_was_seen_and_stays_so_while_it_varies_wildly() {
        let mut estimates = Estimates::default();
        let steady: Arc<str> = "steady".into();
        let wild: Arc<str> = "wild".into();
        assert!(!estimates.of("steady", ALIKE).is_known());
        for turn in 0..20 {
            estimates.learn(&steady, ALIKE, 0.1, 0.5, 0.5);
            let wildly_s = if turn % 2 == 0 { 0.001 } else { 10.0 };
            estimates.learn(&wild, ALIKE, wildly_s, wildly_s, 1.0);
        }
        let known = estimates.of("steady", ALIKE);
        assert!(known.is_known() && (known.cpu_s - 0.1).abs() < 1e-9 && (known.off_cpu_s - 0.3).abs() < 1e-9);
        assert!(!estimates.of("wild", ALIKE).is_known());
    }

    #[test]
    fn a_kind_is_learned_for_each_number_of_threads_by_itself() {
        let mut estimates = Estimates::default();
        let kind: Arc<str> = "encode".into();
        let on = |slots| size_of("encode", None, slots);
        for _ in 0..3 {
            // 8 CPU-seconds either way; on four threads one second more is spent waiting.
            estimates.learn(&kind, on(1), 8.0, 8.0, 1.0);
            estimates.learn(&kind, on(4), 8.0, 3.0, 4.0);
        }
        let (one, four) = (estimates.of("encode", on(1)), estimates.of("encode", on(4)));
        assert!(one.is_known() && (one.cpu_s - 8.0).abs() < 1e-9 && one.off_cpu_s < 1e-9, "{one:?}");
        assert!(four.is_known() && (four.off_cpu_s - 1.0).abs() < 1e-9, "{four:?}");
        assert!(!estimates.of("encode", on(2)).is_known());
    }

    #[test]
    fn figures_that_are_not_numbers_teach_nothing() {
        let mut estimates = Estimates::default();
        let kind: Arc<str> = "own".into();
        estimates.learn(&kind, ALIKE, f64::NAN, 1.0, 1.0);
        estimates.learn(&kind, ALIKE, -1.0, 1.0, 1.0);
        assert!(!estimates.of("own", ALIKE).is_known());
    }
}
