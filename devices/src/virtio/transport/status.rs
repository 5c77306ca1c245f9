//! The device status field (virtio 1.3, 2.1), as a state machine.
//!
//! ```text
//!  0 -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK
//!                                (if acceptable)
//!  any -> FAILED, which only a reset leaves      any -> 0: reset
//! ```
//!
//! A driver can add bits only in this order, several at a time, and take none back.

/// The driver has found the device.
pub(super) const ACKNOWLEDGE: u8 = 1;
/// It knows how to drive it.
pub(super) const DRIVER: u8 = 2;
/// It is ready; queues are live.
pub(super) const DRIVER_OK: u8 = 4;
/// Features are agreed on.
pub(super) const FEATURES_OK: u8 = 8;
/// The device is broken until it is reset. The device's to set, not the driver's.
pub(super) const NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub(super) const FAILED: u8 = 128;

const ORDER: [u8; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// The bits a driver has set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Status(u8);

impl Status {
    pub(super) fn bits(self) -> u8 {
        self.0
    }

    pub(super) fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// What the status becomes when the driver writes `written`, not 0: each bit is taken in order
    /// as far as the order holds. `acceptable` tells whether the features it chose will do. A write
    /// that takes a bit back, or comes after FAILED, changes nothing.
    pub(super) fn after(self, written: u8, acceptable: bool) -> Self {
        if self.has(FAILED) || self.0 & !written != 0 {
            return self;
        }
        let taken = ORDER
            .into_iter()
            .take_while(|&bit| written & bit != 0 && (bit != FEATURES_OK || acceptable));
        Self(taken.fold(written & FAILED, |bits, bit| bits | bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walk(writes: &[u8], acceptable: bool) -> u8 {
        writes.iter().fold(Status::default(), |status, &w| status.after(w, acceptable)).bits()
    }

    #[test]
    fn the_bits_are_taken_in_order() {
        assert_eq!(walk(&[1, 3, 11, 15], true), 15);
        assert_eq!(walk(&[15], true), 15);
        assert_eq!(walk(&[1, 3, 7], true), 3, "DRIVER_OK before FEATURES_OK");
        assert_eq!(walk(&[2], true), 0);
        assert_eq!(walk(&[4], true), 0);
    }

    #[test]
    fn unacceptable_features_stop_before_features_ok() {
        assert_eq!(walk(&[1, 3, 11], false), 3);
        assert_eq!(walk(&[15], false), 3);
    }

    #[test]
    fn bits_are_never_taken_back() {
        assert_eq!(walk(&[15, 1, 2, 8], true), 15);
    }

    #[test]
    fn failed_is_final() {
        assert_eq!(walk(&[3, 0x83, 0x8b, 0xff], true), 0x83);
    }

    #[test]
    fn needs_reset_is_not_the_drivers_to_set() {
        assert_eq!(walk(&[0x41, 0x43], true), 3);
    }

    proptest! {
        #[test]
        fn every_reachable_status_is_a_prefix_of_the_order(
            writes in proptest::collection::vec((1u8.., any::<bool>()), 0..20),
        ) {
            let mut status = Status::default();
            for (written, acceptable) in writes {
                status = status.after(written, acceptable);
                prop_assert!([0, 1, 3, 11, 15].contains(&(status.bits() & !FAILED)));
            }
        }
    }
}
