//! Reads the memory of another process of ours, as the owner of the machine could.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// Every readable region of the process, one after the other. `visit` gets each region's bytes, read at once, so that no window
/// of a secret is cut.
///
/// # Errors
/// When the process is gone, or the kernel does not let us look.
pub fn visit(pid: u32, mut visit: impl FnMut(&[u8])) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut total = 0;
    let mut buffer = Vec::new();
    for (start, end) in maps.lines().filter_map(readable_region) {
        let Ok(length) = usize::try_from(end - start) else { continue };
        if length > LARGEST_REGION {
            return Err(io::Error::other(format!("a region of {length} bytes is larger than this search reads")));
        }
        buffer.resize(length, 0);
        // Special regions ([vvar], guard pages) are listed as readable and are not.
        if memory.read_exact_at(&mut buffer, start).is_ok() {
            total += end - start;
            visit(&buffer);
        }
    }
    if total == 0 {
        return Err(io::Error::other("no region could be read"));
    }
    Ok(total)
}

/// `start-end perms ...` as in proc(5); only what is readable.
fn readable_region(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(' ');
    let (start, end) = fields.next()?.split_once('-')?;
    fields.next()?.starts_with('r').then_some(())?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// 1 GiB: a relay that has more in one region is a finding in itself.
const LARGEST_REGION: usize = 1 << 30;

#[cfg(test)]
mod tests {
    #[test]
    fn what_this_process_holds_is_found_in_its_own_memory() {
        let marker: Vec<u8> = std::process::id()
            .to_be_bytes()
            .iter()
            .cycle()
            .map(|b| b.wrapping_mul(31).wrapping_add(5))
            .take(64)
            .collect();
        let marker = std::hint::black_box(marker);
        let mut found = false;
        super::visit(std::process::id(), |region| found |= region.windows(marker.len()).any(|w| w == marker)).unwrap();
        assert!(found);
    }
}
