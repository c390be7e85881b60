//! The instance: driver, devices, and what the allocator has set aside.

use super::{Finding, Root};

/// What the enclave is to get, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// MiB.
    pub memory_mib: Option<u64>,
    /// CPUs.
    pub cpus: Option<u64>,
}

/// Everything about the instance.
#[must_use]
pub fn examine(root: &Root, wanted: Wanted) -> Vec<Finding> {
    let allocator = allocator(root, wanted);
    vec![
        kernel(root),
        device(root, "enclave device", "/dev/nitro_enclaves", "modprobe nitro_enclaves"),
        device(
            root,
            "vsock device",
            "/dev/vsock",
            "modprobe vmw_vsock_virtio_transport; the parent reaches the enclave by it",
        ),
        tool(root),
        allocator.finding,
        service(root),
        cpus(root, wanted.cpus.or(allocator.cpus)),
        pages(root, wanted.memory_mib.or(allocator.memory_mib)),
    ]
}

fn kernel(root: &Root) -> Finding {
    const CHECK: &str = "kernel";
    if !root.has("/sys/module") {
        return Finding::not_checked(CHECK, "/sys/module is not there: sysfs is not mounted here");
    }
    if root.has("/sys/module/nitro_enclaves") {
        return Finding::ok(CHECK, "the module nitro_enclaves is loaded");
    }
    Finding::wrong(
        CHECK,
        "the module nitro_enclaves is not loaded",
        "modprobe nitro_enclaves. If it is refused: the instance must have been launched with enclaves enabled \
         (--enclave-options Enabled=true), be a Nitro instance of at least 4 vCPUs, and run a kernel that has the module \
         (Amazon Linux 2023 does)",
    )
}

fn device(root: &Root, check: &'static str, path: &str, mend: &str) -> Finding {
    if root.has_device(path) {
        Finding::ok(check, format!("{path} is there"))
    } else if root.has(path) {
        Finding::wrong(check, format!("{path} is no character device"), format!("remove it, then: {mend}"))
    } else {
        Finding::wrong(check, format!("{path} is not there"), mend)
    }
}

fn tool(root: &Root) -> Finding {
    const CHECK: &str = "nitro-cli";
    let places = ["/usr/bin/nitro-cli", "/usr/local/bin/nitro-cli"];
    match places.into_iter().find(|place| root.has(place)) {
        Some(place) => Finding::ok(CHECK, place),
        None => Finding::wrong(CHECK, "nitro-cli is not installed", "dnf install aws-nitro-enclaves-cli"),
    }
}

struct Allocator {
    finding: Finding,
    memory_mib: Option<u64>,
    cpus: Option<u64>,
}

fn allocator(root: &Root, wanted: Wanted) -> Allocator {
    const CHECK: &str = "allocator file";
    let unusable = |finding| Allocator { finding, memory_mib: None, cpus: None };
    let mend =
        format!("write {ALLOCATOR} (`subrosa plan` prints it), then: systemctl restart nitro-enclaves-allocator");
    let text = match root.text(ALLOCATOR) {
        Ok(text) => text,
        Err(error) => return unusable(Finding::wrong(CHECK, format!("{ALLOCATOR} cannot be read: {error}"), mend)),
    };
    let Some(pools) = parse(&text) else {
        return unusable(Finding::wrong(
            CHECK,
            format!("{ALLOCATOR} has no memory_mib with cpu_count or cpu_pool"),
            mend,
        ));
    };
    // Which pool an enclave gets is nitro-cli's choice: what no single pool holds is surely refused.
    let best = |of: fn(&(u64, u64)) -> u64| pools.iter().map(of).max().unwrap_or(0);
    let (memory_mib, cpus) = (best(|pool| pool.0), best(|pool| pool.1));
    let finding = match wanted {
        Wanted { memory_mib: Some(memory), .. } if memory > memory_mib => Finding::wrong(
            CHECK,
            format!("{memory_mib} MiB are set aside, the enclave is to have {memory}"),
            format!("set memory_mib: {memory} in {ALLOCATOR}, then: systemctl restart nitro-enclaves-allocator"),
        ),
        Wanted { cpus: Some(wanted), .. } if wanted > cpus => Finding::wrong(
            CHECK,
            format!("{cpus} CPUs are set aside, the enclave is to have {wanted}"),
            format!("set cpu_count: {wanted} in {ALLOCATOR}, then: systemctl restart nitro-enclaves-allocator"),
        ),
        Wanted { .. } => Finding::ok(CHECK, format!("{memory_mib} MiB and {cpus} CPUs")),
    };
    Allocator { finding, memory_mib: Some(memory_mib), cpus: Some(cpus) }
}

/// The pools of the file: (MiB, CPUs). Its own reader starts at `---` and takes one `key: value` a line; the newer one
/// also a list of such.
fn parse(text: &str) -> Option<Vec<(u64, u64)>> {
    let body = text.lines().skip_while(|line| line.trim_end() != "---").skip(1);
    let mut pools: Vec<(Option<u64>, Option<u64>)> = vec![(None, None)];
    for line in body.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let line = match line.strip_prefix("- ") {
            Some(rest) => {
                pools.push((None, None));
                rest
            }
            None => line,
        };
        let (key, value) = line.split_once(':')?;
        let value = value.trim().trim_matches('"');
        let (memory, cpus) = pools.last_mut()?;
        match key.trim() {
            "memory_mib" => *memory = Some(value.parse().ok()?),
            "cpu_count" => *cpus = Some(value.parse().ok()?),
            "cpu_pool" => *cpus = Some(count(value)?),
            _ => return None,
        }
    }
    let whole = |(memory, cpus): &(Option<u64>, Option<u64>)| memory.zip(*cpus);
    let pools: Vec<(u64, u64)> = match pools.split_first()? {
        ((None, None), rest) => rest.iter().map(whole).collect::<Option<_>>()?,
        (one, []) => vec![whole(one)?],
        _ => return None,
    };
    (!pools.is_empty()).then_some(pools)
}

/// How many CPUs a list has: `2,6` or `2-3,6-7`.
fn count(list: &str) -> Option<u64> {
    let list = list.trim();
    if list.is_empty() {
        return Some(0);
    }
    list.split(',').try_fold(0_u64, |sum, part| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

fn service(root: &Root) -> Finding {
    const CHECK: &str = "allocator service";
    let enabled = "/etc/systemd/system/multi-user.target.wants/nitro-enclaves-allocator.service";
    if root.has(enabled) {
        return Finding::ok(CHECK, "nitro-enclaves-allocator is enabled");
    }
    if root.has("/usr/lib/systemd/system/nitro-enclaves-allocator.service") {
        return Finding::warning(
            CHECK,
            "nitro-enclaves-allocator is not enabled: after a reboot nothing is set aside",
            "systemctl enable --now nitro-enclaves-allocator",
        );
    }
    Finding::wrong(CHECK, "nitro-enclaves-allocator is not installed", "dnf install aws-nitro-enclaves-cli")
}

fn cpus(root: &Root, wanted: Option<u64>) -> Finding {
    const CHECK: &str = "cpu pool";
    let Ok(text) = root.text(CPU_POOL) else {
        return Finding::not_checked(CHECK, format!("{CPU_POOL} is not there: the module is not loaded"));
    };
    let mend = "systemctl restart nitro-enclaves-allocator, and read its log (journalctl -u nitro-enclaves-allocator)";
    let Some(found) = count(&text) else {
        return Finding::not_checked(CHECK, format!("{CPU_POOL} holds {:?}, which is no list of CPUs", text.trim()));
    };
    match wanted {
        _ if found == 0 => Finding::wrong(CHECK, "no CPU is set aside", mend),
        Some(wanted) if found < wanted => {
            Finding::wrong(CHECK, format!("{found} CPUs are set aside ({}), {wanted} are wanted", text.trim()), mend)
        }
        _ => Finding::ok(CHECK, format!("{found} CPUs: {}", text.trim())),
    }
}

fn pages(root: &Root, wanted: Option<u64>) -> Finding {
    const CHECK: &str = "huge pages";
    let nodes = root.names(NODES, "node").into_iter().filter(|name| is_node(name));
    let mut nodes: Vec<(String, Pages)> =
        nodes.map(|node| (node.clone(), Pages::of(root, &format!("{NODES}/{node}/hugepages")))).collect();
    if nodes.is_empty() {
        if !root.has(ALL_PAGES) {
            return Finding::not_checked(CHECK, format!("neither {NODES} nor {ALL_PAGES} is there"));
        }
        nodes.push(("the machine".to_owned(), Pages::of(root, ALL_PAGES)));
    }
    // An enclave lies within one NUMA node: what is free on others does not help it.
    let Some((node, Pages { all, free })) = nodes.into_iter().max_by_key(|(_, pages)| pages.all) else {
        return Finding::not_checked(CHECK, "no NUMA node is listed");
    };
    let mend = "systemctl restart nitro-enclaves-allocator; if memory is too fragmented for it, reboot: it is set aside \
                while memory is still whole";
    match wanted {
        _ if all == 0 => Finding::wrong(CHECK, "none are set aside", mend),
        Some(wanted) if all < wanted => {
            Finding::wrong(CHECK, format!("{all} MiB are set aside on {node}, {wanted} are wanted"), mend)
        }
        Some(wanted) if free < wanted => Finding::warning(
            CHECK,
            format!("of {all} MiB on {node} {free} are free, {wanted} are wanted"),
            "if an enclave runs, it has them, and all is well; else something else has: nitro-cli describe-enclaves",
        ),
        _ => Finding::ok(CHECK, format!("{all} MiB on {node}, {free} free")),
    }
}

/// In MiB.
struct Pages {
    all: u64,
    free: u64,
}

impl Pages {
    /// sysfs: a folder `hugepages-<size>kB` for each size, with the numbers of pages.
    fn of(root: &Root, folder: &str) -> Self {
        let mut pages = Self { all: 0, free: 0 };
        for name in root.names(folder, "hugepages-") {
            let size = name.strip_prefix("hugepages-").and_then(|size| size.strip_suffix("kB")?.parse::<u64>().ok());
            let kib = |which: &str| {
                let number = root.number(&format!("{folder}/{name}/{which}")).unwrap_or(0);
                number.saturating_mul(size.unwrap_or(0))
            };
            pages.all = pages.all.saturating_add(kib("nr_hugepages") / 1024);
            pages.free = pages.free.saturating_add(kib("free_hugepages") / 1024);
        }
        pages
    }
}

fn is_node(name: &str) -> bool {
    name.strip_prefix("node").is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Where the allocator service reads.
pub const ALLOCATOR: &str = "/etc/nitro_enclaves/allocator.yaml";
const CPU_POOL: &str = "/sys/module/nitro_enclaves/parameters/ne_cpus";
const NODES: &str = "/sys/devices/system/node";
const ALL_PAGES: &str = "/sys/kernel/mm/hugepages";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocator_files_of_both_forms_are_read() {
        assert_eq!(parse("# before\n---\n# c\nmemory_mib: 512\ncpu_count: 2\n"), Some(vec![(512, 2)]));
        assert_eq!(parse("---\nmemory_mib: 512\ncpu_pool: 2,3,6-9\n"), Some(vec![(512, 6)]));
        let list = "---\n- memory_mib: 512\n  cpu_count: 2\n- memory_mib: 1024\n  cpu_pool: 2-3\n";
        assert_eq!(parse(list), Some(vec![(512, 2), (1024, 2)]));
        for bad in ["", "memory_mib: 512\ncpu_count: 2\n", "---\nmemory_mib: 512\n", "---\nmemory_mib: x\ncpu_count: 2"]
        {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&super::super::super::sizing::allocator_yaml(6144, 4)), Some(vec![(6144, 4)]));
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(
            [count("\n"), count("1,3\n"), count("2-3,6-7"), count("3-2"), count("x")],
            [Some(0), Some(2), Some(4), None, None]
        );
    }
}
