//! From reset to interrupts and back.

use vm_memory::Bytes;

use super::*;
use crate::lifecycle::Lifecycle;

#[test]
fn a_driver_brings_the_device_to_life_and_gets_answers() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    assert_eq!(driver.status(), 15);
    let expected = (VERSION_1 | FEATURE, vec![true, false]);
    assert_eq!(*driver.shared.activations.lock().unwrap(), [expected]);

    offer(&ring);
    driver.kick(0);
    wait_until(|| driver.host.triggered().contains(&1));
    assert_eq!(ring.used().idx().load(), 1);
    let used = ring.used().ring().ref_at(0).unwrap().load();
    assert_eq!((used.id(), used.len()), (0, WRITTEN));
    assert_eq!(driver.counter("kick_exits"), 1);
    assert!(driver.counter("interrupts") >= 1);
}

#[test]
fn buffers_offered_before_driver_ok_are_found_without_a_kick() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    offer(&ring);
    driver.bring_up(&ring);
    wait_until(|| ring.used().idx().load() == 1);
}

/// The rings are laid out by hand, as those of `MockSplitQueue` overlap where the event index is.
#[test]
fn the_event_index_spares_the_driver_interrupts() {
    let driver = Driver::new();
    let (available, used) = (GuestAddress(0x2000), GuestAddress(0x3000));
    let load = |at: GuestAddress| driver.memory.read_obj::<u16>(at).unwrap();
    let store = |at: GuestAddress, value: u16| driver.memory.write_obj(value, at).unwrap();
    driver.enable_msix();
    driver.negotiate(VERSION_1 | EVENT_IDX);
    driver.set_up(0, [0x1000, available.0, used.0], 1);
    let used_event = GuestAddress(available.0 + 4 + 2 * u64::from(QUEUE_SIZE));
    store(used_event, 1);
    driver.set_status(15);
    for count in 1..=2 {
        store(GuestAddress(available.0 + 2), count);
        driver.kick(0);
        wait_until(|| load(GuestAddress(used.0 + 2)) == count);
    }
    driver.function.pause();
    assert_eq!(driver.host.triggered(), [1], "only once used index 1 is passed");
}

#[test]
fn reset_ends_the_workers_and_forgets_everything() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    assert_eq!((driver.workers(), driver.host.doorbells().len()), (1, 1));
    driver.set_status(0);
    assert_eq!((driver.workers(), driver.host.doorbells().len()), (0, 0));
    assert_eq!((driver.status(), driver.common(0x10, 2)), (0, 0xffff));
    driver.set_common(0x16, 2, 0);
    for register in [0x1c, 0x20, 0x28, 0x30] {
        assert_eq!(driver.common(register, if register == 0x1c { 2 } else { 8 }), 0);
    }
    assert_eq!((driver.common(0x18, 2), driver.common(0x1a, 2)), (QUEUE_SIZE.into(), 0xffff));

    let again = super::ring(&driver.memory, 0x4000);
    offer(&again);
    driver.bring_up(&again);
    wait_until(|| again.used().idx().load() == 1);
}

#[test]
fn a_reset_storm_leaves_nothing_behind() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    for _ in 0..100 {
        driver.bring_up(&ring);
        driver.kick(0);
        driver.set_status(0);
        driver.set_status(0);
    }
    assert_eq!((driver.workers(), driver.host.doorbells().len()), (0, 0));
    assert_eq!(driver.host.routed().len(), 3, "the host knew the routes from the first time");
}

#[test]
fn an_enabled_queue_outside_ram_needs_a_reset_and_gets_no_worker() {
    let driver = Driver::new();
    driver.enable_msix();
    driver.negotiate(VERSION_1);
    driver.set_common(0x10, 2, 2);
    let good = ring(&driver.memory, 0x1000);
    driver.set_up(0, addresses(&good), 0);
    driver.set_common(0x16, 2, 1);
    driver.set_common(0x20, 8, u64::MAX - 15);
    driver.set_common(0x1c, 2, 1);
    driver.set_status(15);
    assert_eq!(driver.status(), 15 | 64);
    assert_eq!((driver.workers(), driver.host.doorbells().len()), (0, 0));
    assert_eq!(driver.host.triggered(), [2], "the configuration vector says so");
    driver.kick(0);

    driver.bring_up(&good);
    assert_eq!((driver.status(), driver.workers()), (15, 1));
}

#[test]
fn a_device_that_can_not_start_needs_a_reset() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.shared.refuses.store(true, Ordering::Relaxed);
    driver.bring_up(&ring);
    assert_eq!((driver.status(), driver.workers()), (15 | 64, 0));
    driver.shared.refuses.store(false, Ordering::Relaxed);
    driver.bring_up(&ring);
    assert_eq!((driver.status(), driver.workers()), (15, 1));
}

#[test]
fn a_host_without_threads_leaves_the_device_needing_a_reset() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.enable_msix();
    driver.host.refuse(true);
    driver.bring_up(&ring);
    assert_eq!((driver.status(), driver.workers()), (15 | 64, 0));
    assert!(driver.host.doorbells().is_empty());

    driver.host.refuse(false);
    driver.bring_up(&ring);
    driver.function.pause();
    driver.host.refuse(true);
    assert!(driver.function.resume().is_err());
    assert_eq!(driver.status(), 15 | 64);
}

#[test]
fn pause_and_resume_keep_the_place_in_the_queue() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    offer(&ring);
    driver.kick(0);
    wait_until(|| ring.used().idx().load() == 1);

    driver.function.pause();
    driver.function.pause();
    offer(&ring);
    driver.kick(0);
    assert_eq!((ring.used().idx().load(), driver.workers()), (1, 1));

    driver.function.resume().unwrap();
    driver.function.resume().unwrap();
    wait_until(|| ring.used().idx().load() == 2);
    assert_eq!(ring.used().ring().ref_at(1).unwrap().load().id(), 1);
    assert_eq!(driver.shared.activations.lock().unwrap().len(), 1);
}

#[test]
fn a_device_activated_while_paused_starts_with_resume() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.function.pause();
    offer(&ring);
    driver.bring_up(&ring);
    assert_eq!((driver.status(), driver.workers()), (15, 1));
    assert_eq!(ring.used().idx().load(), 0);
    driver.function.resume().unwrap();
    wait_until(|| ring.used().idx().load() == 1);
}

#[test]
fn doorbells_follow_the_bar() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    assert_eq!(driver.host.doorbells(), [driver.doorbell(0)]);
    driver.set_config(4, 2, 0);
    assert!(driver.host.doorbells().is_empty(), "decode is off");
    driver.set_config(0x10, 4, LOW + 0x1_0000);
    driver.set_config(0x14, 4, 0);
    driver.set_config(4, 2, 2);
    assert_eq!(driver.host.doorbells(), [driver.doorbell(0)]);
    assert_eq!(driver.bar(), LOW + 0x1_0000);
    driver.set_config(0x10, 4, LOW + 0x2_0000);
    assert_eq!(driver.host.doorbells(), [driver.doorbell(0)]);
    driver.set_config(0x10, 4, 0);
    assert!(driver.host.doorbells().is_empty(), "outside the windows");
}

#[test]
fn a_doorbell_the_host_refuses_still_rings_by_exit() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    driver.host.refuse(true);
    driver.set_config(0x10, 8, driver.bar() + 0x8000);
    assert!(driver.host.doorbells().is_empty());
    offer(&ring);
    driver.kick(0);
    wait_until(|| ring.used().idx().load() == 1);
}

#[test]
fn a_device_that_goes_away_takes_its_doorbells_along() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    let Driver { bus, root, function, host, shared, .. } = driver;
    drop((bus, root, function));
    assert!(host.doorbells().is_empty());
    assert_eq!(shared.workers.load(Ordering::Relaxed), 0);
}

#[test]
fn a_configuration_change_reaches_its_vector() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    let generation = driver.common(0x15, 1);
    driver.shared.config.write(0, &[0xaa]);
    driver.function.interrupt().config_changed();
    assert_eq!(driver.host.triggered().last(), Some(&0));
    assert_ne!(driver.common(0x15, 1), generation);
    let device = driver.bar() + driver.area(4).offset;
    assert_eq!(driver.read(device, 2), 0x02aa);
}

#[test]
fn a_worker_that_gives_up_makes_the_status_say_so() {
    let driver = Driver::new();
    let ring = ring(&driver.memory, 0x1000);
    driver.bring_up(&ring);
    ring.avail().idx().store(0x7000);
    driver.kick(0);
    wait_until(|| driver.status() == 15 | 64);
    assert!(driver.host.triggered().contains(&0));
    driver.set_status(0);
    assert_eq!(driver.status(), 0);
}
