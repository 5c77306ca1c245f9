//! The root bus as a guest drives it.

use super::*;
use proptest::prelude::*;

const LOW: Range<u64> = 0xe000_0000..0xe010_0000;
const HIGH: Range<u64> = 0x10_0000_0000..0x10_0010_0000;
const BAR32: Bar = Bar { index: 0, size: 0x1000, kind: BarKind::Memory32 };
const BAR64: Bar = Bar { index: 0, size: 0x8000, kind: BarKind::Memory64 };

/// Reads as the low byte of the offset; remembers what it was told and written.
struct Probe {
    config: Mutex<Configuration>,
    moves: Mutex<Vec<Option<u64>>>,
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Probe {
    fn new(bar: Bar) -> Arc<Self> {
        let mut config = Configuration::new(Identity {
            vendor: 0x1234,
            device: 0x5678,
            revision: 0,
            class: Class { base: 0xff, sub: 0 },
            subsystem_vendor: 0,
            subsystem: 0,
        });
        config.add_bar(bar);
        Arc::new(Self {
            config: Mutex::new(config),
            moves: Mutex::default(),
            writes: Mutex::default(),
        })
    }

    fn moves(&self) -> Vec<Option<u64>> {
        std::mem::take(&mut lock(&self.moves))
    }
}

impl PciFunction for Probe {
    fn config(&self) -> &Mutex<Configuration> {
        &self.config
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        lock(&self.writes).push((offset, data.to_vec()));
    }

    fn bar_moved(&self, _bar: u8, address: Option<u64>) {
        lock(&self.moves).push(address);
    }
}

/// The machine's two buses around a root.
struct Machine {
    root: Arc<PciRoot>,
    memory: Bus,
    ports: Bus,
}

const ECAM: u64 = 0xd000_0000;

impl Machine {
    fn new() -> Self {
        let root = PciRoot::new(Apertures { low: LOW, high: HIGH });
        let (mut memory, mut ports) = (Bus::default(), Bus::default());
        memory.insert(ECAM..ECAM + ECAM_SIZE, root.ecam()).unwrap();
        for (range, device) in root.windows() {
            memory.insert(range, device).unwrap();
        }
        ports.insert(CONFIG_PORTS, root.config_ports()).unwrap();
        Self { root, memory, ports }
    }

    fn attach(&self, bar: Bar) -> (Arc<Probe>, Bdf) {
        let probe = Probe::new(bar);
        let bdf = self.root.attach(Arc::clone(&probe) as Arc<dyn PciFunction>).unwrap();
        (probe, bdf)
    }

    fn read(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.memory.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    fn config(&self, slot: u8, register: u64) -> u32 {
        self.read(ECAM + (u64::from(slot) << 15) + register)
    }

    fn set_config(&self, slot: u8, register: u64, value: u32) {
        self.memory.write(ECAM + (u64::from(slot) << 15) + register, &value.to_le_bytes());
    }

    fn port(&self, port: u64, len: usize) -> u32 {
        let mut data = [0; 4];
        self.ports.read(port, &mut data[..len]);
        u32::from_le_bytes(data)
    }
}

#[test]
fn slots_are_given_in_attach_order() {
    let machine = Machine::new();
    assert_eq!(machine.config(0, 0), 0x0d57_8086);
    assert_eq!(machine.config(0, 8) >> 8, 0x06_0000);
    let names: Vec<_> = (0..3).map(|_| machine.attach(BAR32).1.to_string()).collect();
    assert_eq!(names, ["0000:00:01.0", "0000:00:02.0", "0000:00:03.0"]);
    assert_eq!(machine.config(3, 0), 0x5678_1234);
}

#[test]
fn nothing_there_reads_all_ones() {
    let machine = Machine::new();
    machine.attach(BAR32);
    assert_eq!(machine.config(2, 0), u32::MAX);
    assert_eq!(machine.config(1, 0x1000), u32::MAX, "function 1");
    assert_eq!(machine.config(1, 0x100), u32::MAX, "no extended space");
    assert_eq!(machine.read(LOW.start), u32::MAX, "decode is off");
    machine.set_config(2, 4, 2);
    machine.set_config(1, 0x1004, 2);
}

#[test]
fn a_full_bus_and_full_apertures_refuse() {
    let machine = Machine::new();
    let huge = Probe::new(Bar { index: 0, size: 1 << 32, kind: BarKind::Memory64 });
    let error = machine.root.attach(huge).unwrap_err();
    assert!(matches!(error, AttachError::NoSpace { size: 0x1_0000_0000 }));
    (1..SLOTS).for_each(|_| drop(machine.attach(BAR32)));
    assert!(matches!(machine.root.attach(Probe::new(BAR32)), Err(AttachError::NoSlot)));
}

#[test]
fn wide_bars_go_high_and_fall_back_low() {
    let machine = Machine::new();
    let whole = Bar { size: 0x10_0000, ..BAR64 };
    machine.attach(whole);
    machine.attach(whole);
    assert_eq!(machine.config(1, 0x14), 0x10);
    assert_eq!((machine.config(2, 0x10), machine.config(2, 0x14)), (0xe000_0004, 0));
    assert!(machine.root.attach(Probe::new(BAR32)).is_err());
}

#[test]
fn memory_accesses_reach_the_bar_while_it_is_decoded() {
    let machine = Machine::new();
    let (probe, _) = machine.attach(BAR64);
    let at = HIGH.start;
    machine.set_config(1, 4, 2);
    assert_eq!(probe.moves(), [Some(at)]);
    assert_eq!(machine.read(at + 0x7f21), 0x2121_2121);
    machine.memory.write(at + 8, &[1, 2]);
    assert_eq!(*lock(&probe.writes), [(8, vec![1, 2])]);
    assert_eq!(machine.read(at + 0x7ffe), u32::MAX, "past the end of the BAR");
    machine.set_config(1, 4, 0);
    assert_eq!(probe.moves(), [None]);
    assert_eq!(machine.read(at), u32::MAX);
}

#[test]
fn sizing_and_moving_a_bar_is_followed() {
    let machine = Machine::new();
    let (probe, _) = machine.attach(BAR32);
    machine.set_config(1, 4, 2);
    machine.set_config(1, 0x10, u32::MAX);
    assert_eq!(machine.config(1, 0x10), 0xffff_f000);
    assert_eq!(probe.moves(), [Some(LOW.start), None], "outside the window while sizing");
    machine.set_config(1, 0x10, 0xe000_5000);
    assert_eq!(probe.moves(), [Some(0xe000_5000)]);
    assert_eq!(machine.read(0xe000_5003), 0x0303_0303);
    machine.set_config(1, 0x10, 0xe000_7000);
    assert_eq!(probe.moves(), [None, Some(0xe000_7000)]);
    assert_eq!(machine.read(0xe000_5000), u32::MAX);
    machine.set_config(1, 0x10, 0xe000_7000);
    machine.set_config(1, 0x3c, 5);
    assert!(probe.moves().is_empty(), "nothing moved");
}

#[test]
fn the_lower_slot_wins_an_overlap() {
    let machine = Machine::new();
    let (first, _) = machine.attach(BAR32);
    let (second, _) = machine.attach(BAR32);
    machine.set_config(2, 4, 2);
    machine.set_config(2, 0x10, LOW.start as u32);
    second.moves();
    machine.set_config(1, 4, 2);
    assert_eq!((first.moves(), second.moves()), (vec![Some(LOW.start)], vec![None]));
    machine.set_config(1, 4, 0);
    assert_eq!((first.moves(), second.moves()), (vec![None], vec![Some(LOW.start)]));
}

#[test]
fn ports_reach_the_same_registers() {
    let machine = Machine::new();
    machine.attach(BAR32);
    let select = |value: u32| machine.ports.write(0xcf8, &value.to_le_bytes());
    select(0x8000_0800);
    assert_eq!(machine.port(0xcf8, 4), 0x8000_0800);
    assert_eq!(machine.port(0xcfc, 4), 0x5678_1234);
    assert_eq!(machine.port(0xcfe, 2), 0x5678);
    select(0x8000_0804);
    machine.ports.write(0xcfc, &[2, 0]);
    assert_eq!(machine.config(1, 4), 2);
    for nowhere in [0x0000_0800, 0x8001_0800, 0x8000_0900, 0x8000_f800] {
        select(nowhere);
        assert_eq!(machine.port(0xcfc, 4), u32::MAX, "{nowhere:#x}");
    }
}

#[test]
fn a_narrow_write_to_the_address_port_is_not_for_us() {
    let machine = Machine::new();
    machine.ports.write(0xcfb, &[1]);
    machine.ports.write(0xcf9, &[6]);
    assert_eq!(machine.port(0xcf8, 4), 0);
    assert_eq!(machine.port(0xcf8, 1), 0xff);
}

proptest! {
    /// Whatever a guest writes, the map stays what the configuration spaces call for.
    #[test]
    fn any_configuration_write_is_survived(
        steps in proptest::collection::vec(
            (0u64..4 << 15, 0usize..9, prop_oneof![
                Just(0xe000_0002u64), Just(0xe000_1002), Just(u64::MAX), any::<u64>()]),
            1..60),
        registers in proptest::collection::vec((1u8..4, prop_oneof![Just(4u64), Just(0x10), Just(0x14)]), 60),
    ) {
        let machine = Machine::new();
        let probes = [machine.attach(BAR32).0, machine.attach(BAR32).0, machine.attach(BAR64).0];
        for ((offset, len, value), (slot, register)) in steps.into_iter().zip(registers) {
            let data = &value.to_le_bytes()[..len.min(8)];
            machine.memory.write(ECAM + offset, data);
            machine.set_config(slot, register, value as u32);
            machine.ports.write(0xcf8 + offset % 8, data);
            machine.memory.write(LOW.start + offset % 0x10_0000, data);
        }
        let map = machine.root.plan(&read(&machine.root.functions)).1;
        prop_assert_eq!(&map, &*lock(&machine.root.placed));
        for (slot, probe) in (1..).zip(probes) {
            let told = probe.moves().last().copied().flatten();
            prop_assert_eq!(told, map.get(&(slot, 0)).copied());
        }
    }
}
