//! How much memory is left: asked before a model is taken in and before answers are admitted, because an allocation that
//! fails in here ends the enclave, and everybody's answers with it.

/// `MemAvailable` of proc(5), in bytes.
pub(crate) fn available() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    parse(&meminfo).unwrap_or(FALLBACK)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the kernel does not say: 1 GiB.
const FALLBACK: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figure_is_read() {
        assert_eq!(parse("MemTotal:  9 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(parse("nothing"), None);
    }
}
