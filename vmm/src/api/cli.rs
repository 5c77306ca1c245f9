//! The command line, in Cloud Hypervisor's words.
//!
//! Options become the same JSON that `--config` and `vm.create` carry, laid over the file's, so
//! that there is one way from a field to a machine. What clap refuses is a usage error; what is
//! wrong inside an option's value is an ordinary one.

mod keys;
mod tables;
mod unsupported;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Parser};
use serde_json::{Map, Value};

use self::keys::Table;
use super::config::{ConfigError, VmConfig, object_from_file};
use super::descriptor::Endpoint;
use super::launch::Launch;

pub use self::keys::OptionError;

const CPUS_HELP: &str =
    "boot=1,max=,topology=THREADS:CORES:DIES:PACKAGES,max_phys_bits=46,affinity=[0@[1,2],..]";
const NUMA_HELP: &str = "guest_numa_id=,cpus=[0-1],distances=[1@20],memory_zones=[..]; several \
                         values replace the nodes of the file";
const SERIAL_MODES: &str = "off|null|tty|pty|file=F|socket=F";
const CONSOLE_MODES: &str = "off|null|tty|pty|file=F";

/// A microVM monitor that runs many function instances in one virtual machine.
#[derive(Debug, Parser)]
#[command(name = "tessera", version = concat!("v", env!("CARGO_PKG_VERSION")))]
#[command(override_usage = "tessera --config FILE | --kernel FILE | --api-socket PATH [OPTIONS]")]
#[command(group(ArgGroup::new("payload").args(["config", "kernel"]).multiple(true)))]
#[command(group(
    ArgGroup::new("start").args(["api_socket", "config", "kernel"]).multiple(true).required(true)
))]
pub struct Cli {
    /// Serve the API here; without a VM to boot, wait for one
    #[arg(long, value_name = "PATH | path=PATH | fd=N")]
    api_socket: Option<String>,
    /// Boot the VM this JSON file describes; the options below override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kernel to boot: an ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE")]
    kernel: Option<String>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE", requires = "payload")]
    initramfs: Option<String>,
    /// Kernel command line
    #[arg(long, value_name = "TEXT", requires = "payload", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Virtual CPUs.
    #[arg(long, value_name = "KEYS", requires = "payload", help = CPUS_HELP)]
    cpus: Option<String>,
    /// size=512M,shared=off,hugepages=off,hugepage_size=,prefault=off,thp=on,mergeable=off,
    /// reserve=off,hotplug_method=acpi|virtio-mem (acpi adds none),hotplug_size=,hotplugged_size=,
    /// partitions=SIZE|[mode=channel,size=,max=64,prepare=,slots=,slot_size=],overcommit=off,
    /// refused_access=stop
    #[arg(long, value_name = "KEYS", requires = "payload")]
    memory: Option<String>,
    /// id=,size=,shared=off,hugepages=off,hugepage_size=,host_numa_node=,hotplug_size=,
    /// hotplugged_size=,prefault=off; several values replace the zones of the file
    #[arg(long, value_name = "KEYS", requires = "payload", num_args = 1..)]
    memory_zone: Vec<String>,
    /// NUMA nodes.
    #[arg(long, value_name = "KEYS", requires = "payload", num_args = 1.., help = NUMA_HELP)]
    numa: Vec<String>,
    /// path=,readonly=off,direct=off,num_queues=1,queue_size=128,id=,serial=,image_type=raw;
    /// several values replace the disks of the file
    #[arg(long, value_name = "KEYS", requires = "payload", num_args = 1..)]
    disk: Vec<String>,
    /// src=/dev/urandom
    #[arg(long, value_name = "KEYS", requires = "payload")]
    rng: Option<String>,
    /// Serial port [default: null]
    #[arg(long, value_name = SERIAL_MODES, requires = "payload")]
    serial: Option<String>,
    /// virtio console [default: tty]
    #[arg(long, value_name = CONSOLE_MODES, requires = "payload")]
    console: Option<String>,
    /// num_pci_segments=1,serial_number=,uuid=,oem_strings=[..]
    #[arg(long, value_name = "KEYS", requires = "payload")]
    platform: Option<String>,
    /// Write events here, as JSON
    #[arg(long, value_name = "path=PATH | fd=N")]
    event_monitor: Option<String>,
    /// Filter of the monitor's system calls: there is none
    #[arg(long, value_name = "false")]
    seccomp: Option<String>,
    /// Write the log here [default: standard error]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,
    /// Log more: once what happens, twice details, three times everything
    #[arg(short, action = clap::ArgAction::Count)]
    verbosity: u8,
}

/// Why a command line that clap took does not make a launch.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// An option's value is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// The file of `--config` is no JSON object.
    #[error("--config {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// The file and the options together are no configuration.
    #[error("in the configuration")]
    Config(#[source] ConfigError),
}

impl Cli {
    /// Reads a command line, whose first word is the program's name.
    ///
    /// # Errors
    /// A usage error, or a text that was asked for instead: clap's, which knows the exit status.
    /// Options that Cloud Hypervisor has and we have not are named as such.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(words).map_err(unsupported::named)
    }

    /// Where to write the log; `None` for standard error.
    pub fn log_file(&self) -> Option<&Path> {
        self.log_file.as_deref()
    }

    /// How often `-v` was given.
    pub fn verbosity(&self) -> u8 {
        self.verbosity
    }

    /// Reads the file of `--config`, if any, and lays the options over it. Nothing is checked
    /// beyond names and types.
    ///
    /// # Errors
    /// [`CliError`].
    pub fn launch(&self) -> Result<Launch, CliError> {
        if let Some(text) = &self.seccomp {
            tables::seccomp(text)?;
        }
        let has_vm = self.config.is_some() || self.kernel.is_some();
        Ok(Launch {
            api_socket: endpoint("--api-socket", self.api_socket.as_deref())?,
            config: has_vm.then(|| self.vm_config()).transpose()?,
            event_monitor: endpoint("--event-monitor", self.event_monitor.as_deref())?,
        })
    }

    fn vm_config(&self) -> Result<VmConfig, CliError> {
        let mut object = match &self.config {
            Some(path) => object_from_file(path)
                .map_err(|source| CliError::File { path: path.clone(), source })?,
            None => Map::new(),
        };
        self.override_sections(&mut object)?;
        self.override_devices(&mut object)?;
        VmConfig::from_value(object.into()).map_err(CliError::Config)
    }

    /// Sections where an option replaces the fields it names and leaves the others.
    fn override_sections(&self, object: &mut Map<String, Value>) -> Result<(), OptionError> {
        let payload =
            [("kernel", &self.kernel), ("initramfs", &self.initramfs), ("cmdline", &self.cmdline)];
        for (field, value) in payload {
            if let Some(value) = value {
                let fields = Map::from_iter([(field.to_owned(), value.as_str().into())]);
                merge(object, "payload", fields);
            }
        }
        let sections: [(&str, &Table, &Option<String>); 4] = [
            ("cpus", &tables::CPUS, &self.cpus),
            ("memory", &tables::MEMORY, &self.memory),
            ("rng", &tables::RNG, &self.rng),
            ("platform", &tables::PLATFORM, &self.platform),
        ];
        for (section, table, text) in sections {
            if let Some(text) = text {
                merge(object, section, table.parse(text)?);
            }
        }
        Ok(())
    }

    /// Sections that an option replaces as a whole.
    fn override_devices(&self, object: &mut Map<String, Value>) -> Result<(), OptionError> {
        for (name, option, modes, text) in [
            ("serial", "--serial", SERIAL_MODES, &self.serial),
            ("console", "--console", CONSOLE_MODES, &self.console),
        ] {
            if let Some(text) = text {
                object.insert(name.to_owned(), tables::character(option, modes, text)?);
            }
        }
        let lists: [(&str, &str, &Table, &[String]); 3] = [
            ("", "disks", &tables::DISK, &self.disk),
            ("", "numa", &tables::NUMA, &self.numa),
            ("memory", "zones", &tables::ZONE, &self.memory_zone),
        ];
        for (section, field, table, texts) in lists.into_iter().filter(|list| !list.3.is_empty()) {
            let items = texts.iter().map(|text| table.parse(text).map(Value::Object));
            let field = Map::from_iter([(field.to_owned(), items.collect::<Result<_, _>>()?)]);
            match section {
                "" => object.extend(field),
                section => merge(object, section, field),
            }
        }
        Ok(())
    }
}

fn merge(object: &mut Map<String, Value>, section: &str, fields: Map<String, Value>) {
    match object.get_mut(section) {
        Some(Value::Object(existing)) => existing.extend(fields),
        _ => drop(object.insert(section.to_owned(), fields.into())),
    }
}

/// `PATH`, `path=PATH` or `fd=N`.
fn endpoint(option: &'static str, text: Option<&str>) -> Result<Option<Endpoint>, OptionError> {
    let Some(text) = text else { return Ok(None) };
    let error = |problem| OptionError::new(option, problem);
    if let Some(number) = text.strip_prefix("fd=") {
        let fd = number.parse().ok().filter(|fd| *fd >= 0);
        let fd = fd.ok_or_else(|| error(format!("fd: {number:?} is not a descriptor")))?;
        return Ok(Some(Endpoint::Fd(fd)));
    }
    match text.strip_prefix("path=").unwrap_or(text) {
        "" => Err(error("the path is empty".into())),
        path => Ok(Some(Endpoint::Path(path.into()))),
    }
}

#[cfg(test)]
mod tests;
