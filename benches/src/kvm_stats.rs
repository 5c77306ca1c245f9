//! KVM's own counters of a virtual machine: `/sys/kernel/debug/kvm` (Linux,
//! `Documentation/virt/kvm/api.rst`, 4.133). They count alike whatever monitor runs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

/// Where debugfs shows them.
const ROOT: &str = "/sys/kernel/debug/kvm";

/// Mounts debugfs, unless it is there. For the lab: on a machine of their own, people decide.
///
/// # Errors
/// There is no `mount`. That mounting fails is none: then there are no counters.
pub fn mount() -> io::Result<()> {
    if !Path::new(ROOT).exists() {
        Command::new("mount").args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"]).status()?;
    }
    Ok(())
}

/// The counters of the process's VM, those that are not zero; none where the folder may not be
/// read or where the process has no VM.
pub fn of_process(pid: u32) -> BTreeMap<String, u64> {
    read(Path::new(ROOT), pid)
}

/// How often the guest of a process has left it for the host so far, for whatever reason; `None`
/// where [`of_process`] has no counters.
pub fn exits(pid: u32) -> Option<u64> {
    exits_in(Path::new(ROOT), pid)
}

fn exits_in(root: &Path, pid: u32) -> Option<u64> {
    let text = fs::read_to_string(folders(root, pid).next()?.path().join("exits")).ok()?;
    text.trim().parse().ok()
}

fn folders(root: &Path, pid: u32) -> impl Iterator<Item = fs::DirEntry> {
    let prefix = format!("{pid}-");
    let folders = fs::read_dir(root).into_iter().flatten().flatten();
    folders.filter(move |entry| entry.file_name().to_string_lossy().starts_with(&prefix))
}

fn read(root: &Path, pid: u32) -> BTreeMap<String, u64> {
    folders(root, pid)
        .flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten())
        .filter_map(|file| {
            let value = fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
            Some((file.file_name().to_string_lossy().into_owned(), value))
        })
        .filter(|(_, value)| *value != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_process_and_only_numbers_are_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("12-9/exits", "345\n");
        write("12-9/halt_exits", "0\n");
        write("12-9/words", "no number\n");
        write("12-9/vcpu0/guest_mode", "1\n");
        write("123-9/exits", "1\n");
        write("exits", "9\n");
        assert_eq!(read(root.path(), 12), BTreeMap::from([("exits".to_owned(), 345)]));
        assert!(read(&root.path().join("none"), 12).is_empty());
        assert_eq!(exits_in(root.path(), 12), Some(345));
        assert_eq!(exits_in(root.path(), 13), None);
    }
}
