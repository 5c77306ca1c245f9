//! Our own kernel to a shell: both image formats, few and several vCPUs, little and much memory,
//! every kind of memory.

use guest_tests::{Config, GIB, HugePages, MIB, Result, Tessera, Vm};

/// Boots, compares vCPUs and memory with what was asked for, and powers off.
fn reaches_a_shell(config: Config, vcpus: u32, memory: u64) -> Result<()> {
    let vm = Vm::from(config.vcpus(vcpus).memory(memory)).boot()?;
    assert_eq!(vm.shell("nproc")?, vcpus.to_string());
    let found = vm.meminfo("MemTotal")?;
    assert!(found < memory && found > memory / 10 * 7, "{found} bytes of {memory}");
    vm.power_off()
}

/// Memory of the process that is as large as the guest's: resident bytes of mappings over 64 MiB.
fn guest_pages(vm: &Tessera) -> Result<u64> {
    let mappings = vm.process().mappings()?;
    Ok(mappings.iter().filter(|mapping| mapping.size >= 64 * MIB).map(|m| m.resident).sum())
}

#[test]
fn vmlinux_with_1_vcpu_and_128_mib() -> Result<()> {
    reaches_a_shell(Config::vmlinux()?, 1, 128 * MIB)
}

#[test]
fn vmlinux_with_4_vcpus_and_6_gib() -> Result<()> {
    reaches_a_shell(Config::vmlinux()?, 4, 6 * GIB)
}

#[test]
fn bzimage_with_1_vcpu_and_128_mib() -> Result<()> {
    reaches_a_shell(Config::bzimage()?, 1, 128 * MIB)
}

#[test]
fn bzimage_with_4_vcpus_and_6_gib() -> Result<()> {
    reaches_a_shell(Config::bzimage()?, 4, 6 * GIB)
}

#[test]
fn ram_lies_around_the_hole_below_4_gib_and_all_of_it_works() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?.memory(5 * GIB)).boot()?;
    let map = vm.shell("grep 'System RAM' /proc/iomem")?;
    let ends: Vec<u64> = map
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split([' ', '-']).nth(1)?, 16).ok())
        .collect();
    assert!(ends.iter().all(|end| *end < 3 * GIB + GIB / 2 || *end > 4 * GIB), "{map}");
    assert_eq!(ends.last(), Some(&(6 * GIB - 1)), "5 GiB are 3 below the hole and 2 above: {map}");
    // A file in memory, larger than what lies below the hole has to give.
    vm.shell("mount -t tmpfs -o size=4g tmpfs /tmp && fallocate -l 3500m /tmp/much")?;
    assert_eq!(vm.shell("dd if=/tmp/much bs=1M skip=3499 2> /dev/null | wc -c")?, "1048576");
    vm.power_off()
}

#[test]
fn vcpus_are_arranged_as_asked() -> Result<()> {
    let topology = serde_json::json!({
        "threads_per_core": 2, "cores_per_die": 2, "dies_per_package": 1, "packages": 1,
    });
    let config = Config::vmlinux()?.vcpus(4).set("cpus.topology", topology);
    let vm = Vm::from(config).boot()?;
    let names = "thread_siblings_list core_siblings_list";
    let command = format!("cd /sys/devices/system/cpu/cpu3/topology; cat {names}");
    assert_eq!(vm.shell(&command)?, "2-3\n0-3");
    assert_eq!(vm.process().threads()?.iter().filter(|name| name.starts_with("vcpu")).count(), 4);
    vm.power_off()
}

#[test]
fn shared_memory_is_a_file_others_can_map() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?.set("memory.shared", true)).boot()?;
    assert!(vm.meminfo("MemTotal")? > 64 * MIB);
    let names: Vec<_> = vm.process().mappings()?;
    let shared = names.iter().find(|mapping| mapping.size == 128 * MIB);
    assert!(shared.is_some_and(|mapping| mapping.name.starts_with("/memfd:")), "{names:?}");
    vm.power_off()
}

#[test]
fn huge_pages_come_from_the_pool_and_go_back() -> Result<()> {
    let pages = HugePages::reserve(128 * MIB)?;
    let free = pages.free()?;
    let vm = Vm::from(Config::vmlinux()?.set("memory.hugepages", true)).boot()?;
    assert!(vm.meminfo("MemTotal")? > 64 * MIB);
    assert!(pages.free()? < free, "no huge page was taken");
    vm.power_off()?;
    assert_eq!(pages.free()?, free);
    Ok(())
}

#[test]
fn prefaulted_memory_is_there_at_once_and_other_memory_is_not() -> Result<()> {
    let vm = Vm::from(Config::vmlinux()?.set("memory.prefault", true)).boot()?;
    vm.shell("true")?;
    assert!(guest_pages(&vm)? >= 128 * MIB);
    vm.power_off()?;
    let vm = Vm::from(Config::vmlinux()?.memory(512 * MIB)).boot()?;
    vm.shell("true")?;
    assert!(guest_pages(&vm)? < 256 * MIB);
    vm.power_off()
}
