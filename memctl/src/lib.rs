//! Who owns which block of guest memory, and what is allowed next. No I/O.
//!
//! - [`units`]: sizes as types.
//! - [`blocks`]: what the guest plugs, and the one way from its numbers to a range.
//! - [`map`]: which blocks are plugged.
//! - [`partition`]: one owner, its sizes and its life.
//! - [`partitioner`]: the truth on one region. Start there.
#![forbid(unsafe_code)]

pub mod blocks;
pub mod map;
mod owners;
pub mod partition;
pub mod partitioner;
pub mod units;

pub use blocks::{BlockIndex, BlockRange, Blocks, Geometry, GeometryError, RangeError};
pub use map::BlockMap;
pub use partition::{
    Account, Change, Cookie, Counters, Hint, Hints, NameError, Partition, PartitionId,
    PartitionName, PartitionState, Policy, Watch,
};
pub use partitioner::{
    Answer, Broken, HostError, Layout, Mode, Owner, Partitioner, Plug, PlugState, Refusal, Resize,
    Unplug,
};
pub use units::{Bytes, ParseBytesError};
