//! What the command line says when something is wrong, and the status it ends with: 1 for what
//! went wrong, 2 for how it was called.

use std::fs;
use std::path::Path;

use guest_tests::{Artefact, Ended, Result, run};
use tempfile::TempDir;

/// Runs a monitor that is to fail, with this kernel and more.
fn boot(kernel: &Path, more: &[&str]) -> Result<Ended> {
    let kernel = kernel.display().to_string();
    let console = ["--console", "off", "--serial", "null"];
    run(["--kernel", &kernel].into_iter().chain(console).chain(more.iter().copied()))
}

/// Whether the monitor ended with this status, and said all of `parts` and nothing of a panic.
fn says(ended: &Ended, status: i32, parts: &[&str]) {
    assert_eq!(ended.status, status, "{}", ended.error);
    for part in parts {
        assert!(ended.error.contains(part), "no {part:?} in: {}", ended.error);
    }
    assert!(!ended.error.contains("panicked"), "{}", ended.error);
    assert_eq!(ended.output, "", "errors belong on standard error");
}

/// The first bytes of a file, as a file of its own.
fn beginning_of(artefact: Artefact, length: usize, folder: &TempDir) -> Result<std::path::PathBuf> {
    let path = folder.path().join(format!("{artefact:?}-{length}"));
    let whole = fs::read(artefact.path()?)?;
    fs::write(&path, &whole[..length])?;
    Ok(path)
}

#[test]
fn kernels_that_are_missing_or_none_are_named() -> Result<()> {
    let folder = TempDir::new()?;
    says(&boot(Path::new("/no/such/kernel"), &[])?, 1, &["payload.kernel", "/no/such/kernel"]);
    let path = folder.path().join("text");
    for content in ["", "x", "no kernel at all\n"] {
        fs::write(&path, content.repeat(5000))?;
        says(&boot(&path, &[])?, 1, &["payload.kernel", "neither an ELF vmlinux nor a bzImage"]);
    }
    says(&boot(folder.path(), &[])?, 1, &["payload.kernel"]);
    Ok(())
}

#[test]
fn truncated_kernels_are_refused_at_once() -> Result<()> {
    let folder = TempDir::new()?;
    for artefact in [Artefact::Vmlinux, Artefact::BzImage] {
        let length = usize::try_from(fs::metadata(artefact.path()?)?.len())?;
        for length in [100, 5000, length / 2] {
            let kernel = beginning_of(artefact, length, &folder)?;
            says(&boot(&kernel, &[])?, 1, &["payload.kernel"]);
        }
        let half = boot(&beginning_of(artefact, length / 2, &folder)?, &[])?;
        says(&half, 1, &["truncated"]);
    }
    Ok(())
}

#[test]
fn payloads_that_do_not_fit_memory_are_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let kernel = Artefact::Vmlinux.path()?;
    let initramfs = folder.path().join("initramfs");
    fs::File::create(&initramfs)?.set_len(120 << 20)?;
    let arguments = ["--initramfs", &initramfs.display().to_string(), "--memory", "size=128M"];
    says(&boot(&kernel, &arguments)?, 1, &["memory.size", "initramfs", "raise it"]);
    says(&boot(&kernel, &["--memory", "size=4M"])?, 1, &["memory.size"]);
    let long = "x".repeat(100_000);
    says(&boot(&kernel, &["--cmdline", &long])?, 1, &["payload.cmdline"]);
    says(&boot(&kernel, &["--initramfs", "/no/such/file"])?, 1, &["payload.initramfs"]);
    Ok(())
}

#[test]
fn wrong_options_are_run_time_errors_and_wrong_usage_is_not() -> Result<()> {
    let kernel = Artefact::Vmlinux.path()?;
    says(&boot(&kernel, &["--memory", "size=128M,colour=red"])?, 1, &["colour"]);
    says(&boot(&kernel, &["--cpus", "boot=none"])?, 1, &["boot"]);
    says(
        &boot(&kernel, &["--disk", "path=/no/such/disk"])?,
        1,
        &["disks[0].path", "/no/such/disk"],
    );
    says(&boot(&kernel, &["--disk", "path=/dev/null"])?, 1, &["disks[0].path"]);
    says(&run(["--no-such-option"])?, 2, &["--no-such-option"]);
    says(&boot(&kernel, &["--net", "tap=tap0"])?, 2, &["--net is not supported yet"]);
    says(&boot(&kernel, &["--seccomp", "true"])?, 1, &["use --seccomp false"]);
    says(&run(["--memory", "size=128M"])?, 2, &["--kernel"]);
    assert_eq!(run(std::iter::empty::<&str>())?.status, 2, "neither a VM nor an API socket");
    let help = run(["--help"])?;
    assert_eq!((help.status, help.error.as_str()), (0, ""));
    assert!(help.output.contains("--api-socket"), "{}", help.output);
    let version = run(["-V"])?;
    assert_eq!(version.status, 0);
    assert!(version.output.contains(" v"), "{}", version.output);
    Ok(())
}

#[test]
fn configuration_files_are_refused_with_the_field() -> Result<()> {
    let folder = TempDir::new()?;
    let path = folder.path().join("vm.json");
    let file = path.display().to_string();
    says(&run(["--config", &file])?, 1, &[&file]);
    let cases = [
        ("{", "not valid JSON"),
        (r#"{"cpus": {"boot_vcpus": "two"}}"#, "cpus.boot_vcpus"),
        (r#"{"payload": {}}"#, "payload.kernel"),
        (
            r#"{"payload": {"kernel": "/k"}, "disks": [{"path": "/d"}]}"#,
            "\n  caused by: disks[0].path",
        ),
    ];
    for (json, expected) in cases {
        fs::write(&path, json)?;
        says(&run(["--config", &file])?, 1, &[expected]);
    }
    Ok(())
}

#[test]
fn api_sockets_that_cannot_be_made_are_errors_and_stale_ones_are_not() -> Result<()> {
    let folder = TempDir::new()?;
    says(&run(["--api-socket", "/no/such/folder/api.sock"])?, 1, &["/no/such/folder/api.sock"]);
    let file = folder.path().join("file");
    fs::write(&file, "precious")?;
    says(&run(["--api-socket", &file.display().to_string()])?, 1, &["file"]);
    assert_eq!(fs::read_to_string(&file)?, "precious");
    Ok(())
}
