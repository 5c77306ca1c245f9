//! What the driver sees before it sends a request.

use super::*;

fn device(mock: Mock, options: BlockOptions) -> Block {
    Block::new(Box::new(mock), options)
}

fn number(block: &Block, offset: usize, len: usize) -> u64 {
    let mut bytes = [0; 8];
    block.config().read(offset, &mut bytes[..len]);
    u64::from_le_bytes(bytes)
}

#[test]
fn the_configuration_is_laid_out_as_specified() {
    let block = device(Mock::new(), BlockOptions { queues: 3, queue_size: 128, ..options() });
    for (offset, len, value, name) in [
        (0, 8, DISK_SECTORS, "capacity"),
        (8, 4, 1 << 20, "size_max"),
        (12, 4, 126, "seg_max"),
        (20, 4, 1024, "blk_size"),
        (24, 1, 2, "physical_block_exp"),
        (26, 2, 4, "min_io_size"),
        (32, 1, 0, "writeback"),
        (34, 2, 3, "num_queues"),
        (36, 4, 1 << 21, "max_discard_sectors"),
        (40, 4, 1, "max_discard_seg"),
        (44, 4, 8, "discard_sector_alignment"),
        (48, 4, 1 << 15, "max_write_zeroes_sectors"),
        (52, 4, 1, "max_write_zeroes_seg"),
        (56, 1, 1, "write_zeroes_may_unmap"),
    ] {
        assert_eq!(number(&block, offset, len), value, "{name}");
    }
    assert_eq!(block.queue_sizes(), [128; 3]);
    assert_eq!(block.device_id(), 2);
}

#[test]
fn the_smallest_and_the_largest_ring_have_a_segment_limit() {
    for (queue_size, seg_max) in [(1, 1), (2, 1), (4, 2), (256, 254), (32768, 254)] {
        let block = device(Mock::new(), BlockOptions { queue_size, ..options() });
        assert_eq!(number(&block, 12, 4), seg_max, "{queue_size}");
    }
}

#[test]
fn features_follow_access_and_queues() {
    let (ro, mq) = (1 << 5, 1 << 12);
    let always = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10;
    let mut mock = Mock::new();
    assert_eq!(device(mock.clone(), options()).features(), always | F_DISCARD | F_WRITE_ZEROES);
    mock.geometry.readonly = true;
    let block = device(mock, BlockOptions { queues: 2, ..options() });
    assert_eq!(block.features(), always | ro | mq);
}

#[test]
fn one_worker_per_enabled_queue_named_after_disk_and_queue() {
    let memory = testing::memory();
    let (first, third) = (testing::ring(&memory, 0), testing::ring(&memory, 0x8000));
    let interrupts = Arc::new(Interrupts::default());
    for (name, expected) in [
        ("_disk0", ["_disk0_q0", "_disk0_q2"]),
        ("a-long-identifier", ["a-long-ident_q0", "a-long-ident_q2"]),
        ("ääääääää", ["ääääää_q0", "ääääää_q2"]),
    ] {
        let mut block = device(Mock::new(), BlockOptions { name: name.into(), ..options() });
        let queue = |index, ring| Some(testing::queue(index, ring, &memory, &interrupts));
        let activation = Activation {
            features: 0,
            memory: Arc::clone(&memory),
            queues: vec![queue(0, &first), None, queue(2, &third)],
            interrupt: Arc::clone(&interrupts) as _,
        };
        let workers = block.activate(activation).unwrap();
        let names: Vec<_> = workers.iter().map(|worker| worker.name()).collect();
        assert_eq!(names, expected);
    }
}
