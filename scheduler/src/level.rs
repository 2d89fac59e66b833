//! The level at which a noisy figure stands now: its mean over as much of the past as still tells of it.
//!
//! What a task gets of a node jumps from one report to the next, because the kernel puts neighbours on the same
//! CPU or on another one; over the seconds that a task takes it evens out. A momentary figure extended over them
//! is off by half, and a long mean does not notice a neighbour that came. So the mean goes back for as long as the
//! figure was of the same level: an adaptive window, in the way of ADWIN (Bifet and Gavaldà, 2007) with a fixed test
//! instead of its statistical one. A fall to another level counts after a second, as a neighbour that came will
//! most often stay; a rise after three, as it may be a moment in which the neighbour was elsewhere.

/// Length of a span, in microseconds: how often a node with work is asked for a report.
const SPAN_US: u64 = 500_000;
/// Spans that are kept: 10 s.
const SPANS: usize = 20;
/// So many spans (1 s) are held against the younger ones, because a single report says too little.
const PAIR: usize = 2;
/// Spans that count although the figure was lower then: 3 s.
const RISEN_FOR: usize = 6;
/// A pair whose mean is more than this many times above or below that of the younger ones is of another level.
/// A first neighbour takes half of what is there.
const OTHER_LEVEL: f64 = 1.8;
/// An observation stands for the time since the one before, but for no more than this, in seconds.
const LONGEST_S: f64 = 1.0;

/// What was seen in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Span {
    /// Σ value · seconds.
    sum: f32,
    /// Σ seconds.
    seconds: f32,
}

/// The level of a figure of 0 … 1. Its size is fixed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Level {
    /// The youngest first; the first is of the time `youngest` · [`SPAN_US`] and on.
    spans: [Span; SPANS],
    youngest: u64,
    observed_us: Option<u64>,
}

impl Level {
    /// The figure was `value` since it was last observed.
    pub fn observe(&mut self, now_us: u64, value: f64) {
        let seconds =
            self.observed_us.map_or(SPAN_US as f64 / 1e6, |at| now_us.saturating_sub(at) as f64 / 1e6);
        let at = now_us / SPAN_US;
        // More spans than are kept push all of them out, however many.
        let passed = usize::try_from(at.saturating_sub(self.youngest)).unwrap_or(SPANS).min(SPANS);
        self.spans.rotate_right(passed);
        self.spans[..passed].fill(Span::default());
        (self.youngest, self.observed_us) = (at.max(self.youngest), Some(now_us));
        // Single precision is more than a measured share has.
        let seconds = seconds.min(LONGEST_S) as f32;
        self.spans[0].sum += value as f32 * seconds;
        self.spans[0].seconds += seconds;
    }

    /// The level as of the last observation; `None` before the first.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        self.observed_us?;
        let mut total = sum(&self.spans[..PAIR]);
        // Each step adds one span and looks one further, so that a pair across a change is not taken whole.
        for at in PAIR..SPANS {
            let pair = &self.spans[at..SPANS.min(at + PAIR)];
            // Nothing was observed then: what is older still says nothing about now.
            let (Some(level), Some(older)) = (mean(total), mean(sum(pair))) else { break };
            let has_fallen = older > OTHER_LEVEL * level;
            let has_risen = level > OTHER_LEVEL * older;
            if has_fallen || has_risen && at >= RISEN_FOR {
                break;
            }
            total = sum(&[total, self.spans[at]]);
        }
        mean(total)
    }
}

fn sum(spans: &[Span]) -> Span {
    let add =
        |total: Span, one: &Span| Span { sum: total.sum + one.sum, seconds: total.seconds + one.seconds };
    spans.iter().fold(Span::default(), add)
}

fn mean(span: Span) -> Option<f64> {
    (span.seconds > 0.0).then(|| f64::from(span.sum / span.seconds))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Observes these values every 500 ms, from second `from_s` on.
    fn observe(level: &mut Level, from_s: f64, values: impl IntoIterator<Item = f64>) {
        for (step, value) in values.into_iter().enumerate() {
            level.observe((from_s * 1e6) as u64 + step as u64 * 500_000, value);
        }
    }

    #[test]
    fn nothing_is_known_before_the_first_observation() {
        assert_eq!(Level::default().mean(), None);
        let mut level = Level::default();
        level.observe(700_000_000, 0.25);
        assert_eq!(level.mean(), Some(0.25));
    }

    #[test]
    fn a_fall_counts_after_one_second_and_a_rise_after_three() {
        let mut level = Level::default();
        observe(&mut level, 0.0, [1.0; 30]);
        observe(&mut level, 15.0, [0.3; 2]);
        assert!((level.mean().unwrap() - 0.3).abs() < 1e-6);
        observe(&mut level, 16.0, [0.3; 34]);
        observe(&mut level, 33.0, [1.0; 4]);
        assert!((level.mean().unwrap() - 0.766).abs() < 0.001, "two thirds of the last three seconds");
        observe(&mut level, 35.0, [1.0; 2]);
        assert!((level.mean().unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn jumps_around_a_level_even_out_over_ten_seconds() {
        let mut level = Level::default();
        // In turns of 2.5 s, of which the last 3 s alone would show one or the other.
        observe(&mut level, 0.0, (0..40).map(|step| if step / 5 % 2 == 0 { 0.23 } else { 0.40 }));
        let mean = level.mean().unwrap();
        assert!((mean - 0.315).abs() < 0.005, "{mean}");
    }

    #[test]
    fn what_was_before_a_silence_does_not_count() {
        let mut level = Level::default();
        observe(&mut level, 0.0, [0.8; 20]);
        level.observe(15_000_000, 0.5);
        assert!((level.mean().unwrap() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn the_weight_of_an_observation_is_its_time() {
        let mut level = Level::default();
        observe(&mut level, 0.0, [0.4; 4]);
        // A burst of results that ended within 10 ms says no more than one of them.
        for step in 0..1_000 {
            level.observe(1_500_000 + step * 10, 0.9);
        }
        assert!(level.mean().unwrap() < 0.42);
    }

    proptest! {
        #[test]
        fn a_level_is_between_what_was_observed_whatever_the_clock_does(
            observed in prop::collection::vec((0u64..20_000_000, 0.0..=1.0f64), 1..80),
        ) {
            let mut level = Level::default();
            for (now_us, value) in &observed {
                level.observe(*now_us, *value);
            }
            let values = || observed.iter().map(|one| one.1);
            let (least, most) = (values().fold(1.0, f64::min), values().fold(0.0, f64::max));
            let mean = level.mean();
            prop_assert!(mean.is_none_or(|mean| (least - 1e-5..=most + 1e-5).contains(&mean)), "{mean:?}");
        }
    }
}
