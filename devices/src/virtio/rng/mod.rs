//! virtio-rng (virtio 1.3, 5.4).
