//! Guests with slots: each partition is a NUMA node, and functions run there through
//! `scripts/tessera-function`, as they would on a user's machine.

use std::ops::Deref;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::artefact::Artefact;
use crate::config::Config;
use crate::image::Image;
use crate::patience::{until, within};
use crate::tessera::{Tessera, Vm};

/// From Debian's start to a login; systemd takes its time.
const LOGIN: u32 = 400;

/// For a partition to come, or to go.
const MOVING: u32 = 60;

/// What users copy into their guests.
const SCRIPT: &[u8] = include_bytes!("../../scripts/tessera-function");

/// A running guest with slots, whose shell is a plain one, with the script and `hog` in its path.
pub struct SlotGuest {
    vm: Tessera,
    /// Its disks: Debian's, where there is one, and that of the tools.
    _images: Vec<Image>,
}

impl SlotGuest {
    /// Debian with its own kernel: all of it keeps to node 0.
    ///
    /// # Errors
    /// An artefact is missing, or the guest does not come up.
    pub fn debian(memory: &Value, words: &str) -> Result<Self> {
        let (image, tools) = (Image::copy_of(&Artefact::DebianImage.path()?)?, tools()?);
        let config = Config::debian(&image.path())?
            .disk(json!({ "path": tools.path() }))
            .cmdline(&format!("quiet {words}"));
        let config = set_memory(config, memory);
        let vm = Vm::from(config).prompt("root@tessera:~# ").boot()?;
        vm.console().wait_for_within("tessera login: root (automatic login)", within(LOGIN))?;
        vm.console().wait_for_shell()?;
        // Bash draws each letter of a line anew; that takes longer than most commands here.
        vm.console().send("exec env PS1='root@tessera:~# ' sh\n")?;
        vm.console().wait_for_shell()?;
        // The driver of virtio-mem is a module, which may come after the login.
        vm.shell("tar -xf /dev/vdb -C /usr/local/bin; udevadm settle")?;
        let guest = Self { vm, _images: vec![image, tools] };
        guest.prepare()?;
        Ok(guest)
    }

    /// Our small guest with our kernel: all of it keeps to node 0.
    ///
    /// # Errors
    /// As [`SlotGuest::debian`].
    pub fn ours(memory: &Value, words: &str) -> Result<Self> {
        Self::ours_with(memory, words, |vm| vm)
    }

    /// The same, with its events.
    ///
    /// # Errors
    /// As [`SlotGuest::debian`].
    pub fn ours_with_events(memory: &Value, words: &str) -> Result<Self> {
        Self::ours_with(memory, words, Vm::with_events)
    }

    fn ours_with(memory: &Value, words: &str, more: impl FnOnce(Vm) -> Vm) -> Result<Self> {
        let tools = tools()?;
        let config = Config::vmlinux()?.disk(json!({ "path": tools.path() })).cmdline(words);
        let vm = more(Vm::from(set_memory(config, memory))).boot()?;
        vm.shell("tar -xf /dev/vda -C /bin; mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
        let guest = Self { vm, _images: vec![tools] };
        guest.prepare()?;
        Ok(guest)
    }

    fn prepare(&self) -> Result<()> {
        self.shell("tessera-function prepare").map(drop)
    }

    /// Adds a partition and returns its node. Does not wait for the guest to take it.
    ///
    /// # Errors
    /// The monitor does not want to.
    pub fn add(&self, id: &str, size: u64) -> Result<u64> {
        let body = json!({"id": id, "size": size, "cookie": 7});
        let added = self.api().put_json("vm.add-partition", &body)?.expect(200)?.body;
        ensure!(added["id"] == id && added["size"] == size, "not what was asked for: {added}");
        added["node"].as_u64().context("no node")
    }

    /// Waits until the guest has all of each partition.
    ///
    /// # Errors
    /// It does not come to that.
    pub fn plugged(&self) -> Result<()> {
        until("the guest to plug the slots", within(MOVING), || {
            let has_all = |one: &Value| one["state"] == "plugged" && one["plugged"] == one["size"];
            Ok(self.partitions()?.iter().all(has_all).then_some(()))
        })
    }

    /// Removes a partition and returns it as it was last.
    ///
    /// # Errors
    /// It is still there when patience is over.
    pub fn remove(&self, id: &str) -> Result<Value> {
        let body = json!({"id": id, "timeout_ms": 60_000});
        let gone = self.api().put_json("vm.remove-partition", &body)?.expect(200)?.body;
        ensure!(gone["state"] == "absent" && gone["plugged"] == 0, "not gone: {gone}");
        Ok(gone)
    }

    /// Powers the guest off at once.
    ///
    /// # Errors
    /// The monitor does not end well.
    pub fn power_off(self) -> Result<()> {
        self.vm.power_off()
    }
}

impl Deref for SlotGuest {
    type Target = Tessera;

    fn deref(&self) -> &Tessera {
        &self.vm
    }
}

fn set_memory(config: Config, memory: &Value) -> Config {
    let fields = memory.as_object().into_iter().flatten();
    fields
        .fold(config, |config, (name, value)| config.set(&format!("memory.{name}"), value.clone()))
}

/// A disk that is a tar archive of the script and of `hog`.
fn tools() -> Result<Image> {
    let folder = tempfile::tempdir()?;
    let hog = guest_program("hog")?;
    for (name, content) in [("tessera-function", SCRIPT), ("hog", &hog)] {
        std::fs::write(folder.path().join(name), content)?;
    }
    let image = Image::with(&[])?;
    let mut tar = Command::new("tar");
    tar.args(["--mode=0755", "--owner=0", "--group=0", "-cf"]).arg(image.path());
    tar.arg("-C").arg(folder.path()).args(["tessera-function", "hog"]);
    let status = tar.status().context("cannot run tar")?;
    ensure!(status.success(), "tar ended with {status}");
    Ok(image)
}

/// A program of `tests/guest`, for guests that do not boot from our initial file system.
fn guest_program(name: &str) -> Result<Vec<u8>> {
    let archive = Artefact::ProgramsInitramfs.path()?;
    let unpacked = Command::new("gzip").arg("-dc").arg(archive).output();
    let unpacked = unpacked.context("cannot run gzip")?.stdout;
    let path = format!("bin/{name}");
    let found = find_in_cpio(&unpacked, &path);
    found.map(<[u8]>::to_vec).with_context(|| format!("no {path} in the initial file system"))
}

/// A file's content in "newc" cpio archives, one after the other, with zeros between them.
fn find_in_cpio<'a>(archives: &'a [u8], path: &str) -> Option<&'a [u8]> {
    const HEADER: usize = 110;
    let mut at = 0;
    while let Some(header) = archives.get(at..at + HEADER) {
        if !header.starts_with(b"070701") {
            at += 4;
            continue;
        }
        let field = |number: usize| {
            let digits = str::from_utf8(&header[6 + 8 * number..][..8]).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let name = archives.get(at + HEADER..)?.get(..name_size)?;
        let content = (at + HEADER + name_size).next_multiple_of(4);
        if name.strip_suffix(b"\0") == Some(path.as_bytes()) {
            return archives.get(content..content + size);
        }
        at = (content + size).next_multiple_of(4);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, content: &[u8]) -> Vec<u8> {
        let mut fields = [0; 13];
        (fields[6], fields[11]) = (content.len(), name.len() + 1);
        let fields: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        let mut entry = format!("070701{fields}{name}\0").into_bytes();
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry.extend(content);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry
    }

    #[test]
    fn a_file_is_found_in_the_second_of_two_archives() {
        let first = [entry("bin/a", b"one"), entry("TRAILER!!!", b"")].concat();
        let second = [entry("bin/hog", b"content"), entry("TRAILER!!!", b"")].concat();
        let archives = [first, vec![0; 8], second].concat();
        assert_eq!(find_in_cpio(&archives, "bin/hog"), Some(&b"content"[..]));
        assert_eq!(find_in_cpio(&archives, "bin/a"), Some(&b"one"[..]));
        assert_eq!(find_in_cpio(&archives, "bin/b"), None);
        assert_eq!(find_in_cpio(&archives[..archives.len() - 20], "bin/c"), None);
    }
}
