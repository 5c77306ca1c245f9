//! Checks of character devices and disks.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::check::Problems;
use super::{CharMode, Disk};
use crate::api::config::{CharConfig, CharModeConfig, DiskConfig};

/// More than PCI functions on a bus; bounds the work a request can cause.
const MAX_DISKS: usize = 256;
/// Length of the identity a virtio block device answers with (virtio 1.3, 5.2.6).
const MAX_SERIAL: usize = 20;
/// What a qcow2 image begins with.
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// The serial port.
pub(super) fn serial(config: &CharConfig, problems: &mut Problems) -> CharMode {
    mode("serial", config, problems)
}

/// The virtio console. One terminal cannot serve it and the serial port.
pub(super) fn console(
    config: &CharConfig,
    serial: &CharConfig,
    problems: &mut Problems,
) -> CharMode {
    if config.mode == CharModeConfig::Tty && serial.mode == CharModeConfig::Tty {
        problems.add("console.mode", "serial.mode is Tty too; turn one of them Off");
    }
    if config.mode == CharModeConfig::Socket {
        problems.add("console.mode", "Socket is for the serial port only; use another");
    }
    mode("console", config, problems)
}

fn mode(name: &str, config: &CharConfig, problems: &mut Problems) -> CharMode {
    let mut path = |field: &str, path: &Option<PathBuf>| {
        if path.as_deref().is_none_or(|path| path.as_os_str().is_empty()) {
            let problem = format!("missing; mode {:?} needs a path", config.mode);
            problems.add(format_args!("{name}.{field}"), problem);
        }
        path.clone().unwrap_or_default()
    };
    match config.mode {
        CharModeConfig::Off => CharMode::Off,
        CharModeConfig::Null => CharMode::Null,
        CharModeConfig::Tty => CharMode::Tty,
        CharModeConfig::Pty => CharMode::Pty,
        CharModeConfig::File => CharMode::File(path("file", &config.file)),
        CharModeConfig::Socket => CharMode::Socket(path("socket", &config.socket)),
    }
}

/// The disks, each with an id of its own.
pub(super) fn disks(configs: &[DiskConfig], vcpus: u8, problems: &mut Problems) -> Vec<Disk> {
    if configs.len() > MAX_DISKS {
        let problem = format!("{} disks; use at most {MAX_DISKS}", configs.len());
        problems.add("disks", problem);
        return Vec::new();
    }
    let mut ids = given_ids(configs, problems);
    let disks = configs.iter().enumerate();
    disks.map(|(index, config)| disk(index, config, vcpus, &mut ids, problems)).collect()
}

fn given_ids(configs: &[DiskConfig], problems: &mut Problems) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    for (index, config) in configs.iter().enumerate() {
        let Some(id) = &config.id else { continue };
        let path = format!("disks[{index}].id");
        if id.is_empty() {
            problems.add(path, "empty; leave it out or name the disk");
        } else if id.starts_with("__") {
            problems.add(path, format_args!("{id}: names with two underscores are reserved"));
        } else if !ids.insert(id.clone()) {
            problems.add(path, format_args!("{id} is taken; each id is used once"));
        }
    }
    ids
}

fn disk(
    index: usize,
    config: &DiskConfig,
    vcpus: u8,
    ids: &mut BTreeSet<String>,
    problems: &mut Problems,
) -> Disk {
    let field = |name: &str| format!("disks[{index}].{name}");
    let path = config.path.clone().unwrap_or_default();
    if config.path.is_some() {
        image(&field("path"), &path, config, problems);
    } else if !config.vhost_user {
        problems.add(field("path"), "missing; name a raw image or a block device");
    }
    if let Some(kind) = config.image_type.as_deref().filter(|kind| *kind != "Raw") {
        problems.add(field("image_type"), format_args!("{kind} is not supported; use Raw"));
    }
    let queues = u64::from(vcpus.max(1));
    Disk {
        id: config.id.clone().unwrap_or_else(|| free_id(ids)),
        path,
        readonly: config.readonly,
        direct: config.direct,
        queues: problems.range(field("num_queues"), config.num_queues.into(), 1..=queues),
        queue_size: queue_size(&field("queue_size"), config.queue_size, problems),
        serial: disk_serial(&field("serial"), config.serial.as_deref(), problems),
    }
}

/// The first `_diskN` that no disk has.
fn free_id(ids: &mut BTreeSet<String>) -> String {
    let mut number = 0;
    loop {
        let id = format!("_disk{number}");
        if ids.insert(id.clone()) {
            return id;
        }
        number += 1;
    }
}

fn image(field: &str, path: &Path, config: &DiskConfig, problems: &mut Problems) {
    // Opening a pipe would wait for its other end, so look first.
    let opened = std::fs::metadata(path).and_then(|metadata| {
        let kind = metadata.file_type();
        let usable = kind.is_file() || kind.is_block_device();
        let open = || OpenOptions::new().read(true).write(!config.readonly).open(path);
        usable.then(open).transpose()
    });
    let mut file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => {
            let path = path.display();
            problems.add(field, format_args!("{path} is neither a file nor a block device"));
            return;
        }
        Err(error) => return problems.cannot_open(field, path, &error),
    };
    let mut magic = [0; QCOW2_MAGIC.len()];
    let untold = config.image_type.is_none();
    if untold && file.read_exact(&mut magic).is_ok() && magic == *QCOW2_MAGIC {
        let path = path.display();
        let problem = format!("{path} looks like qcow2; convert it, or say image_type Raw");
        problems.add(field, problem);
    }
}

fn queue_size(field: &str, size: u32, problems: &mut Problems) -> u16 {
    if size != 0 && !size.is_power_of_two() {
        problems.add(field, format_args!("{size} is not a power of two; use 1 to 32768"));
        return 0;
    }
    problems.range(field, size.into(), 1..=32768)
}

fn disk_serial(field: &str, serial: Option<&str>, problems: &mut Problems) -> String {
    let serial = serial.unwrap_or_default();
    if serial.len() > MAX_SERIAL {
        let problem = format!("{} bytes; use at most {MAX_SERIAL}", serial.len());
        problems.add(field, problem);
    } else if !serial.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        problems.add(field, "use printable ASCII characters");
    }
    serial.to_owned()
}
