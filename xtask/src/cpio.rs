//! A writer of the "newc" cpio archives that Linux unpacks as its initial root file system.
//! Format: `Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel.

use std::io::{self, Write};

/// What an entry of the archive is.
enum Kind {
    Directory,
    File,
}

impl Kind {
    /// The file type bits of `st_mode`.
    fn bits(&self) -> u32 {
        match self {
            Kind::Directory => 0o040_000,
            Kind::File => 0o100_000,
        }
    }
}

/// An archive being written. Owners are root and times zero, so equal inputs give equal bytes.
pub(crate) struct Archive<W: Write> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// An archive with no entry.
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a folder; its parent must have been added before.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, &Kind::Directory, 0o755, &[])
    }

    /// Adds a file with the permission bits `mode`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, &Kind::File, mode, content)
    }

    /// Ends the archive and gives the writer back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0)?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, kind: &Kind, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file above 4 GiB"))?;
        self.inode += 1;
        self.header(path, kind.bits() | mode, size)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Magic, thirteen fields of eight hexadecimal digits, the name with its zero byte, padding.
    fn header(&mut self, path: &str, mode: u32, size: u32) -> io::Result<()> {
        let name_size = path.len() as u32 + 1;
        let links = 1;
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        write!(self.out, "{path}\0")?;
        self.pad(6 + 8 * fields.len() + path.len() + 1)
    }

    /// Headers and contents both end on a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_start_on_multiples_of_four_bytes() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("bin").unwrap();
        archive.file("bin/a", 0o755, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<_> =
            bytes.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(i, _)| i).collect();
        assert_eq!(starts, [0, 116, 240]);
    }

    #[test]
    fn cpio_of_the_system_unpacks_what_was_written() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("etc").unwrap();
        archive.file("etc/hello", 0o640, b"hello\n").unwrap();
        let bytes = archive.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.cpio"), bytes).unwrap();
        let listing = crate::process::output(
            std::process::Command::new("sh")
                .current_dir(dir.path())
                .args(["-c", "cpio -i --quiet < a.cpio && cat etc/hello && stat -c %a etc/hello"]),
        )
        .unwrap();
        assert_eq!(listing, "hello\n640\n");
    }
}
