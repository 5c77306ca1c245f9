//! A guest with functions that end one by one.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_tests::MIB;
use serde_json::{Value, json};

use crate::cpu::CpuTime;
use crate::elastic::{Elastic, Guest, Monitor};
use crate::hogs::Hogs;
use crate::kvm_stats;
use crate::way::Way;

/// For one step in the lab. A stock guest whose first attempt fails waits 50 s.
const LIMIT: Duration = Duration::from_secs(240);

/// For the guest to give a partition back: the most that the API waits.
const REMOVAL: Duration = Duration::from_secs(60);

/// What the guest's platform noted of its functions.
const PLATFORM: &str = "/tmp/functions";

/// What a function leaves of its memory: what its exec needs before it touches the rest.
const SLACK: u64 = 8 * MIB;

/// The same in a node: Linux keeps some of each free.
const NODE_SLACK: u64 = 64 * MIB;

/// Functions of one size.
#[derive(Clone, Copy, Debug)]
pub struct Functions {
    /// How many there are at first.
    pub count: u64,
    /// Memory for each, in bytes.
    pub size: u64,
    /// Whether they do without huge pages.
    pub small_pages: bool,
    /// Whether their guest has huge pages that the host keeps for guests (hugetlb); Tessera only.
    pub kept_pages: bool,
    /// Whether a partition goes by itself when its function has ended.
    pub auto_release: bool,
}

impl Functions {
    /// `count` functions of `size` bytes, with huge pages.
    pub fn new(count: u64, size: u64) -> Self {
        Self { count, size, small_pages: false, kept_pages: false, auto_release: false }
    }

    /// Memory for all of them, in bytes.
    pub fn total(&self) -> u64 {
        self.count * self.size
    }
}

/// Functions in one guest. The cgroup of function N is `/sys/fs/cgroup/fnN`.
pub struct Scene {
    way: Way,
    guest: Guest,
    vm: Elastic,
    functions: Functions,
    /// How many functions the guest has memory for.
    held: Cell<u64>,
}

/// What the end of one function cost.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// From the wish, or end to end from the kill, until the host has the memory.
    pub time: Duration,
    /// CPU time meanwhile.
    pub cpu: CpuTime,
    /// How often the guest left for the host meanwhile, where KVM's counters can be read.
    pub exits: Option<u64>,
    /// Pages that the guest has moved.
    pub migrated: u64,
    /// The part of `time` that the host took to free; Tessera only.
    pub host: Option<Duration>,
    /// The guest's work without the request; partitions only.
    pub guest: Option<Duration>,
    /// Requests that gave memory back; Tessera only.
    pub requests: Option<u64>,
    /// Functions that were still there.
    pub left: u64,
}

impl Scene {
    /// Boots a guest and gives it memory for `functions`.
    ///
    /// # Errors
    /// It does not boot, or has no room for them.
    pub fn boot(way: Way, base: &Guest, functions: Functions, socket: &Path) -> Result<Self> {
        let scene = Self::empty(way, base, functions, socket)?;
        (0..functions.count).try_for_each(|number| scene.add(number).map(drop))?;
        Ok(scene)
    }

    /// Boots a guest that has room for `functions`, and none of them yet.
    ///
    /// # Errors
    /// It does not boot.
    pub fn empty(way: Way, base: &Guest, functions: Functions, socket: &Path) -> Result<Self> {
        let guest = way.guest(base, &functions);
        let vm = Elastic::boot(way.monitor(), &guest, socket)?;
        vm.shell("echo +memory +cpuset > /sys/fs/cgroup/cgroup.subtree_control")?;
        if way == Way::Node {
            // What is no function keeps to the first node.
            vm.shell(
                "mkdir /sys/fs/cgroup/system; echo 0 > /sys/fs/cgroup/system/cpuset.mems; \
                 echo $$ > /sys/fs/cgroup/system/cgroup.procs",
            )?;
        }
        Ok(Self { way, guest, vm, functions, held: Cell::new(0) })
    }

    /// The guest.
    pub fn vm(&self) -> &Elastic {
        &self.vm
    }

    /// Starts the functions and waits until they have all their memory.
    ///
    /// # Errors
    /// The guest has no room for them.
    pub fn start(&self) -> Result<Hogs<'_>> {
        let options = format!("cgroup=/sys/fs/cgroup/fn {}", self.pages());
        Hogs::start(&self.vm, self.functions.count, self.memory(), &options)
    }

    /// What a function touches, in MiB.
    fn memory(&self) -> u64 {
        let slack = if self.way == Way::Node { NODE_SLACK } else { SLACK };
        (self.functions.size - slack) / MIB
    }

    /// The hog's option for the size of its pages.
    fn pages(&self) -> &'static str {
        if self.functions.small_pages { "thp=0" } else { "thp=1" }
    }

    /// Kills the functions one by one and takes the memory of each back. With `burners`, the
    /// guest's vCPUs have so many other processes to run meanwhile.
    ///
    /// # Errors
    /// The guest hangs, or memory of one that is left has changed.
    pub fn play(&self, burners: u32) -> Result<Vec<Release>> {
        let mut hogs = self.start()?;
        for _ in 0..burners {
            self.vm.shell("(while :; do :; done) & true")?;
        }
        let mut releases = Vec::new();
        for number in 0..self.functions.count {
            self.kill(&mut hogs, number)?;
            releases.push(self.release(number)?);
            if number == 0 {
                hogs.check()?;
            }
        }
        Ok(releases)
    }

    /// Kills all processes of function `number` and waits until its memory is free in the guest.
    ///
    /// # Errors
    /// The guest hangs.
    pub fn kill(&self, hogs: &mut Hogs<'_>, number: u64) -> Result<()> {
        let cgroup = format!("/sys/fs/cgroup/fn{number}");
        self.vm.shell(&format!(
            "echo 1 > {cgroup}/cgroup.kill; \
             while grep -q 'populated 1' {cgroup}/cgroup.events; do usleep 2000; done"
        ))?;
        hogs.forget(number as usize);
        if self.way == Way::Partition {
            self.vm.shell(&format!("echo none > {cgroup}/memory.partition"))?;
        }
        Ok(())
    }

    /// Functions that the guest's own platform, a shell, starts; they are killed one by one. From each
    /// kill on until the host has the memory: with `auto_release` the shell unbinds the partition of
    /// one that is gone, and the host asks for nothing. Elsewhere the shell says that it is gone, and
    /// the host asks for its memory.
    ///
    /// # Errors
    /// The guest hangs, or does not give the memory.
    pub fn play_end_to_end(&self) -> Result<Vec<Release>> {
        let gone = if self.goes_by_itself() {
            "echo none > /sys/fs/cgroup/fn$number/memory.partition"
        } else {
            "echo gone $number > /dev/console"
        };
        let (count, mib, pages) = (self.functions.count, self.memory(), self.pages());
        self.vm.shell(&format!(
            "(hog {count} {mib} {pages} cgroup=/sys/fs/cgroup/fn 2>&1 | \
             while read who number what; do echo $who $number $what >> {PLATFORM}; \
             [ \"$what\" = gone ] && {gone}; done) > /dev/null 2>&1 & true"
        ))?;
        self.vm.shell(&format!(
            "until grep -q 'hogs ready' {PLATFORM}; do grep FAIL {PLATFORM} && break; \
             usleep 50000; done; grep -q 'hogs ready' {PLATFORM}"
        ))?;
        // Short to type: the serial port takes its time.
        self.vm.shell("k() { echo 1 > /sys/fs/cgroup/fn$1/cgroup.kill; }")?;
        (0..count).map(|number| self.measured(|| self.end(number))).collect()
    }

    /// Kills function `number` of the platform's and waits until the host has its memory.
    fn end(&self, number: u64) -> Result<()> {
        let by_itself = self.goes_by_itself();
        if by_itself {
            self.vm.events()?.forget();
        }
        // Nobody waits for the shell's answer: it has nothing to do with what is measured.
        self.vm.console().send(&format!("k {number}\n"))?;
        if !by_itself {
            self.vm.console().wait_for_within(&format!("gone {number}"), LIMIT)?;
            return self.take_back(number);
        }
        let id = format!("fn{number}");
        self.vm.events()?.wait(LIMIT, |event: &Value| {
            event["event"] == "released" && event["properties"]["id"] == id.as_str()
        })?;
        self.held.set(self.held.get() - 1);
        Ok(())
    }

    /// Whether a function's memory goes to the host when its partition is unbound.
    fn goes_by_itself(&self) -> bool {
        self.functions.auto_release && self.way == Way::Partition
    }

    /// Takes the memory of function `number` back.
    ///
    /// # Errors
    /// The guest does not give it.
    pub fn release(&self, number: u64) -> Result<Release> {
        self.measured(|| self.take_back(number))
    }

    /// What it costs that `end` has the memory of one function go.
    fn measured(&self, end: impl FnOnce() -> Result<()>) -> Result<Release> {
        let (migrated, host) = (self.migrated()?, self.host()?);
        let cpu = CpuTime::of_process(self.vm.pid())?;
        let exits = kvm_stats::exits(self.vm.pid());
        let asked = Instant::now();
        end()?;
        let time = asked.elapsed();
        let exits = exits.zip(kvm_stats::exits(self.vm.pid())).map(|(before, now)| now - before);
        let cpu = CpuTime::of_process(self.vm.pid())?.since(&cpu);
        let after = self.host()?;
        let since = |part: fn((u64, u64)) -> u64| {
            host.zip(after).map(|(before, after)| part(after) - part(before))
        };
        Ok(Release {
            time,
            cpu,
            exits,
            migrated: self.migrated()? - migrated,
            host: since(|(_, micros)| micros).map(Duration::from_micros),
            guest: self.guest_work()?,
            requests: since(|(requests, _)| requests),
            left: self.held.get(),
        })
    }

    /// Gives the guest memory for function `number`, which has none; the time that took.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn add(&self, number: u64) -> Result<Duration> {
        let (name, size) = (format!("fn{number}"), self.functions.size);
        self.held.set(self.held.get() + 1);
        match self.way {
            Way::Stock | Way::StockClearing | Way::Qemu => {
                self.vm.shell(&format!("mkdir -p /sys/fs/cgroup/{name}"))?;
                self.vm.reach(&self.guest, self.held.get() * size, LIMIT)
            }
            Way::Partition | Way::Node | Way::Balloon => self.place(&name, size),
        }
    }

    /// Makes the cgroup `name`, in a partition or node of its own where there are any; the time
    /// until the guest had its memory.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn place(&self, name: &str, size: u64) -> Result<Duration> {
        self.vm.shell(&format!("mkdir -p /sys/fs/cgroup/{name}"))?;
        let release = if self.functions.auto_release { "auto" } else { "manual" };
        match self.way {
            Way::Partition => {
                let took = self.vm.add_partition(name, size, release, LIMIT)?;
                // The only free one there is.
                self.vm.shell(&format!("echo auto > /sys/fs/cgroup/{name}/memory.partition"))?;
                Ok(took)
            }
            Way::Node => {
                let took = self.vm.add_partition(name, size, release, LIMIT)?;
                let node = self.vm.partition_node(name)?;
                // Linux puts plugged memory online a moment later.
                self.vm.shell(&format!(
                    "cd /sys/fs/cgroup/{name}; echo {node} > cpuset.mems; \
                     until [ $(cat cpuset.mems.effective) = {node} ]; do usleep 5000; done; cd /"
                ))?;
                Ok(took)
            }
            Way::Stock | Way::StockClearing | Way::Qemu | Way::Balloon => Ok(Duration::ZERO),
        }
    }

    /// Takes the memory of function `number` back, and does nothing else in the guest.
    ///
    /// # Errors
    /// The guest does not give it.
    pub fn take_back(&self, number: u64) -> Result<()> {
        let left = self.held.get() - 1;
        self.held.set(left);
        match self.way {
            Way::Partition | Way::Node => {
                let id = format!("fn{number}");
                let body = json!({ "id": id, "timeout_ms": REMOVAL.as_millis() as u64 });
                self.vm.put("vm.remove-partition", &body)?.expect(200)?;
            }
            Way::Balloon => {
                let gone = (self.functions.count - left) * self.functions.size;
                self.vm.balloon(self.guest.boot - gone, LIMIT)?;
            }
            Way::Stock | Way::StockClearing | Way::Qemu => {
                self.vm.reach(&self.guest, left * self.functions.size, LIMIT)?;
            }
        }
        Ok(())
    }

    /// What the guest took for its last release, without the request.
    fn guest_work(&self) -> Result<Option<Duration>> {
        match self.way {
            Way::Partition => self.vm.partition_timing("last_release").map(|t| Some(t.guest())),
            _ => Ok(None),
        }
    }

    /// Pages that the guest has moved so far.
    fn migrated(&self) -> Result<u64> {
        let line = self.vm.shell("grep pgmigrate_success /proc/vmstat")?;
        let count = line.split_whitespace().nth(1).context("no pgmigrate_success")?;
        Ok(count.parse()?)
    }

    /// Requests that gave memory back so far, and the microseconds that the host took for them.
    fn host(&self) -> Result<Option<(u64, u64)>> {
        if self.way.monitor() == Monitor::Qemu {
            return Ok(None);
        }
        let counters = self.vm.get("vm.counters")?.expect(200)?.body;
        let sum = |name: &str| -> u64 {
            let devices = counters.as_object().into_iter().flat_map(|devices| devices.values());
            devices.filter_map(|device| device[name].as_u64()).sum()
        };
        let requests = sum("unplug") + sum("part_release");
        Ok(Some((requests, sum("release_us_total"))))
    }
}
