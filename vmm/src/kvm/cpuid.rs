//! What a guest is told of its CPU: the host's leaves, less what would mislead, plus its topology.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E. Both vendors' topology leaves
//! are filled where the host has them, so one table serves both.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::machine::spec;

/// How many CPUs share what, innermost first. The product is the number of CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Threads of a core.
    pub threads_per_core: u16,
    /// Cores of a package, over all of its dies.
    pub cores_per_package: u16,
    /// Packages (sockets).
    pub packages: u16,
}

/// Dies are not shown to the guest: their cores count as the package's.
impl From<spec::Topology> for Topology {
    fn from(given: spec::Topology) -> Self {
        Self {
            threads_per_core: given.threads_per_core.into(),
            cores_per_package: u16::from(given.cores_per_die) * u16::from(given.dies_per_package),
            packages: given.packages.into(),
        }
    }
}

impl Topology {
    /// All of `count` CPUs as single-threaded cores of one package.
    pub fn flat(count: u16) -> Self {
        Self { threads_per_core: 1, cores_per_package: count, packages: 1 }
    }

    fn per_package(self) -> u32 {
        u32::from(self.threads_per_core) * u32::from(self.cores_per_package)
    }

    /// Bits of the APIC id that number a thread within its core.
    fn thread_bits(self) -> u32 {
        bits(self.threads_per_core.into())
    }

    /// Bits of the APIC id that number a thread within its package.
    fn package_bits(self) -> u32 {
        self.thread_bits() + bits(self.cores_per_package.into())
    }

    /// The APIC id of CPU `index`: each level starts at a bit of its own (SDM volume 3A, 10.9).
    pub fn apic_id(self, index: u32) -> u32 {
        let threads = u32::from(self.threads_per_core).max(1);
        let cores = u32::from(self.cores_per_package).max(1);
        let (thread, core) = (index % threads, index / threads % cores);
        let package = index / (threads * cores);
        package << self.package_bits() | core << self.thread_bits() | thread
    }
}

/// Bits that number `count` things.
fn bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

/// The leaves of CPU `index`, from what host and KVM support.
///
/// `physical_bits` bounds the width of guest-physical addresses.
pub fn for_vcpu(supported: &CpuId, topology: Topology, index: u32, physical_bits: u8) -> CpuId {
    let cpu = Cpu { topology, id: topology.apic_id(index) };
    let mut entries: Vec<_> = Vec::with_capacity(supported.as_slice().len() + 4);
    for &entry in supported.as_slice() {
        let mut entry = entry;
        match entry.function {
            0x1 => cpu.features(&mut entry),
            0x4 => cpu.intel_caches(&mut entry),
            0x6 => entry.ecx &= !(1 << 3), // the energy bias has no meaning in a guest
            0xb | 0x1f => {
                // KVM knows no topology and lists one subleaf; a guest needs all three.
                if entry.index == 0 {
                    entries.extend((0..3).map(|level| cpu.extended_topology(&entry, level)));
                }
                continue;
            }
            0x8000_0008 => cpu.amd_sizes(&mut entry, physical_bits),
            0x8000_001d => cpu.amd_caches(&mut entry),
            0x8000_001e => cpu.amd_topology(&mut entry),
            _ => {}
        }
        entries.push(entry);
    }
    CpuId::from_entries(&entries).expect("KVM lists fewer leaves than it takes")
}

/// The guest-physical address width that the host supports, at most `limit`.
pub fn physical_bits(supported: &CpuId, limit: u8) -> u8 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax as u8).min(limit)
}

struct Cpu {
    topology: Topology,
    id: u32,
}

impl Cpu {
    fn features(&self, entry: &mut kvm_cpuid_entry2) {
        const HYPERVISOR: u32 = 1 << 31;
        const TSC_DEADLINE: u32 = 1 << 24;
        const MULTITHREADED: u32 = 1 << 28;
        entry.ecx |= HYPERVISOR | TSC_DEADLINE;
        let siblings = 1 << self.topology.package_bits();
        entry.ebx = (entry.ebx & 0xffff) | (self.id << 24) | (siblings.min(0xff) << 16);
        entry.edx &= !MULTITHREADED;
        if self.topology.per_package() > 1 {
            entry.edx |= MULTITHREADED;
        }
    }

    fn intel_caches(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let level = entry.eax >> 5 & 7;
        let bits = self.topology.package_bits();
        let sharing = if level < 3 { self.topology.thread_bits() } else { bits };
        let cores = (1 << (bits - self.topology.thread_bits())) - 1;
        entry.eax = (entry.eax & 0x3fff) | ((1 << sharing) - 1) << 14 | cores << 26;
    }

    /// Level 0 numbers threads within a core, level 1 within a package, level 2 ends the list.
    fn extended_topology(&self, leaf: &kvm_cpuid_entry2, level: u32) -> kvm_cpuid_entry2 {
        let (kind, shift, count) = match level {
            0 => (1, self.topology.thread_bits(), u32::from(self.topology.threads_per_core)),
            1 => (2, self.topology.package_bits(), self.topology.per_package()),
            _ => (0, 0, 0),
        };
        kvm_cpuid_entry2 {
            function: leaf.function,
            index: level,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: level | kind << 8,
            edx: self.id,
            ..Default::default()
        }
    }

    fn amd_sizes(&self, entry: &mut kvm_cpuid_entry2, physical_bits: u8) {
        entry.eax = (entry.eax & !0xff) | u32::from(physical_bits);
        let threads = self.topology.per_package().clamp(1, 256) - 1;
        entry.ecx = (entry.ecx & !0xf0ff) | self.topology.package_bits() << 12 | threads;
    }

    fn amd_caches(&self, entry: &mut kvm_cpuid_entry2) {
        if entry.eax & 0x1f == 0 {
            return;
        }
        let level = entry.eax >> 5 & 7;
        let threads = self.topology.threads_per_core.into();
        let sharing = if level < 3 { threads } else { self.topology.per_package() };
        entry.eax = (entry.eax & !(0xfff << 14)) | ((sharing.max(1) - 1) & 0xfff) << 14;
    }

    fn amd_topology(&self, entry: &mut kvm_cpuid_entry2) {
        let threads = u32::from(self.topology.threads_per_core).max(1);
        let core =
            (self.id & ((1 << self.topology.package_bits()) - 1)) >> self.topology.thread_bits();
        entry.eax = self.id;
        entry.ebx = (core & 0xff) | ((threads - 1) & 0xff) << 8;
        entry.ecx = self.id >> self.topology.package_bits() & 0xff;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    fn filled(entries: &[kvm_cpuid_entry2], topology: Topology, index: u32) -> CpuId {
        for_vcpu(&CpuId::from_entries(entries).unwrap(), topology, index, 40)
    }

    #[test]
    fn apic_ids_leave_gaps_for_odd_core_counts() {
        let topology = Topology { threads_per_core: 2, cores_per_package: 3, packages: 2 };
        let ids: Vec<_> = (0..12).map(|index| topology.apic_id(index)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn one_cpu_is_not_multithreaded_and_sees_a_hypervisor() {
        let cpuid = filled(&[leaf(1, 0, 0)], Topology::flat(1), 0);
        let entry = cpuid.as_slice()[0];
        assert_eq!(entry.ecx >> 31, 1);
        assert_eq!(entry.edx >> 28 & 1, 0);
        assert_eq!(entry.ebx >> 16, 1);
    }

    /// KVM lists one subleaf of these, without a topology; guests then took every vCPU for a
    /// package of its own.
    #[test]
    fn extended_topology_names_both_levels_whatever_kvm_lists() {
        let topology = Topology { threads_per_core: 2, cores_per_package: 2, packages: 1 };
        let cpuid = filled(&[leaf(0xb, 0, 0), leaf(0x1f, 0, 0), leaf(0x1f, 1, 9)], topology, 3);
        let [smt, core, end, rest @ ..] = cpuid.as_slice() else { panic!("three levels") };
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (1, 2, 0x100, 3));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 4, 0x201, 3));
        assert_eq!((end.eax, end.ebx, end.ecx, end.edx), (0, 0, 2, 3));
        assert!(rest.iter().all(|entry| entry.function == 0x1f) && rest.len() == 3);
    }

    #[test]
    fn address_width_is_bounded_and_amd_counts_threads() {
        let supported = [leaf(0x8000_0008, 0, 0x3030)];
        let entry = filled(&supported, Topology::flat(4), 1).as_slice()[0];
        assert_eq!((entry.eax, entry.ecx), (0x3028, 0x2003));
        let supported = CpuId::from_entries(&supported).unwrap();
        assert_eq!(physical_bits(&supported, 46), 46);
        assert_eq!(physical_bits(&supported, 52), 48);
    }
}
