//! A guest with functions that end one by one.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use crate::cpu::CpuTime;
use crate::elastic::{Elastic, Guest, MIB, Monitor};
use crate::hogs::Hogs;
use crate::way::Way;

/// For one step in the lab. A stock guest whose first attempt fails waits 50 s.
const LIMIT: Duration = Duration::from_secs(240);

/// For the guest to give a partition back: the most that the API waits.
const REMOVAL: Duration = Duration::from_secs(60);

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
}

impl Functions {
    /// `count` functions of `size` bytes, with huge pages.
    pub fn new(count: u64, size: u64) -> Self {
        Self { count, size, small_pages: false, kept_pages: false }
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
}

/// What the end of one function cost.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// From the wish until the host has the memory.
    pub time: Duration,
    /// From the kill until then.
    pub from_kill: Duration,
    /// CPU time between wish and end.
    pub cpu: CpuTime,
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
        let guest = way.guest(base, &functions);
        let vm = Elastic::boot(way.monitor(), &guest, socket)?;
        let scene = Self { way, guest, vm, functions };
        scene.provide()?;
        Ok(scene)
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
        let Functions { count, size, small_pages, .. } = self.functions;
        let options = format!("cgroup=/sys/fs/cgroup/fn thp={}", u8::from(!small_pages));
        let slack = if self.way == Way::Node { NODE_SLACK } else { SLACK };
        Hogs::start(&self.vm, count, (size - slack) / MIB, &options)
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
            let killed = Instant::now();
            self.kill(&mut hogs, number)?;
            releases.push(self.release(number, killed)?);
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

    /// Takes the memory of function `number` back; those before it are gone. It was `killed` then.
    ///
    /// # Errors
    /// The guest does not give it.
    pub fn release(&self, number: u64, killed: Instant) -> Result<Release> {
        let left = self.functions.count - number - 1;
        let (migrated, host) = (self.migrated()?, self.host()?);
        let cpu = CpuTime::of_process(self.vm.pid())?;
        let asked = Instant::now();
        self.take_back(number)?;
        let (time, from_kill) = (asked.elapsed(), killed.elapsed());
        let cpu = CpuTime::of_process(self.vm.pid())?.since(&cpu);
        let after = self.host()?;
        let since = |part: fn((u64, u64)) -> u64| {
            host.zip(after).map(|(before, after)| part(after) - part(before))
        };
        Ok(Release {
            time,
            from_kill,
            cpu,
            migrated: self.migrated()? - migrated,
            host: since(|(_, micros)| micros).map(Duration::from_micros),
            guest: self.guest_work()?,
            requests: since(|(requests, _)| requests),
            left,
        })
    }

    /// Memory for all functions.
    fn provide(&self) -> Result<()> {
        let Functions { count, size, .. } = self.functions;
        self.vm.shell("echo +memory +cpuset > /sys/fs/cgroup/cgroup.subtree_control")?;
        match self.way {
            Way::Stock | Way::StockClearing | Way::Qemu => {
                self.vm.reach(&self.guest, count * size, LIMIT)?;
            }
            // What is no function keeps to the first node.
            Way::Node => drop(self.vm.shell(
                "mkdir /sys/fs/cgroup/system; echo 0 > /sys/fs/cgroup/system/cpuset.mems; \
                 echo $$ > /sys/fs/cgroup/system/cgroup.procs",
            )?),
            Way::Partition | Way::Balloon => {}
        }
        (0..count).try_for_each(|number| self.place(&format!("fn{number}"), size))
    }

    /// Makes the cgroup of a function, in a partition or node of its own where there are any.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn place(&self, name: &str, size: u64) -> Result<()> {
        self.vm.shell(&format!("mkdir /sys/fs/cgroup/{name}"))?;
        match self.way {
            Way::Partition => {
                self.vm.add_partition(name, size, LIMIT)?;
                // The only free one there is.
                self.vm.shell(&format!("echo auto > /sys/fs/cgroup/{name}/memory.partition"))?;
            }
            Way::Node => {
                self.vm.add_partition(name, size, LIMIT)?;
                let node = self.vm.partition_node(name)?;
                // Linux puts plugged memory online a moment later.
                self.vm.shell(&format!(
                    "cd /sys/fs/cgroup/{name}; echo {node} > cpuset.mems; \
                     until [ $(cat cpuset.mems.effective) = {node} ]; do usleep 5000; done; cd /"
                ))?;
            }
            Way::Stock | Way::StockClearing | Way::Qemu | Way::Balloon => {}
        }
        Ok(())
    }

    /// Takes the memory of function `number` back, and does nothing else in the guest.
    ///
    /// # Errors
    /// The guest does not give it.
    pub fn take_back(&self, number: u64) -> Result<()> {
        let left = self.functions.count - number - 1;
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
