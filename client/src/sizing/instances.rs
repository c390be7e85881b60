//! Which instance types have room for an enclave, and for their own work beside it.

/// An EC2 instance type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstanceType {
    /// `m5.xlarge`.
    pub name: &'static str,
    /// vCPUs.
    pub vcpus: usize,
    /// Memory in MiB, as EC2 states it.
    pub memory_mib: u64,
    /// 2 where a vCPU is a hyperthread, 1 where it is a core.
    pub threads_per_core: usize,
}

impl InstanceType {
    /// The types of the table, in its order: families by name, sizes from small to large.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.lines().filter(|line| !line.starts_with('#')).filter_map(Self::parse)
    }

    /// The smallest size of each family that has room for an enclave of so much memory and so many CPUs.
    #[must_use]
    pub fn fitting(memory_mib: u64, cpus: usize) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for candidate in Self::all().filter(|candidate| candidate.has_room(memory_mib, cpus)) {
            if !found.iter().any(|smaller| smaller.family() == candidate.family()) {
                found.push(candidate);
            }
        }
        found
    }

    /// `m5`.
    #[must_use]
    pub fn family(&self) -> &'static str {
        self.name.split('.').next().unwrap_or(self.name)
    }

    /// Whether the parent keeps what it needs when an enclave has so much memory and so many CPUs.
    #[must_use]
    pub fn has_room(&self, memory_mib: u64, cpus: usize) -> bool {
        // "Full CPU core(s) need(s) to be included in the CPU pool" (nitro-enclaves-allocator).
        let cpus = cpus.next_multiple_of(self.threads_per_core);
        let memory = memory_mib.checked_add(self.parent_memory_mib()).is_some_and(|sum| sum <= self.memory_mib);
        memory && cpus.checked_add(self.parent_vcpus()).is_some_and(|sum| sum <= self.vcpus)
    }

    /// MiB that the parent instance keeps: 2 GiB for the system, the parent program, `nitro-cli` and the pages of files, or
    /// a sixteenth of a large machine, whose kernel needs more and which never has all of what EC2 states.
    #[must_use]
    pub fn parent_memory_mib(&self) -> u64 {
        PARENT_MEMORY_MIB.max(self.memory_mib / 16)
    }

    /// vCPUs that the parent instance keeps: one core. "If multi-threading is enabled, you must leave at least 2 vCPUs for
    /// the parent instance. If multi-threading is not enabled, you must leave at least 1" (Nitro Enclaves user guide,
    /// "Working with multiple enclaves").
    #[must_use]
    pub fn parent_vcpus(&self) -> usize {
        self.threads_per_core
    }

    fn parse(line: &'static str) -> Option<Self> {
        let mut fields = line.split(',');
        let name = fields.next()?;
        let vcpus = fields.next()?.parse().ok()?;
        let memory_mib = fields.next()?.parse::<u64>().ok()?.checked_mul(1024)?;
        let threads_per_core = fields.next()?.parse().ok().filter(|threads| *threads > 0)?;
        fields.next().is_none().then_some(Self { name, vcpus, memory_mib, threads_per_core })
    }
}

const TABLE: &str = include_str!("instance-types.csv");
const PARENT_MEMORY_MIB: u64 = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_an_instance_type_that_can_have_enclaves() {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#')).count();
        let all: Vec<_> = InstanceType::all().collect();
        assert_eq!(all.len(), lines);
        for (at, instance) in all.iter().enumerate() {
            // Nitro Enclaves user guide, "Requirements": "Intel or AMD-based instances with at least 4 vCPUs".
            assert!(instance.vcpus >= 4 && instance.threads_per_core <= 2, "{instance:?}");
            assert!([2, 4, 8].contains(&(instance.memory_mib / 1024 / instance.vcpus as u64)), "{instance:?}");
            assert!(!all[..at].iter().any(|earlier| earlier.name == instance.name), "{} twice", instance.name);
        }
    }

    #[test]
    fn the_smallest_size_of_a_family_that_leaves_the_parent_its_share_is_chosen() {
        let names = |memory, cpus| InstanceType::fitting(memory, cpus).iter().map(|i| i.name).collect::<Vec<_>>();
        let small = names(6 * 1024, 2);
        assert!(small.contains(&"c5.xlarge") && small.contains(&"m7a.xlarge"), "{small:?}");
        // One page more, and 8 GiB no longer hold the parent.
        assert!(names(6 * 1024 + 2, 2).contains(&"c5.2xlarge"));
        // Three CPUs are two cores: of four hyperthreads one core is left to the parent only if the enclave has one.
        let three = names(1024, 3);
        assert!(three.contains(&"m5.2xlarge") && three.contains(&"m7a.xlarge"), "{three:?}");
        assert_eq!(names(1 << 30, 2), Vec::<&str>::new());
    }

    #[test]
    fn a_large_machine_keeps_more() {
        let large = InstanceType::all().find(|instance| instance.name == "r5.8xlarge").unwrap();
        assert_eq!(large.parent_memory_mib(), 16 * 1024);
        assert!(large.has_room(240 * 1024, 30) && !large.has_room(240 * 1024 + 1, 30) && !large.has_room(1, 31));
    }
}
