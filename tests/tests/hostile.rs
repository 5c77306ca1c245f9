//! A guest that attacks its monitor: it drives the virtio-mem device by itself and reaches for memory
//! that it was not given. The attacks are in `tests/guest/hostile`.

use guest_tests::{Cgroup, Config, GIB, MIB, Result, Tessera, Vm, until, within};
use serde_json::{Value, json};

/// What the guest boots with, what it is asked to have beside, and the room for it.
const BOOT: u64 = 256 * MIB;
const REQUESTED: u64 = 512 * MIB;
const ROOM: u64 = GIB;

/// Where the room begins: at 4 GiB, behind all memory of the boot.
const REGION: u64 = 4 * GIB;
const BLOCK: u64 = 2 * MIB;

/// What the monitor may log of all the attacks of a test; without limits it would be thousands.
const LOG_LINES: usize = 100;

struct Attack {
    vm: Tessera,
}

impl Attack {
    /// A guest whose device has no driver any more, with `REQUESTED` to be plugged.
    fn with_policy(policy: &str) -> Result<Self> {
        Self::of(Vm::from(config(policy)?))
    }

    fn of(vm: Vm) -> Result<Self> {
        let attack = Self { vm: vm.with_events().boot()? };
        attack.runs("info")?;
        attack.vm.resize(BOOT + REQUESTED)?;
        Ok(attack)
    }

    /// A guest that speaks of partitions and has plugged none of the two that it is to have.
    fn with_partitions(cgroup: &Cgroup) -> Result<Self> {
        let config = config("Stop")?.set("memory.partitions", json!({ "size": GIB, "max": 8 }));
        let attack = Self::of(Vm::from(config).in_cgroup(cgroup))?;
        attack.runs("channel")?;
        for (id, size) in [("fn-1", 64 * MIB), ("fn-2", 32 * MIB)] {
            let wish = json!({ "id": id, "size": size });
            attack.vm.api().put_json("vm.add-partition", &wish)?.expect(200)?;
        }
        Ok(attack)
    }

    /// Runs the hostile program, of which every check must hold.
    fn runs(&self, command: &str) -> Result<String> {
        let printed = self.vm.shell(&format!("hostile {command}"))?;
        assert!(!printed.contains("FAIL"), "{printed}");
        Ok(printed)
    }

    /// How many accesses were refused, a device's or a vCPU's.
    fn refused(&self, by: &str) -> Result<u64> {
        self.vm.counter("_memory", &format!("refused_{by}"))
    }

    /// What was told of refused accesses.
    fn refusals(&self) -> Result<Vec<Value>> {
        let events = self.vm.events()?.into_iter();
        let refused = |event: &Value| event["source"] == "memory" && event["event"] == "refused";
        Ok(events.filter(refused).map(|event| event["properties"].clone()).collect())
    }

    /// The monitor lives, and has not filled its log.
    fn survives(&self) -> Result<()> {
        self.vm.api().get("vmm.ping")?.expect(200)?;
        let log = self.vm.log();
        let lines = log.lines().count();
        assert!(lines <= LOG_LINES, "{lines} lines of log");
        assert!(!log.contains("panicked"), "{log}");
        Ok(())
    }

    /// A touch that the guest does not survive: the error names the address, and `owner`.
    fn end_with(mut self, command: &str, address: u64, owner: &str) -> Result<()> {
        self.vm.console().send(&format!("hostile {command}\n"))?;
        assert_eq!(self.vm.wait()?, 1, "{command}");
        let log = self.vm.log();
        let named =
            format!("reached for memory at {address:#x} that the guest does not have, {owner}");
        assert!(log.contains(&named), "{command}: no {named:?} in the log");
        let told = self.refusals()?;
        let last = told.last().unwrap_or(&Value::Null);
        assert_eq!(last["address"], format!("{address:#x}"), "{told:?}");
        assert_eq!(last["plugged"], "false");
        Ok(())
    }
}

fn config(policy: &str) -> Result<Config> {
    Ok(Config::vmlinux()?
        .with_programs()?
        .set("memory.size", BOOT)
        .set("memory.hotplug_method", "VirtioMem")
        .set("memory.hotplug_size", ROOM)
        .set("memory.refused_access", policy)
        .cmdline("memhp_default_state=online_movable memmap=4M$0xf000000"))
}

#[test]
fn requests_and_chains_of_any_form_get_one_answer_each() -> Result<()> {
    let attack = Attack::with_policy("Stop")?;
    attack.runs("requests")?;
    attack.runs("chains")?;
    let counters = attack.vm.counters()?["__mem"].clone();
    let sum = |names: &[&str]| names.iter().filter_map(|name| counters[name].as_u64()).sum::<u64>();
    let requests = sum(&["plug", "unplug", "unplug_all", "state", "malformed"]);
    let answers = sum(&["ack", "nack", "busy", "error", "unanswered"]);
    assert!(requests > 50, "{counters}");
    assert_eq!(requests, answers, "{counters}");
    assert_eq!(attack.refused("device")?, 0);
    attack.survives()?;
    attack.vm.power_off()
}

#[test]
fn registers_written_at_the_wrong_time_change_nothing() -> Result<()> {
    let attack = Attack::with_policy("Stop")?;
    attack.runs(&format!("registers {REGION:#x}"))?;
    attack.survives()?;
    attack.vm.power_off()
}

#[test]
fn resets_and_floods_leave_a_device_that_works_and_a_short_log() -> Result<()> {
    let attack = Attack::with_policy("Stop")?;
    attack.runs("resets 500")?;
    attack.runs("flood 50000")?;
    assert!(attack.vm.counter("__mem", "error")? >= 50_000);
    attack.survives()?;
    attack.vm.power_off()
}

#[test]
fn devices_are_refused_closed_memory_wherever_the_guest_points() -> Result<()> {
    let attack = Attack::with_policy("Report")?;
    attack.runs(&format!("rings {REGION:#x}"))?;
    let rings = attack.refused("device")?;
    assert!(rings >= 3, "{rings}");
    // Plugged and unplugged again, never plugged, never requested.
    attack.runs(&format!("plug {REGION:#x} 16"))?;
    attack.runs(&format!("unplug {REGION:#x} 16"))?;
    let end = REGION + ROOM;
    attack.runs(&format!("descriptors {REGION:#x} {end:#x} {:#x}", BLOCK / 2))?;
    let refused = attack.refused("device")?;
    let least = 3 * (ROOM / (BLOCK / 2)) + rings;
    assert!(refused >= least, "{refused} of {least}");
    // The first, second, fourth, and so on.
    let told = attack.refusals()?;
    assert!((5..20).contains(&told.len()), "{} events", told.len());
    assert!(told.iter().all(|event| event["by"] == "device"), "{told:?}");
    // Past the end there is nothing to be refused.
    let past = end + 16 * BLOCK;
    attack.runs(&format!("descriptors {end:#x} {past:#x} {BLOCK:#x}"))?;
    assert_eq!(attack.refused("device")?, refused);
    attack.survives()?;
    attack.vm.power_off()
}

#[test]
fn memory_that_a_request_gives_back_under_its_own_feet_is_gone() -> Result<()> {
    let attack = Attack::with_policy("Report")?;
    attack.runs("own-ground")?;
    assert!(attack.refused("device")? >= 2);
    attack.survives()?;
    attack.vm.power_off()
}

/// A kernel that speaks of partitions and lies: each gets what is its own, and no more.
#[test]
fn a_liar_about_partitions_has_no_more_than_was_given() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let attack = Attack::with_partitions(&cgroup)?;
    let before = cgroup.anonymous()?;
    let printed = attack.runs("partitions")?;
    let (_, last) = printed.rsplit_once("released ").unwrap_or_default();
    let Some((released, kept)) = last.split_once(" kept ") else { panic!("{printed}") };
    let parse = |text: &str| u64::from_str_radix(text.trim().trim_start_matches("0x"), 16);
    let (released, kept) = (parse(released)?, parse(kept)?);
    let over = cgroup.anonymous()?.saturating_sub(before + 2 * BLOCK);
    // A page of its own that is new costs the host a huge one; the partition given back had 64 MiB.
    assert!(over < 8 * MIB, "{over} bytes over what it has touched");
    let list = attack.vm.partitions()?;
    let one = |id: &str| list.iter().find(|one| one["id"] == id);
    assert!(one("fn-1").is_none(), "{list:?}");
    let used = one("fn-2").map(|one| one["plugged"].clone());
    assert_eq!(used, Some(json!(32 * MIB)), "{list:?}");
    attack.runs(&format!("touch {kept:#x} write"))?;
    // It answers nothing that is asked of it from here on.
    for evacuate in [false, true] {
        let removal = json!({"id": "fn-2", "timeout_ms": 500, "evacuate": evacuate});
        let kept = attack.vm.api().put_json("vm.remove-partition", &removal)?.expect(409)?.body;
        assert!(kept.to_string().contains("fn-2"), "{kept}");
    }
    attack.survives()?;
    attack.end_with(&format!("touch {released:#x} read"), released, "in no partition")
}

#[test]
fn an_access_to_a_partition_that_is_not_plugged_names_it() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let attack = Attack::with_partitions(&cgroup)?;
    let list = attack.vm.partitions()?;
    assert_eq!(list[1]["id"], "fn-2");
    let address = list[1]["extents"][0]["addr"].as_u64().unwrap_or_default() + BLOCK;
    attack.end_with(&format!("touch {address:#x} write"), address, "in partition fn-2")
}

#[test]
fn a_device_sent_to_closed_memory_stops_the_vm_by_default() -> Result<()> {
    let address = REGION + 5 * BLOCK;
    let command = format!("descriptors {address:#x} {:#x} {BLOCK:#x}", address + BLOCK);
    Attack::with_policy("Stop")?.end_with(&command, address, "in no partition")
}

#[test]
fn memory_that_was_never_plugged_cannot_be_read() -> Result<()> {
    let address = REGION + 3 * BLOCK;
    Attack::with_policy("Stop")?.end_with(
        &format!("touch {address:#x} read"),
        address,
        "in no partition",
    )
}

#[test]
fn memory_that_was_unplugged_cannot_be_written() -> Result<()> {
    let attack = Attack::with_policy("Stop")?;
    attack.runs(&format!("plug {REGION:#x} 8"))?;
    attack.runs(&format!("touch {REGION:#x} write"))?;
    attack.runs(&format!("unplug {REGION:#x} 4"))?;
    attack.runs(&format!("touch {:#x} write", REGION + 4 * BLOCK))?;
    attack.end_with(&format!("touch {REGION:#x} write"), REGION, "in no partition")
}

#[test]
fn memory_that_was_never_plugged_cannot_be_executed() -> Result<()> {
    let address = REGION + ROOM - BLOCK;
    Attack::with_policy("Stop")?.end_with(
        &format!("touch {address:#x} execute"),
        address,
        "in no partition",
    )
}

#[test]
fn an_emulated_instruction_is_reported_or_stopped_as_asked() -> Result<()> {
    let command = format!("touch {REGION:#x} emulate");
    let attack = Attack::with_policy("Report")?;
    assert!(attack.runs(&command)?.contains("emulated"));
    assert_eq!(attack.refused("vcpu")?, 1);
    let told = until("the event", within(10), || Ok(attack.refusals()?.pop()))?;
    assert_eq!(told["address"], format!("{REGION:#x}"));
    assert_eq!(told["by"], "vcpu");
    attack.survives()?;
    attack.vm.power_off()?;
    Attack::with_policy("Stop")?.end_with(&command, REGION, "in no partition")
}

#[test]
fn past_the_end_of_memory_there_is_nothing() -> Result<()> {
    let attack = Attack::with_policy("Stop")?;
    // Not where the devices' registers begin.
    let end = REGION + ROOM + GIB / 2;
    assert!(attack.runs(&format!("touch {end:#x} read"))?.contains("read 0xff"));
    attack.runs(&format!("touch {end:#x} write"))?;
    assert_eq!(attack.refused("vcpu")?, 0);
    attack.survives()?;
    attack.vm.power_off()
}

/// Everything above what the hoarder may have is given back to the host, not only to the books.
#[test]
fn a_hoarder_has_not_a_byte_over_its_allotment() -> Result<()> {
    let cgroup = Cgroup::new()?;
    let attack = Attack::of(Vm::from(config("Report")?).in_cgroup(&cgroup))?;
    let before = cgroup.anonymous()?;
    let printed = attack.runs("hoard")?;
    let kept = REQUESTED / (128 * MIB) * BLOCK;
    assert!(printed.contains(&format!("kept {kept}")), "{printed}");
    attack.vm.resize(BOOT)?;
    // Whatever it points the device at stays closed; what it kept is its own.
    for from in (0..ROOM).step_by(128 * MIB as usize) {
        let (first, end) = (REGION + from + BLOCK, REGION + from + 128 * MIB);
        attack.runs(&format!("descriptors {first:#x} {end:#x} {BLOCK:#x}"))?;
    }
    let after = cgroup.anonymous()?;
    // Beside it: what the guest's own kernel has touched of its boot memory since.
    let over = after.saturating_sub(before + kept);
    println!("{} KiB more than before, {} KiB kept", (after - before) >> 10, kept >> 10);
    assert!(over < 8 * MIB, "{over} bytes over the allotment");
    assert_eq!(attack.vm.actual_size()?, BOOT + kept);
    attack.survives()?;
    // Its own instructions get no further, whatever the policy: KVM can't complete them.
    let touch = REGION + BLOCK;
    attack.end_with(&format!("touch {touch:#x} write"), touch, "in no partition")
}
