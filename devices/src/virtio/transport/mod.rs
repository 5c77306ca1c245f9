//! virtio over PCI (virtio 1.3, 4.1): everything between a guest's register accesses and a device
//! model's queues.
//!
//! How a driver brings a device to life, and which file answers:
//!
//! ```text
//!  driver                                      here
//!  ------------------------------------------  -----------------------------------------------
//!  finds vendor 0x1af4 on the bus, walks the   layout: one BAR, five virtio capabilities that
//!    capabilities, maps the BAR                  point into it, and MSI-X
//!  status: ACKNOWLEDGE, DRIVER                 status: the state machine
//!  reads and writes features, FEATURES_OK      common: the register map
//!  for each queue: size, rings, vector, enable common, queue_setup
//!  status: DRIVER_OK                           function: checks the rings, asks the device for
//!                                                its workers, starts them, binds the doorbells
//!  adds buffers, rings the doorbell            doorbells: an eventfd per queue, rung by the host
//!                                                kernel without an exit
//!  takes used buffers on an interrupt          interrupts: queue -> MSI-X vector, no lock
//!  status: 0                                   function: joins the workers, forgets the queues
//! ```
//!
//! Legacy (0.9) drivers are not served; neither are queue reset, notification data nor an IOMMU.
//!
//! **Invariant:** workers exist exactly while the status has DRIVER_OK and activation succeeded.
//!
//! **Invariant:** interrupting and ringing a doorbell take no lock, so that a worker can be joined
//! under the transport's lock.

mod common;
mod doorbells;
mod function;
mod interrupts;
mod layout;
mod queue_setup;
mod status;

#[cfg(test)]
mod tests;

pub use function::{TransportError, VirtioPci};
