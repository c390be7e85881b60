//! What this process takes, by proc(5): tests that ask run in a process of their own.
#![allow(dead_code, reason = "each of those who share it uses a part")]

/// Bytes: `VmRSS`, or `VmHWM`, the peak.
pub fn resident(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("proc(5) has it");
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// `clear_refs`: "5: reset the peak resident set size to the process's current value".
pub fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak can be reset");
}
