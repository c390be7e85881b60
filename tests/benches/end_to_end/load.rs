//! What else this machine did meanwhile, so that a reader can judge the figures.

use std::fmt;

/// Counts from a moment on.
pub(crate) struct Load {
    processes: Vec<u32>,
    all: Ticks,
    ours: u64,
}

/// Of all CPUs together, in clock ticks.
struct Ticks {
    busy: u64,
    total: u64,
}

impl Load {
    /// `processes`, and this one, are ours.
    pub(crate) fn begin(processes: &[u32]) -> Self {
        let mut processes = processes.to_vec();
        processes.push(std::process::id());
        Self { all: Ticks::now(), ours: ours(&processes), processes }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ticks { busy, total } = Ticks::now();
        let (busy, total) = (busy - self.all.busy, (total - self.all.total).max(1));
        let ours = ours(&self.processes) - self.ours;
        let percent = |part: u64| 100.0 * part as f64 / total as f64;
        let (ours, others) = (percent(ours), percent(busy.saturating_sub(ours)));
        write!(out, "of this machine's CPU time the benchmark took {ours:.0} %, others {others:.0} %")
    }
}

impl Ticks {
    /// proc(5), /proc/stat: "user nice system idle iowait irq softirq steal ..."; what was stolen was others' too.
    fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        let total: u64 = fields.iter().sum();
        Self { busy: total - fields.iter().skip(3).take(2).sum::<u64>(), total }
    }
}

/// proc(5), /proc/pid/stat: fields 14 and 15 are utime and stime; the name in parentheses may hold blanks.
fn ours(processes: &[u32]) -> u64 {
    let of = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
        Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>())
    };
    processes.iter().filter_map(of).sum()
}
