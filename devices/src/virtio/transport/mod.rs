//! virtio over PCI (virtio 1.3, 4.1).
