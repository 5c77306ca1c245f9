//! PCI: configuration space, MSI-X, the root bus (PCI local bus 3.0, PCI Express 5.0 for ECAM).
