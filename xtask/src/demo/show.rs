//! What a person sees of the demo. Runs where guests run, so it uses the monitor as anyone would:
//! a command line, a socket, the guest's console.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

/// How long a guest may take to say something; an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(120);
const PROMPT: &str = "tessera# ";

/// The programs and files of the show.
#[derive(Args)]
pub(crate) struct Options {
    /// The monitor.
    tessera: PathBuf,
    /// The VM.
    config: PathBuf,
}

/// Boots the VM, shows it, and powers it off.
pub(crate) fn show(options: &Options) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (config, socket) = (folder.path().join("vm.json"), folder.path().join("vm.sock"));
    let text = with_local_files(&fs::read_to_string(&options.config)?, folder.path())?;
    fs::write(&config, &text)?;

    title("A VM is one JSON file");
    print!("{}", one_line_each(&text)?);
    println!("$ tessera --config vm.json --api-socket vm.sock");
    let start = Instant::now();
    let mut guest = Guest::start(&options.tessera, &config, &socket)?;

    title("The guest");
    guest.shows("tessera-init:")?;
    let init = start.elapsed();
    guest.shows(PROMPT)?;
    guest.types("uname -sr; nproc; grep MemTotal /proc/meminfo; ls /sys/bus/virtio/devices\n")?;
    guest.shows(PROMPT)?;

    title("The API");
    let info = get(&socket, "vm.info")?;
    println!("GET vm.info      {}, {}", info["state"].as_str().unwrap_or("?"), devices(&info));
    let counters = get(&socket, "vm.counters")?;
    println!("GET vm.counters  {} exits to the monitor so far", sum(&counters["_vcpus"]));
    let memory = own_memory(guest.process.id(), 128 << 20)?;

    title("Power off");
    let off = Instant::now();
    guest.types("poweroff -f\n")?;
    let status = guest.ends()?;
    title("Figures");
    println!("exec to init            {:>6.0} ms", ms(init));
    println!("power off to exit       {:>6.0} ms, {status}", ms(off.elapsed()));
    println!("the monitor's own share {:>6.1} MiB of memory", memory as f64 / f64::from(1 << 20));
    match status.success() {
        true => Ok(()),
        false => bail!("tessera ended with {status}"),
    }
}

fn title(text: &str) {
    println!("\n\x1b[1m── {text} {}\x1b[0m", "─".repeat(72 - text.len()));
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The configuration with the payload copied into `folder`: an emulated machine reads the host's
/// files slowly, and the demo is not about that.
fn with_local_files(config: &str, folder: &Path) -> Result<String> {
    let mut config: Value = serde_json::from_str(config)?;
    for field in ["kernel", "initramfs"] {
        let path = config["payload"][field].as_str().context("the demo's own configuration")?;
        let copy = folder.join(field);
        fs::copy(path, &copy).with_context(|| format!("cannot copy {path}"))?;
        config["payload"][field] = copy.to_string_lossy().into();
    }
    Ok(serde_json::to_string_pretty(&config)?)
}

/// A JSON object with each of its members on a line.
fn one_line_each(object: &str) -> Result<String> {
    let object: serde_json::Map<String, Value> = serde_json::from_str(object)?;
    let members: Vec<_> =
        object.iter().map(|(name, value)| format!("  \"{name}\": {value}")).collect();
    Ok(format!("{{\n{}\n}}\n", members.join(",\n")))
}

/// A monitor with its guest's console on our pipes.
struct Guest {
    process: Child,
    console: BufReader<ChildStdout>,
    started: Instant,
}

impl Guest {
    fn start(tessera: &Path, config: &Path, socket: &Path) -> Result<Self> {
        let mut process = Command::new(tessera)
            .arg("--config")
            .arg(config)
            .arg("--api-socket")
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start tessera")?;
        let console = process.stdout.take().context("the console was asked for as a pipe")?;
        Ok(Self { process, console: BufReader::new(console), started: Instant::now() })
    }

    /// Prints the console until `text` has appeared.
    fn shows(&mut self, text: &str) -> Result<()> {
        let mut seen = Vec::new();
        let mut in_escape = false;
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0];
            if self.console.read(&mut byte)? == 0 {
                bail!("the guest ended before it showed {text:?}");
            }
            if self.started.elapsed() > PATIENCE {
                bail!("the guest did not show {text:?} in {} s", PATIENCE.as_secs());
            }
            seen.push(byte[0]);
            // The guest's shell asks the terminal where its cursor is; ours would answer.
            in_escape = byte[0] == 0x1b || in_escape && !byte[0].is_ascii_alphabetic();
            let ends_escape = byte[0].is_ascii_alphabetic() && seen.ends_with(b"[6n");
            if !in_escape && !ends_escape {
                std::io::stdout().write_all(&byte)?;
            }
        }
        Ok(std::io::stdout().flush()?)
    }

    fn types(&mut self, text: &str) -> Result<()> {
        let stdin = self.process.stdin.as_mut().context("the console was asked for as a pipe")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }

    /// Prints the rest of the console and waits for the end.
    fn ends(&mut self) -> Result<std::process::ExitStatus> {
        let mut rest = String::new();
        self.console.read_to_string(&mut rest)?;
        print!("{}", rest.replace("\x1b[6n", ""));
        Ok(self.process.wait()?)
    }
}

/// Whatever happens, no guest is left behind.
impl Drop for Guest {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// One request, as curl would make it.
fn get(socket: &Path, route: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).context("cannot connect to the API socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = format!("GET /api/v1/{route} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.context("an answer without a length")?.parse()?;
            if body.len() >= length {
                return Ok(serde_json::from_str(&body[..length])?);
            }
        }
        if count == 0 {
            bail!("the API closed the connection in the middle of an answer");
        }
    }
}

fn sum(counters: &Value) -> u64 {
    let counters = counters.as_object().into_iter().flat_map(|map| map.values());
    counters.filter_map(Value::as_u64).sum()
}

fn devices(info: &Value) -> String {
    let tree = info["device_tree"].as_object();
    let devices = tree.into_iter().flatten();
    let list: Vec<_> = devices
        .map(|(id, node)| format!("{id} at {}", node["pci_bdf"].as_str().unwrap_or("no bus")))
        .collect();
    list.join(", ")
}

/// Resident bytes of a process outside its mapping of `guest` bytes of RAM.
fn own_memory(pid: u32, guest: u64) -> Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let value = |line: &str, name: &str| -> Option<u64> {
        line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()
    };
    let (mut size, mut own) = (0, 0);
    for line in maps.lines() {
        size = value(line, "Size:").map_or(size, |kib| kib << 10);
        if let Some(kib) = value(line, "Rss:").filter(|_| size != guest) {
            own += kib << 10;
        }
    }
    Ok(own)
}
