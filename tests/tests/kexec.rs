//! Kernels that start while the memory of the one before them is plugged: one that kexec goes to,
//! and one that a panic starts, which shows that memory (kdump).

use anyhow::Context;
use guest_tests::{Artefact, Config, Hogs, Image, MIB, Result, Tessera, Vm, until, within};
use serde_json::{Value, json};

const SIZE: u64 = 64 * MIB;

/// What the function has of its partition.
const USED: u64 = 48 * MIB;

/// A guest with a function in a partition, and with another kernel in `/kernel` and `/initrd`.
struct Guest {
    vm: Tessera,
    _disks: [Image; 2],
}

impl Guest {
    fn boot(words: &str) -> Result<Self> {
        let (kernel, kernel_size) = Image::beginning_with(&Artefact::BzImage.path()?)?;
        let (initrd, initrd_size) = Image::beginning_with(&Artefact::ProgramsInitramfs.path()?)?;
        let config = Config::vmlinux()?
            .memory(512 * MIB)
            .with_programs()?
            .set("memory.partitions", json!({"size": 256 * MIB, "prepare": 128 * MIB}))
            .disk(json!({"path": kernel.path()}))
            .disk(json!({"path": initrd.path()}))
            .cmdline(words);
        let vm = Vm::from(config).boot()?;
        vm.shell(&format!("head -c {kernel_size} /dev/vda > /kernel"))?;
        vm.shell(&format!("head -c {initrd_size} /dev/vdb > /initrd"))?;
        let body = json!({"id": "fn-1", "size": SIZE, "cookie": 7, "release": "manual"});
        vm.api().put_json("vm.add-partition", &body)?.expect(200)?;
        let guest = Self { vm, _disks: [kernel, initrd] };
        guest.works()?;
        Ok(guest)
    }

    /// The partition, once it is in this state.
    fn partition(&self, state: &str) -> Result<Value> {
        until(&format!("the partition to be {state}"), within(60), || {
            let one = self.vm.partitions()?.pop().context("no partition")?;
            Ok((one["state"] == state && one["plugged"] == SIZE).then_some(one))
        })
    }

    /// A function starts in the partition, and has memory there.
    fn works(&self) -> Result<Hogs<'_>> {
        assert_eq!(self.partition("plugged")?["used"].as_u64().unwrap_or_default(), 0);
        self.vm.mount_cgroups()?;
        self.vm.shell("mkdir /cg/fn0; echo auto > /cg/fn0/memory.partition")?;
        let function = self.vm.hogs(1, USED / MIB, "cgroup=/cg/fn")?;
        self.partition("bound")?;
        Ok(function)
    }

    /// A function works and ends, its partition goes, and the device was asked for nothing odd.
    fn works_to_the_end(self) -> Result<()> {
        self.works()?.end()?;
        self.vm.shell("echo none > /cg/fn0/memory.partition")?;
        let body = json!({"id": "fn-1", "timeout_ms": 30_000});
        self.vm.api().put_json("vm.remove-partition", &body)?.expect(200)?;
        assert_eq!(self.vm.partitions()?, Vec::<Value>::new());
        let counters = self.vm.counters()?;
        assert_eq!(counters["__partitions"]["error"], 0, "{counters}");
        assert_eq!(self.vm.complaints()?, "");
        self.vm.power_off()
    }
}

#[test]
fn a_kernel_that_kexec_goes_to_has_the_partitions_anew() -> Result<()> {
    let guest = Guest::boot("")?;
    guest.vm.console().send("kexec /kernel /initrd \"$(cat /proc/cmdline)\"\n")?;
    guest.vm.console().wait_for_shell()?;
    guest.works_to_the_end()
}

#[test]
fn a_kernel_that_a_panic_starts_shows_a_partitions_content_and_touches_no_closed_memory()
-> Result<()> {
    let guest = Guest::boot("crashkernel=128M")?;
    let extents = guest.partition("bound")?["extents"].clone();
    let extents = extents.as_array().context("no extents")?;
    let text = |one: &Value| format!("{}+{}", one["addr"], one["size"]);
    let extents: Vec<_> = extents.iter().map(text).collect();
    guest.vm.shell("kexec -p /kernel /initrd 'console=ttyS0 nr_cpus=1'")?;
    guest.vm.shell("echo 1 > /proc/sys/kernel/panic_on_unrecovered_nmi")?;
    guest.vm.shell("echo 1 > /proc/sys/kernel/unknown_nmi_panic")?;
    guest.vm.api().put("vm.nmi")?.expect(204)?;
    guest.vm.console().wait_for_shell()?;
    let told = guest.vm.shell(&format!("vmcore {}", extents.join(" ")))?;
    println!("{told}");
    let all = format!(" {} pages, of a hog {}", SIZE / 4096, USED / 4096);
    assert!(told.contains(&all), "all of the partition and each page of the function: {told}");
    guest.vm.console().send("reboot -f\n")?;
    guest.vm.console().wait_for_shell()?;
    guest.works_to_the_end()
}
