//! Disks: what a guest writes is there, what it may not write stays, what is missing is an error.

use anyhow::Context;
use guest_tests::{Config, Image, MIB, Result, Vm, random_bytes};
use serde_json::json;

#[test]
fn what_was_synced_survives_the_death_of_the_monitor() -> Result<()> {
    let image = Image::ext4(64 * MIB)?;
    let config = || Ok::<_, anyhow::Error>(Config::vmlinux()?.disk(json!({"path": image.path()})));
    let mut first = Vm::from(config()?).boot()?;
    first.shell("mkdir /mnt; mount -t ext4 /dev/vda /mnt && mkdir /mnt/folder")?;
    first.shell("dd if=/dev/urandom of=/mnt/folder/file bs=1M count=4 conv=fsync 2> /dev/null")?;
    let sum = first.shell("sha256sum < /mnt/folder/file")?;
    first.shell("sync -f /mnt 2> /dev/null || sync")?;
    first.kill()?;

    let second = Vm::from(config()?).boot()?;
    second.shell("mkdir /mnt; mount -t ext4 /dev/vda /mnt")?;
    assert_eq!(second.shell("sha256sum < /mnt/folder/file")?, sum);
    second.shell("umount /mnt")?;
    second.power_off()
}

#[test]
fn four_queues_copy_a_disk_without_a_wrong_byte() -> Result<()> {
    const SIZE: u64 = 16 * MIB;
    let source = Image::with(&random_bytes(usize::try_from(SIZE)?)?)?;
    let target = Image::empty(SIZE)?;
    let config = Config::vmlinux()?
        .vcpus(4)
        .disk(json!({"path": target.path(), "num_queues": 4}))
        .disk(json!({"path": source.path(), "num_queues": 4, "readonly": true}));
    let vm = Vm::from(config).boot()?;
    assert_eq!(vm.shell("ls /sys/block/vda/mq | wc -l")?, "4");
    // Each CPU has its quarter and its queue; small requests, many of them in flight.
    vm.shell(
        "for n in 0 1 2 3; do taskset $((1 << n)) dd if=/dev/vdb of=/dev/vda bs=64k count=64 \
         skip=$((n * 64)) seek=$((n * 64)) conv=notrunc 2> /dev/null & done; wait; sync",
    )?;
    vm.shell("echo 3 > /proc/sys/vm/drop_caches; cmp /dev/vda /dev/vdb")?;
    let sums = vm.shell("sha256sum /dev/vda /dev/vdb | cut -d' ' -f1 | uniq | wc -l")?;
    assert_eq!(sums, "1");
    let written = vm.counter("_disk0", "write_bytes")?;
    assert!(written >= SIZE, "{written} bytes were written");
    vm.power_off()?;
    assert!(target.content()? == source.content()?, "the disks differ");
    Ok(())
}

#[test]
fn a_read_only_disk_stays_as_it_is() -> Result<()> {
    let content = random_bytes(usize::try_from(MIB)?)?;
    let image = Image::with(&content)?;
    let vm = Vm::from(Config::vmlinux()?.disk(json!({"path": image.path(), "readonly": true})));
    let vm = vm.boot()?;
    assert_eq!(vm.shell("cat /sys/block/vda/ro")?, "1");
    let (status, printed) = vm.console().status_of("dd if=/dev/zero of=/dev/vda count=8")?;
    assert_ne!(status, 0, "{printed}");
    vm.power_off()?;
    assert!(image.content()? == content);
    Ok(())
}

#[test]
fn a_disk_cut_off_under_the_guest_is_an_io_error_and_no_crash() -> Result<()> {
    let image = Image::with(&random_bytes(usize::try_from(4 * MIB)?)?)?;
    // Disk errors would be printed between what the shell prints.
    let config = Config::vmlinux()?.cmdline("loglevel=1").disk(json!({"path": image.path()}));
    let vm = Vm::from(config).boot()?;
    let read = |skip: u64| format!("dd if=/dev/vda of=/dev/null bs=64k count=1 skip={skip}");
    vm.shell(&read(32))?;
    image.resize(MIB)?;
    let (_, printed) = vm.console().status_of(&read(48))?;
    assert!(printed.contains("Input/output error"), "{printed}");
    vm.shell(&read(8)).context("what is left can be read")?;
    image.resize(0)?;
    let (_, printed) = vm.console().status_of(&read(10))?;
    assert!(printed.contains("Input/output error"), "{printed}");
    vm.power_off()
}

#[test]
fn direct_disks_work_and_tell_their_serial_number() -> Result<()> {
    let image = Image::ext4(16 * MIB)?;
    let disk = json!({"path": image.path(), "direct": true, "serial": "tessera-disk-0001"});
    let vm = Vm::from(Config::vmlinux()?.disk(disk)).boot()?;
    assert_eq!(vm.shell("cat /sys/block/vda/serial")?, "tessera-disk-0001");
    assert_eq!(vm.shell("cat /sys/block/vda/size")?, (16 * MIB / 512).to_string());
    vm.shell("mkdir /mnt; mount -t ext4 /dev/vda /mnt")?;
    vm.shell("dd if=/dev/urandom of=/mnt/file bs=4k count=100 2> /dev/null; sync")?;
    let sum = vm.shell("sha256sum < /mnt/file")?;
    vm.shell("umount /mnt; echo 3 > /proc/sys/vm/drop_caches; mount -t ext4 /dev/vda /mnt")?;
    assert_eq!(vm.shell("sha256sum < /mnt/file")?, sum);
    // Odd sizes and offsets are the guest's right: it reads what lies around them.
    assert_eq!(vm.shell("dd if=/dev/vda bs=1000 skip=3 count=1 2> /dev/null | wc -c")?, "1000");
    vm.power_off()
}

#[test]
fn discarded_blocks_are_given_back_to_the_host() -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let image = Image::with(&random_bytes(usize::try_from(8 * MIB)?)?)?;
    let blocks = || Ok::<_, anyhow::Error>(std::fs::metadata(image.path())?.blocks());
    let before = blocks()?;
    let vm = Vm::from(Config::vmlinux()?.disk(json!({"path": image.path()}))).boot()?;
    vm.shell("blkdiscard -o 0 -l 4194304 /dev/vda && sync")?;
    assert_eq!(vm.shell("dd if=/dev/vda bs=1M count=4 2> /dev/null | tr -d '\\000' | wc -c")?, "0");
    vm.power_off()?;
    assert!(blocks()? <= before / 2 + 64, "{before} blocks before, {} after", blocks()?);
    Ok(())
}
