//! A guest that writes anything anywhere.

use super::*;
use crate::lifecycle::Lifecycle;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Config { register: u64, len: usize, value: u64 },
    Bar { offset: u64, len: usize, value: u64 },
    Common { register: u64, len: usize, value: u64 },
    BringUp,
    Pause,
    Resume,
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..20, Just(0x1000), Just(u64::MAX), Just(1 << 31), any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let register = (0u64..0x40, prop_oneof![Just(1usize), Just(2), Just(4), Just(8)]);
    prop_oneof![
        2 => (0u64..0x1000, 0usize..9, value())
            .prop_map(|(register, len, value)| Step::Config { register, len, value }),
        2 => (0u64..0x8000, 0usize..9, value())
            .prop_map(|(offset, len, value)| Step::Bar { offset, len, value }),
        6 => (register, value())
            .prop_map(|((register, len), value)| Step::Common { register, len, value }),
        2 => Just(Step::BringUp),
        1 => Just(Step::Pause),
        1 => Just(Step::Resume),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nothing panics or hangs, and a worker exists only while the status says that it may.
    #[test]
    fn any_sequence_of_accesses_is_survived(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let driver = Driver::new();
        let bar = driver.bar();
        for step in steps {
            match step {
                Step::Config { register, len, value } => {
                    driver.set_config(register, len, value);
                    driver.config(register, len);
                }
                Step::Bar { offset, len, value } => {
                    driver.function.bar_write(0, offset, &value.to_le_bytes()[..len.min(8)]);
                    driver.read(bar + offset, len.min(8));
                }
                Step::Common { register, len, value } => {
                    driver.function.bar_write(0, register, &value.to_le_bytes()[..len]);
                }
                Step::BringUp => driver.bring_up(&ring(&driver.memory, 0x1000)),
                Step::Pause => driver.function.pause(),
                Step::Resume => driver.function.resume().unwrap(),
            }
            let mut status = [0];
            driver.function.bar_read(0, 0x14, &mut status);
            prop_assert!(driver.workers() == 0 || status[0] & 4 != 0);
            prop_assert!(driver.host.doorbells().len() <= driver.workers());
        }
        driver.function.bar_write(0, 0x14, &[0]);
        prop_assert_eq!((driver.workers(), driver.host.doorbells().len()), (0, 0));
    }
}

/// Each offset and width once, on a live device: nothing panics.
#[test]
fn every_offset_and_width_can_be_read_and_written() {
    let driver = Driver::new();
    driver.bring_up(&ring(&driver.memory, 0x1000));
    for len in 0..=8 {
        for offset in 0..0x8000 {
            driver.function.bar_read(0, offset, &mut vec![0; len]);
            driver.function.bar_write(0, offset, &vec![0xff; len]);
        }
        for register in 0..0x1000 {
            driver.function.config_read(register, &mut vec![0; len]);
            driver.function.config_write(register, &vec![0xff; len]);
        }
    }
    driver.function.bar_write(0, 0x14, &[0]);
    assert_eq!(driver.workers(), 0);
}
