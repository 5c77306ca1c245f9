//! Functions come and go in partitions that come, grow, shrink and go: `tests/guest/stress.c` in
//! the guest, and the host's part here.
//!
//! It runs for some seconds, or for minutes with `cargo xtask test --long`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use guest_tests::{Cgroup, Config, MIB, Result, Tessera, Vm, is_long, until, within};
use serde_json::{Value, json};

const BOOT: u64 = 1024 * MIB;
const ROOM: u64 = 768 * MIB;

/// What the other memory device may have, below the partitions.
const BESIDE: u64 = 256 * MIB;

/// What the guest's own kernel may have more after it: slab, stacks, compressed swap.
const SLACK: u64 = 12 * MIB;

/// What the host may seem to have less: two blocks of hundreds of partitions. Each of its CPUs counts
/// in batches of 64 pages.
const HOST_SLACK: u64 = 4 * MIB;

/// The most partitions at a time, and what they may have: 2 MiB up to this, in steps of 2 MiB.
const MOST: usize = 8;
const LARGEST: u64 = 48 * MIB;

/// Gives up the bookkeeping of what is not plugged, which may be on its way in or out.
const TRIM: &str = "echo 1 | tee /sys/bus/virtio/devices/*/partitions/trim";

/// Seconds of it.
const SHORT: u64 = 12;
const LONG: u64 = 300;

fn seconds() -> u64 {
    if is_long() { LONG } else { SHORT }
}

/// A guest whose partitions alone change what the group has of the host.
fn vm(cgroup: &Cgroup) -> Result<Tessera> {
    let config = Config::vmlinux()?
        .filled_memory(BOOT)
        .vcpus(2)
        .with_programs()?
        .set("memory.partitions", json!({"size": ROOM, "prepare": 256 * MIB}))
        .set("memory.hotplug_method", "VirtioMem")
        // What the OOM killer says is in dmesg, and not among the answers of the shell; it says much.
        .cmdline("loglevel=2 log_buf_len=16M memhp_default_state=online_movable");
    let mut zones = config.json()["memory"]["zones"].clone();
    zones[0]["hotplug_size"] = BESIDE.into();
    let vm = Vm::from(config.set("memory.zones", zones)).in_cgroup(cgroup).boot()?;
    vm.mount_cgroups()?;
    vm.shell("echo 256M > /sys/block/zram0/disksize; mkswap /dev/zram0; swapon /dev/zram0")?;
    // Else each CPU keeps up to 64 MiB of free pages for itself, which count as used.
    vm.shell("echo 1000 > /proc/sys/vm/percpu_pagelist_high_fraction")?;
    Ok(vm)
}

/// The host's side: what it asked for, and how often.
struct Host<'a> {
    vm: &'a Tessera,
    state: u64,
    next: u64,
    added: u64,
    resized: u64,
    removed: u64,
    /// Of the memory beside the partitions.
    beside: u64,
}

impl<'a> Host<'a> {
    fn of(vm: &'a Tessera) -> Self {
        Self {
            vm,
            state: 0x9e37_79b9_7f4a_7c15,
            next: 0,
            added: 0,
            resized: 0,
            removed: 0,
            beside: 0,
        }
    }

    /// A number below `limit`.
    fn chance(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % limit
    }

    /// Makes a request that may be refused, for a state it does not fit or a partition that has
    /// gone; says whether it was not.
    fn ask(&self, call: &str, body: &Value, good: u16) -> Result<bool> {
        let reply = self.vm.api().put_json(call, body)?;
        ensure!([200, 204, 404, 409].contains(&reply.status), "{call} {body}: {reply:?}");
        Ok(reply.status == good)
    }

    fn size(&mut self) -> u64 {
        (1 + self.chance(LARGEST / (2 * MIB))) * 2 * MIB
    }

    fn add(&mut self) -> Result<()> {
        let id = format!("fn-{}", self.next);
        let release = if self.chance(4) == 0 { "manual" } else { "auto" };
        let body = json!({"id": id, "size": self.size(), "cookie": self.next, "release": release});
        self.next += 1;
        self.added += u64::from(self.ask("vm.add-partition", &body, 200)?);
        Ok(())
    }

    /// One thing that the host may do at any time.
    fn act(&mut self) -> Result<()> {
        if self.chance(10) == 0 {
            let more = self.chance(5) * BESIDE / 4;
            return self.resize_beside(more);
        }
        let present = self.vm.partitions()?;
        if present.len() < MOST {
            return self.add();
        }
        let choice = self.chance(present.len() as u64) as usize;
        let id = present[choice]["id"].clone();
        if self.chance(3) > 0 {
            let body = json!({"id": id, "size": self.size()});
            self.resized += u64::from(self.ask("vm.resize-partition", &body, 200)?);
        } else {
            let evacuate = self.chance(2) == 0;
            let timeout = self.chance(50);
            let body = json!({"id": id, "timeout_ms": timeout, "evacuate": evacuate});
            self.removed += u64::from(self.ask("vm.remove-partition", &body, 200)?);
        }
        Ok(())
    }

    /// Wants so much beside the partitions, which the guest plugs and unplugs when it can.
    fn resize_beside(&mut self, more: u64) -> Result<()> {
        let body = json!({"id": "first", "desired_ram": 2 * MIB + more});
        self.beside += u64::from(self.ask("vm.resize-zone", &body, 204)?);
        Ok(())
    }

    /// Removes all that is left: nobody uses it any more.
    fn remove_all(&mut self) -> Result<()> {
        for one in self.vm.partitions()? {
            let body = json!({"id": one["id"], "timeout_ms": 30_000});
            ensure!(self.ask("vm.remove-partition", &body, 200)? || self.is_gone(&one)?, "{one}");
        }
        Ok(())
    }

    fn is_gone(&self, one: &Value) -> Result<bool> {
        Ok(self.vm.partitions()?.iter().all(|other| other["id"] != one["id"]))
    }
}

/// Has the guest make what describes the partitions' memory to its kernel, which stays.
fn describe_all(vm: &Tessera) -> Result<()> {
    let body = json!({"id": "all", "size": ROOM});
    vm.api().put_json("vm.add-partition", &body)?.expect(200)?;
    // It is plugged before it is described, and can be used after that.
    until("all of the room to be described", within(60), || {
        let all = vm.partitions()?.remove(0);
        Ok((all["plugged"] == ROOM && !all["used"].is_null()).then_some(()))
    })?;
    let body = json!({"id": "all", "timeout_ms": 30_000});
    vm.api().put_json("vm.remove-partition", &body)?.expect(200).map(drop)
}

#[test]
fn functions_come_and_go_in_partitions_and_nothing_is_lost_or_left() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let vm = vm(&cgroup)?;
    describe_all(&vm)?;
    let (before, host_before) = (vm.meminfo("MemAvailable")?, cgroup.memory()?);
    let mut host = Host::of(&vm);
    let seconds = seconds();
    vm.shell(&format!("(while sleep 0.3; do {TRIM}; done > /dev/null 2>&1 &)"))?;
    vm.shell(&format!("(stress {seconds} > /out 2>&1 &)"))?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        host.act()?;
        // As many times slower as the guest is: else no function there would get to use its memory.
        let pause = Duration::from_millis(host.chance(60));
        thread::sleep(pause.mul_f64(within(1).as_secs_f64()));
    }
    let told = until("the agents to end", within(60), || {
        let told = vm.shell("cat /out")?;
        Ok(told.contains("stress lives").then_some(told))
    })?;
    println!("{told}");
    let Host { added, resized, removed, beside, .. } = host;
    println!("host: added {added} resized {resized} removed {removed} beside {beside}");
    assert!(!told.contains("FAIL") && told.contains("failures 0"), "{told}");
    let count = |key: &str| -> Result<u64> {
        let mut words = told.split_whitespace().skip_while(|&word| word != key).skip(1);
        Ok(words.next().with_context(|| format!("no count of {key}"))?.parse()?)
    };
    let lives = count("lives")?;
    // Some never have their partition: it is removed at once.
    assert!(count("inside")? * 2 > lives, "functions were not in their partitions: {told}");
    // A guest that is so many times slower does so many times less.
    let least = seconds as f64 / within(1).as_secs_f64();
    assert!(lives as f64 >= least && added as f64 >= least, "too little was done: {told}");
    let complaints = vm.complaints()?;
    assert!(complaints.is_empty(), "{complaints}");
    nothing_is_left(&mut host, before)?;
    let host_now = cgroup.memory()?;
    println!("of the host's: {host_before} bytes before, {host_now} after");
    assert!(host_now < host_before + HOST_SLACK, "{host_before} bytes, then {host_now}");
    vm.power_off()
}

/// Each partition goes, the guest has what it had, and so has the host.
fn nothing_is_left(host: &mut Host<'_>, available: u64) -> Result<()> {
    host.remove_all()?;
    host.resize_beside(0)?;
    until("all partitions to be gone", within(30), || {
        Ok(host.vm.partitions()?.is_empty().then_some(()))
    })?;
    let vm = host.vm;
    assert_eq!(vm.meminfo("PartitionTotal")?, 0);
    vm.reaches(BOOT)?;
    assert_eq!(vm.counter("__partitions", "error")?, 0, "requests that no correct driver sends");
    // Those that were withdrawn before the guest had them need none.
    let requests = vm.counter("__partitions", "part_release")?;
    println!("{requests} requests for {} partitions", host.added);
    let now = until("the guest to have its memory back", within(20), || {
        let now = vm.meminfo("MemAvailable")?;
        Ok((now + SLACK > available).then_some(now))
    })?;
    println!("available: {available} bytes before, {now} after");
    let log = vm.log();
    assert!(!log.contains("panicked"), "{log}");
    Ok(())
}
