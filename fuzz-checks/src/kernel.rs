//! Files of `/proc` and of cgroups.

use crate::within;
use node::cpu::text::{
    Ledger, Ready, ThreadTimes, parse_cpu_list, parse_cpu_max, parse_cpu_stat, parse_limit, parse_stat,
    value_of,
};

/// Every parser reads the text; and its lines are what a set of threads is seen to do, each line a thread's id
/// and its schedstat.
pub fn kernel(input: &[u8]) {
    // What is no UTF-8 is refused where files are read.
    let Ok(text) = std::str::from_utf8(input) else { return };
    within(input, 100, || {
        files(text);
        threads(text);
    });
}

fn files(text: &str) {
    if let Some(counters) = parse_cpu_stat(text) {
        assert_eq!(value_of(text, "usage_usec").map(|us| us * 1_000), Some(counters.usage_ns));
        assert_eq!(counters.periods, value_of(text, "nr_periods").unwrap_or(0));
    }
    if let Some(Some(cores)) = parse_cpu_max(text) {
        assert!(cores.is_finite() && cores > 0.0, "{cores}");
    }
    if let Some(count) = parse_cpu_list(text) {
        assert!(count > 0);
        assert_eq!(parse_cpu_list(&format!("{}\n", text.trim())), Some(count));
    }
    if let Some(Some(bytes)) = parse_limit(text) {
        assert_eq!(parse_limit(&bytes.to_string()), Some(Some(bytes)));
    }
    if let Some(stat) = parse_stat(text) {
        // The fields stand behind the last parenthesis, whatever the name holds.
        let (_, fields) = text.rsplit_once(')').unwrap();
        assert_eq!(parse_stat(&format!("{} (a) b) ){fields}", stat.pid)), Some(stat));
    }
}

fn threads(text: &str) {
    let mut ledger = Ledger::default();
    let mut rounds =
        text.split("\n\n").zip([None, Some(0), Some(1_000_000), Some(u64::MAX)].into_iter().cycle());
    rounds.by_ref().for_each(|(round, elapsed_ns)| {
        ledger.begin(elapsed_ns);
        for (at, line) in round.lines().enumerate() {
            let Some((tid, times)) = line.split_once(' ') else { continue };
            let (Ok(tid), Some(times)) = (tid.parse(), ThreadTimes::parse(times)) else { continue };
            let before = (ledger.run_ns(), ledger.wait_ns());
            ledger.observe(tid, times, [Ready::Unknown, Ready::Now, Ready::Throughout][at % 3]);
            assert!(ledger.run_ns() >= before.0 && ledger.wait_ns() >= before.1, "sums only grow");
        }
        ledger.forget_unseen();
    });
}
