//! Memory, what it may grow to, its zones, nodes and slots.

use super::*;

#[test]
fn backing_follows_shared_and_hugepages() {
    let backing = |fields| spec(json!({ "memory": fields })).unwrap().zones[0].memory.backing;
    assert_eq!(backing(json!({"shared": true})), Backing::Shared);
    let page = Bytes::mib(2);
    assert_eq!(backing(json!({"hugepages": true})), Backing::Hugetlb { page, shared: false });
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let refused = |memory: Value, problem| assert_refused(json!({ "memory": memory }), problem);
    refused(
        json!({"size": (1 << 30) + 1}),
        "memory.size: 1073741825 is no multiple of 4 KiB; round it",
    );
    refused(
        json!({"size": 3 << 20, "hugepages": true}),
        "memory.size: 3145728 is no multiple of 2 MiB; round it",
    );
    refused(
        json!({"size": 1u64 << 46}),
        "memory.size: 64 TiB is over the 46 bits of cpus.max_phys_bits; lower it",
    );
    refused(
        json!({"size": 4 << 20, "hugepages": true, "hugepage_size": 4 << 20}),
        "memory.hugepage_size: 4 MiB is no huge page of x86-64; use 2 MiB or 1 GiB",
    );
    refused(
        json!({"hugepage_size": 2 << 20}),
        "memory.hugepage_size: needs memory.hugepages; turn that on",
    );
}

const GIB: u64 = 1 << 30;

#[test]
fn each_way_to_grow_has_a_device_of_its_own() {
    let devices = |memory: Value| spec(json!({ "memory": memory })).unwrap().mem_devices;
    let partitions = json!({"size": 8 * GIB, "max": 7, "prepare": GIB});
    let all = json!({"hotplug_method": "VirtioMem", "hotplug_size": 4 * GIB,
                     "hotplugged_size": GIB, "partitions": partitions});
    let device = |id: &str, size, role| {
        let (block, memory) = (Bytes::mib(2), Memory::plain());
        MemDevice { id: id.to_owned(), size, block, memory, node: None, role }
    };
    let zone = Role::Zone { zone: 0, plugged_at_boot: Bytes::gib(1) };
    let role = Role::Partitions { max: 7, prepare: Bytes::gib(1) };
    let expected =
        [device("__mem", Bytes::gib(4), zone), device("__partitions", Bytes::gib(8), role)];
    assert_eq!(devices(all), expected);

    let partitions = devices(json!({"partitions": {"size": GIB}}));
    let role = Role::Partitions { max: 64, prepare: Bytes::ZERO };
    assert_eq!(partitions, [device("__partitions", Bytes::gib(1), role)]);
}

#[test]
fn blocks_are_as_large_as_the_pages_behind_them() {
    let block = |mut memory: Value| {
        memory["partitions"] = json!({"size": 4 * GIB});
        spec(json!({ "memory": memory })).unwrap().mem_devices[0].block
    };
    assert_eq!(block(json!({"shared": true})), Bytes::mib(2));
    assert_eq!(block(json!({"hugepages": true})), Bytes::mib(2));
    let gigantic = json!({"size": GIB, "hugepages": true, "hugepage_size": GIB});
    assert_eq!(block(gigantic), Bytes::gib(1));
}

#[test]
fn hotplug_that_cannot_be_is_refused() {
    let refused = |mut memory: Value, problem: &str| {
        if memory["hotplug_method"].is_null() {
            memory["hotplug_method"] = json!("VirtioMem");
        }
        assert_refused(json!({ "memory": memory }), problem);
    };
    refused(
        json!({"hotplug_method": "Acpi", "hotplug_size": GIB}),
        "memory.hotplug_method: Acpi, the default, cannot add memory here; use VirtioMem \
         (virtio-mem on the command line)",
    );
    refused(
        json!({"hotplug_size": 3 << 20}),
        "memory.hotplug_size: 3145728 is no multiple of 2 MiB; round it",
    );
    refused(
        json!({"hotplug_size": GIB, "hotplugged_size": 4096}),
        "memory.hotplugged_size: 4096 is no multiple of 2 MiB; round it",
    );
    refused(
        json!({"size": GIB, "hugepages": true, "hugepage_size": GIB,
               "partitions": {"size": 512 << 20}}),
        "memory.partitions.size: 536870912 is no multiple of 1 GiB; round it",
    );
    refused(
        json!({"hotplugged_size": GIB}),
        "memory.hotplugged_size: 1 GiB is over memory.hotplug_size, 0 bytes; lower it",
    );
    refused(
        json!({"hotplug_size": GIB, "hotplugged_size": 2 * GIB}),
        "memory.hotplugged_size: 2 GiB is over memory.hotplug_size, 1 GiB; lower it",
    );
    refused(
        json!({"partitions": {"size": GIB, "prepare": 2 * GIB}}),
        "memory.partitions.prepare: 2 GiB is over memory.partitions.size, 1 GiB; lower it",
    );
    for max in [0, 4097] {
        let problem = format!("memory.partitions.max: {max} is out of range; use 1 to 4096");
        refused(json!({"partitions": {"size": GIB, "max": max}}), &problem);
    }
}

#[test]
fn hotplug_fits_behind_ram() {
    let memory = |size: u64, shared: u64, partitions: u64| {
        spec(json!({
            "cpus": {"max_phys_bits": 36},
            "memory": {"size": size, "hotplug_method": "VirtioMem", "hotplug_size": shared,
                       "partitions": {"size": partitions}},
        }))
    };
    // 64 GiB of addresses, of which 1 GiB is the hole below 4 GiB.
    assert!(memory(13 * GIB, 20 * GIB, 30 * GIB).is_ok());
    assert!(memory(2 << 20, 0, 60 * GIB).is_ok());
    let block = 2 << 20;
    let too_wide = "memory: size, hotplug_size and partitions.size together are over the \
                    36 bits of cpus.max_phys_bits; lower one";
    let cases = [
        (13 * GIB, 20 * GIB, 30 * GIB + block),
        (13 * GIB, 20 * GIB + block, 30 * GIB),
        (13 * GIB + block, 20 * GIB, 30 * GIB),
        // Behind 4 GiB even where RAM ends before.
        (block, 0, 60 * GIB + block),
        (63 * GIB, block, 0),
        (GIB, u64::MAX - block + 1, u64::MAX - block + 1),
    ];
    for (size, shared, partitions) in cases {
        assert_eq!(memory(size, shared, partitions), Err(vec![too_wide.to_owned()]));
    }
    // RAM that is too large by itself is the only problem named.
    assert_eq!(memory(u64::MAX - 4095, GIB, GIB).unwrap_err().len(), 1);
}

#[test]
fn number_of_blocks_is_bounded() {
    let partitions = |size: u64| json!({"memory": {"partitions": {"size": size}}});
    let most = 32768 * GIB;
    assert_eq!(spec(partitions(most)).unwrap().mem_devices[0].size, Bytes::new(most));
    assert_refused(
        partitions(most + GIB),
        "memory: 32769 GiB for __partitions is over 16777216 blocks of 2 MiB; lower it",
    );
}

/// Two zones, the second of which can grow.
fn zones() -> Value {
    json!({"size": 0, "thp": false, "hotplug_method": "VirtioMem", "zones": [
        {"id": "a", "size": GIB, "shared": true},
        {"id": "b.1", "size": 2 * GIB, "prefault": true, "host_numa_node": null,
         "hotplug_size": 4 * GIB, "hotplugged_size": GIB},
    ]})
}

#[test]
fn zones_have_their_own_memory_and_devices() {
    let spec = spec(json!({ "memory": zones() })).unwrap();
    let shared = Memory { backing: Backing::Shared, thp: false, ..Memory::plain() };
    let filled = Memory { prefault: true, thp: false, ..Memory::plain() };
    let zone = |id: &str, size, memory: &Memory| Zone {
        id: id.to_owned(),
        size: Bytes::gib(size),
        memory: memory.clone(),
    };
    assert_eq!(spec.zones, [zone("a", 1, &shared), zone("b.1", 2, &filled)]);
    assert_eq!(spec.ram(), Bytes::gib(3));
    let device = MemDevice {
        id: "__mem_b.1".to_owned(),
        size: Bytes::gib(4),
        block: Bytes::mib(2),
        memory: filled,
        node: None,
        role: Role::Zone { zone: 1, plugged_at_boot: Bytes::gib(1) },
    };
    assert_eq!(spec.mem_devices, [device]);
}

#[test]
fn zones_that_cannot_be_are_refused() {
    let refused = |change: &dyn Fn(&mut Value), problem: &str| {
        let mut memory = zones();
        change(&mut memory);
        assert_refused(json!({ "memory": memory }), problem);
    };
    let size = "memory.size: memory.zones say how much there is; set it to 0";
    refused(&|memory| memory["size"] = json!(GIB), size);
    let shared = "memory.shared: say it for each of memory.zones instead";
    refused(&|memory| memory["shared"] = json!(true), shared);
    let taken = "memory.zones[1].id: a is taken; each id is used once";
    refused(&|memory| memory["zones"][1]["id"] = json!("a"), taken);
    refused(
        &|memory| memory["zones"][0]["id"] = json!("a/b"),
        "memory.zones[0].id: not a name; use 1 to 64 ASCII letters, digits, dots, dashes, \
         underscores",
    );
    refused(
        &|memory| memory["zones"][0]["size"] = json!(3 << 20),
        "memory.zones[0].size: 3145728 is no multiple of 2 MiB; round it",
    );
    refused(
        &|memory| memory["zones"][0]["size"] = json!(1u64 << 46),
        "memory.zones: the sum of all sizes is over the 46 bits of cpus.max_phys_bits; lower it",
    );
    refused(
        &|memory| memory["zones"][0]["size"] = json!(u64::MAX - (2 << 20) + 1),
        "memory.zones: the sum of all sizes is over the 46 bits of cpus.max_phys_bits; lower it",
    );
    refused(
        &|memory| memory["zones"][0]["host_numa_node"] = json!(70_000),
        "memory.zones[0].host_numa_node: this host has no NUMA node 70000; see \
         /sys/devices/system/node",
    );
    let file = "memory.zones[0].file: not supported yet; leave it out";
    refused(&|memory| memory["zones"][0]["file"] = json!("/f"), file);
    refused(
        &|memory| memory["zones"][1]["hotplugged_size"] = json!(5 * GIB),
        "memory.zones[1].hotplugged_size: 5 GiB is over memory.zones[1].hotplug_size, 4 GiB; lower \
         it",
    );
}

#[test]
fn number_of_zones_is_bounded() {
    let zone = |index| json!({"id": format!("z{index}"), "size": 2 << 20});
    let zones =
        |count| json!({"memory": {"size": 0, "zones": (0..count).map(zone).collect::<Vec<_>>()}});
    assert_eq!(spec(zones(16)).unwrap().zones.len(), 16);
    assert_refused(zones(17), "memory.zones: 17 zones; use at most 16");
}

#[test]
fn nodes_take_what_they_name_and_the_first_the_rest() {
    let numa = json!([
        {"guest_numa_id": 3, "cpus": [0], "distances": [{"destination": 1, "distance": 15}]},
        {"guest_numa_id": 1, "cpus": [2], "memory_zones": ["b.1"]},
    ]);
    let cpus = json!({"boot_vcpus": 3});
    let spec = spec(json!({"cpus": cpus, "memory": zones(), "numa": numa})).unwrap();
    let first = Node { number: 3, cpus: vec![0, 1], zones: vec![0], distances: vec![(1, 15)] };
    let second = Node { number: 1, cpus: vec![2], zones: vec![1], distances: vec![] };
    assert_eq!(spec.nodes, [first, second]);
    assert_eq!(spec.mem_devices[0].node, Some(1));
}

#[test]
fn nodes_that_cannot_be_are_refused() {
    let refused = |numa: Value, problem: &str| {
        let cpus = json!({"boot_vcpus": 2});
        assert_refused(json!({"cpus": cpus, "memory": zones(), "numa": numa}), problem);
    };
    let node = |number: u32| json!({ "guest_numa_id": number });
    let one = |field: &str, value: Value| {
        let mut node = node(0);
        node[field] = value;
        node
    };
    refused(json!([node(64)]), "numa[0].guest_numa_id: 64 is out of range; use 0 to 63");
    refused(
        json!([node(1), node(1)]),
        "numa[1].guest_numa_id: 1 is taken; each number is used once",
    );
    refused(json!([one("cpus", json!([2]))]), "numa[0].cpus: there is no vCPU 2; use 0 to 1");
    refused(
        json!([one("cpus", json!([1, 1]))]),
        "numa[0].cpus: vCPU 1 is in a node already; name it once",
    );
    refused(
        json!([one("memory_zones", json!(["c"]))]),
        r#"numa[0].memory_zones: there is no memory zone "c"; use an id of memory.zones"#,
    );
    refused(
        json!([one("memory_zones", json!(["a", "a"]))]),
        "numa[0].memory_zones: zone a is in a node already; name it once",
    );
    let distance = |to: u32, distance: u8| json!([{"destination": to, "distance": distance}]);
    refused(
        json!([one("distances", distance(1, 20))]),
        "numa[0].distances[0].destination: there is no other node 1; use another guest_numa_id",
    );
    refused(
        json!([one("distances", distance(1, 10)), node(1)]),
        "numa[0].distances[0].distance: 10 is out of range; use 11 to 255",
    );
}

#[test]
fn slots_are_nodes_behind_all_others() {
    let partitions = json!({"mode": "auto", "size": GIB, "slots": 2, "slot_size": 512 << 20});
    let cpus = json!({"boot_vcpus": 2});
    let spec = spec(json!({"cpus": cpus, "memory": {"partitions": partitions}})).unwrap();
    let ids: Vec<_> = spec.mem_devices.iter().map(|one| (one.id.as_str(), one.node)).collect();
    assert_eq!(ids, [("__partitions", Some(0)), ("__slot0", Some(1)), ("__slot1", Some(2))]);
    assert_eq!((spec.mem_devices[2].size, spec.mem_devices[2].role), (Bytes::mib(512), Role::Slot));
    let node = Node { number: 0, cpus: vec![0, 1], zones: vec![0], distances: vec![] };
    assert_eq!(spec.nodes, [node]);
}

#[test]
fn slots_come_after_the_clients_nodes_and_end_at_63() {
    let fields = |number| {
        json!({"numa": [{"guest_numa_id": number}, {"guest_numa_id": 1}],
               "memory": {"partitions": {"mode": "numa", "slots": 16, "slot_size": 512 << 20}}})
    };
    let spec = spec(fields(47)).unwrap();
    let nodes: Vec<_> = spec.mem_devices.iter().filter_map(|device| device.node).collect();
    assert_eq!(nodes, (48..64).collect::<Vec<_>>(), "and no device for the channel");
    assert_refused(
        fields(48),
        "memory.partitions.slots: the slots' nodes come after numa's, and end at 63; lower \
         guest_numa_id",
    );
}

#[test]
fn slots_that_cannot_be_are_refused() {
    let refused = |slots: u64, size: u64, problem: &str| {
        let partitions = json!({"mode": "numa", "slots": slots, "slot_size": size});
        assert_refused(json!({"memory": {"partitions": partitions}}), problem);
    };
    refused(17, GIB, "memory.partitions.slots: 17 is out of range; use 1 to 16");
    refused(0, GIB, "memory.partitions.slots: 0 is out of range; use 1 to 16");
    refused(1, 0, "memory.partitions.slot_size: 0 bytes; say how much a slot holds");
    let odd = "memory.partitions.slot_size: 3145728 is no multiple of 2 MiB; round it";
    refused(1, 3 << 20, odd);
}

/// Each of these made another VM than it described, without a word.
#[test]
fn room_that_its_mode_cannot_mean_is_refused() {
    let channel = "memory.partitions.mode: channel has no slots; leave slots and slot_size out, or \
                   use numa or auto";
    let numa = "memory.partitions.mode: numa has slots alone; leave size, max and prepare out, or \
                use auto";
    let size = "memory.partitions.size: 0 bytes; say how much all partitions together can have";
    let slots = "memory.partitions.slots: 0 is out of range; use 1 to 16";
    let slot_size = "memory.partitions.slot_size: 0 bytes; say how much a slot holds";
    let cases = [
        (json!({"slots": 1}), vec![channel]),
        (json!({"size": GIB, "slot_size": GIB}), vec![channel]),
        (json!({"mode": "numa", "slots": 1, "slot_size": GIB, "size": GIB}), vec![numa]),
        (json!({"mode": "numa", "slots": 1, "slot_size": GIB, "max": 8}), vec![numa]),
        (json!({"mode": "numa", "slots": 1, "slot_size": GIB, "prepare": GIB}), vec![numa]),
        (json!({"max": 8}), vec![size]),
        (json!({"prepare": GIB}), vec![size]),
        (json!({"mode": "auto", "slots": 1, "slot_size": GIB}), vec![size]),
        (json!({"mode": "auto", "size": GIB}), vec![slots, slot_size]),
        (json!({"mode": "auto", "size": GIB, "slot_size": GIB}), vec![slots]),
        (json!({"mode": "auto"}), vec![size, slots, slot_size]),
    ];
    for (partitions, problems) in cases {
        let refused = spec(json!({"memory": {"partitions": partitions}})).unwrap_err();
        assert_eq!(refused, problems, "{partitions}");
    }
}
