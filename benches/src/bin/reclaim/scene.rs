//! A guest with functions that end one by one.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use benches::cpu::CpuTime;
use benches::elastic::{Elastic, Guest, MIB};
use benches::hogs::Hogs;
use serde_json::json;

use crate::way::Way;

/// For one step in the lab. A stock guest whose first attempt fails waits 50 s.
const LIMIT: Duration = Duration::from_secs(240);

/// What a function leaves of its memory: what its exec needs before it touches the rest.
const SLACK: u64 = 8 * MIB;

/// Functions of one size in one guest.
pub(crate) struct Scene {
    way: Way,
    guest: Guest,
    vm: Elastic,
    count: u64,
    size: u64,
}

/// What the end of one function cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Release {
    /// From the wish until the host has the memory.
    pub(crate) time: Duration,
    /// From the kill until then.
    pub(crate) from_kill: Duration,
    /// CPU time between wish and end.
    pub(crate) cpu: CpuTime,
    /// Pages that the guest has moved.
    pub(crate) migrated: u64,
    /// The part of `time` that the host took to free; Tessera only.
    pub(crate) host: Option<Duration>,
    /// Requests that gave memory back; Tessera only.
    pub(crate) requests: Option<u64>,
    /// Functions that were still there.
    pub(crate) left: u64,
}

impl Scene {
    /// Boots a guest and gives it memory for `count` functions of `size` bytes.
    pub(crate) fn boot(
        way: Way,
        base: &Guest,
        (count, size): (u64, u64),
        socket: &Path,
    ) -> Result<Self> {
        let guest = way.guest(base, count * size);
        let vm = Elastic::boot(way.monitor(), &guest, socket)?;
        let scene = Self { way, guest, vm, count, size };
        scene.provide()?;
        Ok(scene)
    }

    /// Starts the functions, kills them one by one, and takes the memory of each back. With
    /// `burners`, the guest's vCPUs have so many other processes to run meanwhile.
    pub(crate) fn play(&self, burners: u32) -> Result<Vec<Release>> {
        let mib = (self.size - SLACK) / MIB;
        let mut hogs = Hogs::start(&self.vm, self.count, mib, "cgroup=/sys/fs/cgroup/fn")?;
        for _ in 0..burners {
            self.vm.shell("(while :; do :; done) & true")?;
        }
        let mut releases = Vec::new();
        for number in 0..self.count {
            releases.push(self.release(&mut hogs, number)?);
            if number == 0 {
                hogs.check()?;
            }
        }
        Ok(releases)
    }

    /// Memory for all functions, and a cgroup `/sys/fs/cgroup/fnN` for each.
    fn provide(&self) -> Result<()> {
        self.vm.shell("echo +memory > /sys/fs/cgroup/cgroup.subtree_control")?;
        if matches!(self.way, Way::Stock | Way::StockClearing | Way::Qemu) {
            self.vm.reach(&self.guest, self.count * self.size, LIMIT)?;
        }
        for number in 0..self.count {
            self.vm.shell(&format!("mkdir /sys/fs/cgroup/fn{number}"))?;
            if self.way == Way::Partition {
                self.add_partition(number)?;
                // The only free one there is.
                let file = format!("/sys/fs/cgroup/fn{number}/memory.partition");
                self.vm.shell(&format!("echo auto > {file}"))?;
            }
        }
        Ok(())
    }

    fn release(&self, hogs: &mut Hogs<'_>, number: u64) -> Result<Release> {
        let left = self.count - number - 1;
        let killed = Instant::now();
        hogs.kill(number as usize)?;
        if self.way == Way::Partition {
            let file = format!("/sys/fs/cgroup/fn{number}/memory.partition");
            self.vm.shell(&format!("echo none > {file}"))?;
        }
        let (migrated, host) = (self.migrated()?, self.host()?);
        let cpu = CpuTime::of_process(self.vm.pid())?;
        let asked = Instant::now();
        self.take_back(number, left)?;
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
            requests: since(|(requests, _)| requests),
            left,
        })
    }

    fn take_back(&self, number: u64, left: u64) -> Result<()> {
        match self.way {
            Way::Partition => {
                let id = format!("fn-{number}");
                let body = json!({ "id": id, "timeout_ms": LIMIT.as_millis() as u64 });
                self.vm.api()?.put_json("vm.remove-partition", &body)?.expect(200)?;
            }
            Way::Balloon => {
                let gone = (self.count - left) * self.size;
                self.vm.balloon(self.guest.boot - gone, LIMIT)?;
            }
            Way::Stock | Way::StockClearing | Way::Qemu => {
                self.vm.reach(&self.guest, left * self.size, LIMIT)?;
            }
        }
        Ok(())
    }

    fn add_partition(&self, number: u64) -> Result<()> {
        let id = format!("fn-{number}");
        let body = json!({ "id": id, "size": self.size, "release": "manual" });
        let api = self.vm.api()?;
        api.put_json("vm.add-partition", &body)?.expect(200)?;
        let start = Instant::now();
        loop {
            let list = api.get("vm.partitions")?.expect(200)?;
            let partitions = list.body.as_array().context("vm.partitions is no list")?;
            if partitions.iter().any(|one| one["id"] == id && one["state"] == "plugged") {
                return Ok(());
            }
            if start.elapsed() > LIMIT {
                bail!("the guest does not take partition {id}: {}", list.body);
            }
            thread::sleep(Duration::from_millis(5));
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
        let Ok(api) = self.vm.api() else { return Ok(None) };
        let counters = api.get("vm.counters")?.expect(200)?.body;
        let sum = |name: &str| -> u64 {
            let devices = counters.as_object().into_iter().flat_map(|devices| devices.values());
            devices.filter_map(|device| device[name].as_u64()).sum()
        };
        let requests = sum("unplug") + sum("part_release");
        Ok(Some((requests, sum("release_us_total"))))
    }
}
