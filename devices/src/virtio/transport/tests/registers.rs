//! What each register does, and refuses to do.

use super::*;
use crate::pci::Msix;
use crate::pci::mock::MockVectors;

#[test]
fn the_device_is_a_modern_virtio_device() {
    let driver = Driver::new();
    assert_eq!(driver.config(0, 4), 0x1044_1af4);
    assert_eq!(driver.config(8, 1), 1);
    assert_eq!(driver.config(0x3d, 1), 0, "no INTx");
    let vendor_kinds: Vec<_> = driver
        .capabilities()
        .into_iter()
        .filter(|&at| driver.config(at, 1) == 9)
        .map(|at| driver.config(at + 3, 1))
        .collect();
    assert_eq!(vendor_kinds, [1, 2, 3, 4, 5]);
    assert_eq!(driver.config(driver.msix_capability() + 2, 2), 2, "three vectors");
}

#[test]
fn the_areas_are_disjoint_and_inside_the_bar() {
    let driver = Driver::new();
    let msix = driver.msix_capability();
    let at = |offset: u64, length| Area { offset: offset & !7, length };
    let mut areas: Vec<_> = (1..=4).map(|kind| driver.area(kind)).collect();
    areas.push(at(driver.config(msix + 4, 4), 3 * 16));
    areas.push(at(driver.config(msix + 8, 4), 8));
    areas.sort_by_key(|area| area.offset);
    assert!(areas.windows(2).all(|pair| pair[0].offset + pair[0].length <= pair[1].offset));
    let last = areas.last().unwrap();
    assert!(last.offset + last.length <= 0x8000);
}

#[test]
fn the_largest_device_fits_the_areas() {
    use crate::virtio::transport::layout::{Area, MAX_QUEUES};
    let gap = |from: Area, to: Area| (to.start() - from.start()) as usize;
    assert!(4 * MAX_QUEUES <= gap(Area::Notify, Area::MsixTable));
    assert!(16 * (MAX_QUEUES + 1) <= gap(Area::MsixTable, Area::MsixPending));
    let log = Arc::new(HostLog::default());
    let msix = Msix::new(Box::new(MockVectors(log)), MAX_QUEUES as u16 + 1);
    let (body, _) = msix.capability(0, Area::MsixTable.start(), Area::MsixPending.start());
    assert_eq!(u16::from_le_bytes([body[0], body[1]]), 511);
}

/// More queues than the BAR has room for.
struct Wide(Vec<u16>);

impl VirtioDevice for Wide {
    fn device_id(&self) -> u16 {
        1
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.0
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::default()
    }

    fn activate(&mut self, _: Activation) -> io::Result<Vec<Box<dyn Worker>>> {
        Ok(Vec::new())
    }
}

#[test]
fn too_many_queues_are_refused() {
    let make = |count| {
        VirtioPci::new(Box::new(Wide(vec![2; count])), memory(), Arc::new(MockHost::default()))
    };
    assert!(make(511).is_ok());
    assert_eq!(
        make(512).err().unwrap().to_string(),
        "a virtio device has at most 511 queues, not 512",
    );
}

#[test]
fn the_transport_adds_its_features() {
    let driver = Driver::new();
    assert_eq!(driver.offered(), FEATURE | VERSION_1 | EVENT_IDX | 1 << 28);
    driver.set_common(0, 4, 2);
    assert_eq!(driver.common(4, 4), 0, "there are 64 feature bits");
}

#[test]
fn features_are_refused_without_version_1_or_with_one_not_offered() {
    let driver = Driver::new();
    for features in [0, FEATURE, VERSION_1 | 1 << 33, VERSION_1 | 1, u64::MAX] {
        driver.negotiate(features);
        assert_eq!(driver.status(), 3, "{features:#x}");
    }
    driver.negotiate(VERSION_1);
    assert_eq!(driver.status(), 11);
}

#[test]
fn features_are_frozen_by_features_ok() {
    let driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.accept(VERSION_1 | FEATURE);
    driver.set_status(15);
    assert_eq!(driver.shared.activations.lock().unwrap()[0].0, VERSION_1);
}

#[test]
fn queue_registers_take_writes_only_between_features_ok_and_enable() {
    let driver = Driver::new();
    let first = ring(&driver.memory, 0x1000);
    let second = ring(&driver.memory, 0x4000);
    let table = |driver: &Driver| driver.common(0x20, 8);
    driver.set_status(3);
    driver.set_up(0, addresses(&first), 0);
    assert_eq!((table(&driver), driver.common(0x1c, 2)), (0, 0), "too early");
    driver.negotiate(VERSION_1);
    driver.set_up(0, addresses(&first), 0);
    assert_eq!((table(&driver), driver.common(0x1c, 2)), (0x1000, 1));
    driver.set_up(0, addresses(&second), 0);
    driver.set_common(0x1c, 2, 0);
    assert_eq!((table(&driver), driver.common(0x1c, 2)), (0x1000, 1), "already enabled");
    driver.set_status(15);
    driver.set_up(1, addresses(&second), 0);
    assert_eq!((table(&driver), driver.common(0x1c, 2)), (0, 0), "after DRIVER_OK");
}

#[test]
fn a_queue_that_does_not_exist_reads_zero_and_drops_writes() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.negotiate(VERSION_1);
    for select in [2, 0x1ff, 0xffff] {
        driver.set_up(select, addresses(&ring), 0);
        assert_eq!(driver.common(0x16, 2), select);
        assert_eq!((driver.common(0x18, 2), driver.common(0x1a, 2)), (0, 0xffff));
        assert_eq!((driver.common(0x1c, 2), driver.common(0x20, 8)), (0, 0));
    }
    driver.set_common(0x16, 2, 1);
    assert_eq!((driver.common(0x12, 2), driver.common(0x18, 2)), (2, 32));
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let driver = Driver::new();
    for (written, read) in [(2, 2), (3, 0xffff), (0, 0), (0xfffe, 0xffff)] {
        driver.set_common(0x10, 2, written);
        driver.set_common(0x1a, 2, written);
        assert_eq!((driver.common(0x10, 2), driver.common(0x1a, 2)), (read, read));
    }
}

#[test]
fn only_accesses_of_a_registers_width_count() {
    let driver = Driver::new();
    driver.set_status(3);
    driver.set_common(0x14, 2, 0);
    driver.set_common(0x12, 4, 0);
    assert_eq!(driver.status(), 3);
    for (register, len) in [(0, 2), (2, 2), (0x14, 4), (0x16, 1), (0x21, 4), (0x38, 2), (0x800, 4)]
    {
        assert_eq!(driver.common(register, len), 0, "{register:#x}, {len} bytes");
    }
}

#[test]
fn without_msix_the_isr_tells_and_reading_clears_it() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.negotiate(VERSION_1);
    driver.set_up(0, addresses(&ring), 0xffff);
    offer(&ring);
    driver.set_status(15);
    let isr = driver.bar() + driver.area(3).offset;
    wait_until(|| driver.read(isr, 1) == 1);
    driver.function.interrupt().config_changed();
    assert_eq!((driver.read(isr, 1), driver.read(isr, 1)), (2, 0));
    assert!(driver.host.triggered().is_empty());
}

#[test]
fn device_configuration_is_read_at_any_width_and_never_written() {
    let driver = Driver::new();
    let device = driver.bar() + driver.area(4).offset;
    driver.write(device, 4, u64::MAX);
    assert_eq!(driver.read(device, 4), 0x0403_0201);
    assert_eq!(driver.read(device + 1, 1), 2);
    assert_eq!(driver.read(device + 8, 8), 0x0a09);
    assert_eq!(driver.read(device + 0xff8, 8), 0);
}

#[test]
fn the_configuration_window_reaches_the_bar_without_memory_decode() {
    let driver = Driver::new();
    let window = driver.capability(5);
    let aim = |offset, length| {
        driver.set_config(window + 4, 1, 0);
        driver.set_config(window + 8, 4, offset);
        driver.set_config(window + 12, 4, length);
    };
    driver.set_config(4, 2, 0);
    let common = driver.area(1).offset;
    aim(common + 0x14, 1);
    driver.set_config(window + 16, 1, 3);
    assert_eq!(driver.config(window + 16, 4), 3);
    aim(common + 0x12, 2);
    assert_eq!(driver.config(window + 16, 4), 2, "queues");
    for (offset, length) in [(common + 0x14, 0), (common + 0x15, 2), (0x8000, 4), (0, 8)] {
        aim(offset, length);
        driver.set_config(window + 16, 4, 0);
    }
    aim(common + 0x14, 1);
    driver.set_config(window + 4, 1, 1);
    driver.set_config(window + 16, 4, 0);
    aim(common + 0x14, 1);
    assert_eq!(driver.config(window + 16, 1), 3, "nothing else reset the device");
}

#[test]
fn a_kick_beside_a_doorbell_rings_nothing() {
    let driver = Driver::new();
    let notify = driver.bar() + driver.area(2).offset;
    for offset in [1, 2, 8, 0xffc] {
        driver.write(notify + offset, 2, 0);
    }
    assert_eq!(driver.counter("kick_exits"), 0);
    driver.write(notify + 4, 2, 0);
    assert_eq!(driver.counter("kick_exits"), 1);
}
