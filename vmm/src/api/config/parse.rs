//! From JSON text to a [`VmConfig`] or the body of another call.
//!
//! Clients send nulls where they mean "not given", and fields that no longer exist. Nulls are
//! removed before the types see them; fields that nothing reads are named in the log.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::sync::lock;
use log::{Level, log};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::VmConfig;

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of `--config` could not be read.
    #[error("the file cannot be read")]
    Read(#[source] std::io::Error),
    /// The text is not JSON.
    #[error("not valid JSON")]
    Syntax(#[source] serde_json::Error),
    /// A field has the wrong type or a value that does not exist.
    #[error("{path}: {problem}")]
    Field {
        /// JSON path of the field, as in `disks[0].path`.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Fields that are read under another name than they are written back.
const ALIASES: [&str; 2] = ["platform.serial_number", "platform.uuid"];

/// Unknown fields named in the log for one body; the rest are counted.
const MAX_WARNINGS: usize = 16;

/// Warnings left to all bodies together, so that a client that calls again and again does not fill
/// the log. What comes after is logged for who looks for details.
static WARNINGS_LEFT: AtomicUsize = AtomicUsize::new(16 * MAX_WARNINGS);

/// A body of a few MiB can become a tree of a few hundred: only one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl VmConfig {
    /// Reads JSON text. Unknown fields are ignored and named in the log.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::Field`].
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let _turn = lock(&ONE_AT_A_TIME);
        Self::from_value(object_from_json(text)?.into())
    }

    /// Reads a parsed JSON object, as [`VmConfig::from_json`] does.
    ///
    /// # Errors
    /// [`ConfigError::Field`].
    pub(crate) fn from_value(mut value: Value) -> Result<Self, ConfigError> {
        remove_nulls(&mut value);
        let (mut config, unknown) = read::<Self>(value)?;
        if config.cpus.max_vcpus == 0 {
            config.cpus.max_vcpus = config.cpus.boot_vcpus;
        }
        warn_of("configuration", &unknown);
        Ok(config)
    }
}

/// Reads the body of `call`, as [`VmConfig::from_json`] does. `T` must be written with all the
/// fields it is read from.
///
/// # Errors
/// [`ConfigError::Syntax`] or [`ConfigError::Field`].
pub(crate) fn body_from_json<T>(call: &str, text: &[u8]) -> Result<T, ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    let _turn = lock(&ONE_AT_A_TIME);
    let mut value = object_from_json(text)?.into();
    remove_nulls(&mut value);
    let (body, unknown) = read(value)?;
    warn_of(call, &unknown);
    Ok(body)
}

fn warn_of(what: &str, unknown: &[String]) {
    let warn = |problem: String| {
        let take = |left: usize| left.checked_sub(1);
        let left = WARNINGS_LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let level = if left.is_ok() { Level::Warn } else { Level::Debug };
        log!(level, "{what}: {problem}");
    };
    for field in unknown.iter().take(MAX_WARNINGS) {
        warn(format!("{field}: unknown field, ignored"));
    }
    if unknown.len() > MAX_WARNINGS {
        warn(format!("{} more unknown fields", unknown.len() - MAX_WARNINGS));
    }
}

/// Reads the JSON object in the file at `path`.
///
/// # Errors
/// Every kind of [`ConfigError`].
pub(crate) fn object_from_file(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let text = std::fs::read(path).map_err(ConfigError::Read)?;
    object_from_json(&text)
}

fn object_from_json(text: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    serde_json::from_slice(text).map_err(ConfigError::Syntax)
}

/// The fields of an object, and the paths of those that `T` does not have.
fn read<T>(value: Value) -> Result<(T, Vec<String>), ConfigError>
where
    T: Serialize + DeserializeOwned,
{
    let read: T = serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = match error.path().to_string() {
            root if root == "." => "the body".to_owned(),
            path => path,
        };
        ConfigError::Field { path, problem: error.into_inner().to_string() }
    })?;
    let known = serde_json::to_value(&read).map_err(ConfigError::Syntax)?;
    let mut unknown = Vec::new();
    compare(&value, &known, String::new(), &mut unknown)?;
    Ok((read, unknown))
}

/// Recursion is bounded by the depth serde_json accepts.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// Collects the paths of the fields in `sent` that `known` lacks. Every known field is in `known`,
/// because none is left out when a configuration is written.
///
/// # Errors
/// A list where an object belongs: serde would take its items for the fields, in their order.
fn compare(
    sent: &Value,
    known: &Value,
    path: String,
    unknown: &mut Vec<String>,
) -> Result<(), ConfigError> {
    match (sent, known) {
        (Value::Object(sent), Value::Object(known)) => {
            for (name, value) in sent {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{name}");
                match known.get(name) {
                    Some(known) => compare(value, known, path, unknown)?,
                    None if ALIASES.contains(&path.as_str()) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(known)) => {
            for (index, (sent, known)) in sent.iter().zip(known).enumerate() {
                compare(sent, known, format!("{path}[{index}]"), unknown)?;
            }
        }
        (Value::Array(_), Value::Object(_)) => {
            let problem = "invalid type: sequence, expected an object".to_owned();
            return Err(ConfigError::Field { path, problem });
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::config::{CharModeConfig, HotplugMethod, PartitionsConfig};

    /// What Kata's runtime sends: nulls, a balloon, fields of older versions.
    fn from_kata() -> Value {
        json!({
            "payload": {"kernel": "/k", "cmdline": "quiet", "initramfs": null, "firmware": null},
            "platform": {"num_pci_segments": 2},
            "cpus": {"boot_vcpus": 1, "max_vcpus": 8, "features": {}},
            "memory": {"size": 2147483648u64, "shared": true, "hugepages": null,
                       "hotplug_size": 6442450944u64, "hotplug_method": "Acpi"},
            "rng": {"src": "/dev/urandom"},
            "disks": [{"path": "/d", "readonly": true, "num_queues": 1, "queue_size": 1024,
                       "vhost_user": false, "pci_segment": 0,
                       "rate_limiter_config": {"bandwidth": {"size": 1, "refill_time": 2}}}],
            "serial": {"mode": "Off"},
            "console": {"mode": "Tty", "file": null},
            "vsock": {"cid": 3, "socket": "/s"},
            "fs": [{"tag": "kataShared", "socket": "/f", "num_queues": 1, "queue_size": 1024,
                    "pci_segment": 1, "dax": null, "cache_size": null}],
            "sgx_epc": null,
            "net": null,
        })
    }

    /// What hypeman sends.
    fn from_hypeman() -> Value {
        json!({
            "payload": {"kernel": "/k", "cmdline": "console=ttyS0", "initramfs": "/i"},
            "cpus": {"boot_vcpus": 2, "max_vcpus": 2,
                     "topology": {"threads_per_core": 1, "cores_per_die": 2,
                                  "dies_per_package": 1, "packages": 1}},
            "memory": {"size": 1073741824, "hotplug_method": "VirtioMem",
                       "hotplug_size": 1073741824},
            "disks": [{"path": "/a"}, {"path": "/b", "readonly": true}],
            "serial": {"mode": "File", "file": "/log"},
            "console": {"mode": "Off"},
            "net": [{"tap": "tap0", "ip": "10.0.0.2", "mac": "02:00:00:00:00:01",
                     "mask": "255.255.255.0"}],
            "vsock": {"cid": 42, "socket": "/v"},
        })
    }

    fn field_error(value: Value) -> String {
        VmConfig::from_value(value).unwrap_err().to_string()
    }

    #[test]
    fn configurations_come_back_as_they_were_sent() {
        for sent in [from_kata(), from_hypeman(), json!({})] {
            let config = VmConfig::from_value(sent.clone()).unwrap();
            let written = serde_json::to_vec(&config).unwrap();
            assert_eq!(VmConfig::from_json(&written).unwrap(), config);
            let written: Value = serde_json::from_slice(&written).unwrap();
            for path in ["/memory/size", "/disks/0/path", "/vsock", "/net", "/serial/mode"] {
                if let Some(value) = sent.pointer(path) {
                    assert_eq!(written.pointer(path), Some(value), "{path}");
                }
            }
        }
    }

    #[test]
    fn values_of_clients_reach_their_fields() {
        let kata = VmConfig::from_value(from_kata()).unwrap();
        assert_eq!((kata.cpus.boot_vcpus, kata.cpus.max_vcpus), (1, 8));
        assert!(kata.memory.shared && !kata.memory.hugepages && kata.memory.thp);
        assert_eq!(kata.disks[0].queue_size, 1024);
        assert!(!kata.disks[0].rate_limiter_config.is_empty());
        assert!(kata.cpus.features.is_empty() && kata.net.is_empty() && !kata.fs.is_empty());
        assert_eq!(kata.console.mode, CharModeConfig::Tty);

        let hypeman = VmConfig::from_value(from_hypeman()).unwrap();
        assert_eq!(hypeman.memory.hotplug_method, HotplugMethod::VirtioMem);
        assert_eq!(hypeman.serial.file.as_deref(), Some(Path::new("/log")));
        assert_eq!((hypeman.disks[1].num_queues, hypeman.disks[1].queue_size), (1, 128));
    }

    #[test]
    fn empty_configuration_has_cloud_hypervisors_defaults() {
        let config = VmConfig::from_json(b"{}").unwrap();
        assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (1, 1));
        assert_eq!(config.memory.size, 512 << 20);
        assert_eq!(config.serial.mode, CharModeConfig::Null);
        assert_eq!(config.console.mode, CharModeConfig::Tty);
        assert_eq!(config.rng.src, Path::new("/dev/urandom"));
        assert_eq!(config.platform.num_pci_segments, 1);
    }

    #[test]
    fn room_for_partitions_has_a_default_number_of_them() {
        let partitions = |json| VmConfig::from_json(json).unwrap().memory.partitions;
        let expected = |max| Some(PartitionsConfig { size: 4096, max, ..Default::default() });
        let named = br#"{"memory":{"partitions":{"size":4096,"max":7}}}"#;
        assert_eq!(partitions(named), expected(7));
        assert_eq!(partitions(br#"{"memory":{"partitions":{"size":4096}}}"#), expected(64));
        assert_eq!(partitions(br#"{"memory":{"partitions":null}}"#), None);
    }

    #[test]
    fn vcpus_without_a_maximum_get_no_more() {
        let config = VmConfig::from_json(br#"{"cpus":{"boot_vcpus":3}}"#).unwrap();
        assert_eq!(config.cpus.max_vcpus, 3);
    }

    #[test]
    fn unknown_fields_are_named_by_path() {
        let (_, unknown) = read::<VmConfig>(json!({
            "sgx_epc": [1],
            "cpus": {"boot_vcpus": 1, "colour": {"deep": 1}},
            "disks": [{}, {"path": "/d", "sparse": true}],
            "platform": {"serial_number": "1", "uuid": "2", "uid": "3"},
            "net": [{"anything": 1}],
            "memory": {"partitions": {"size": 1, "min": 1}},
        }))
        .unwrap();
        let expected =
            ["cpus.colour", "disks[1].sparse", "memory.partitions.min", "platform.uid", "sgx_epc"];
        assert_eq!(unknown, expected);
    }

    #[test]
    fn old_names_of_platform_fields_are_read() {
        let json = json!({"platform": {"serial_number": "1", "uuid": "2"}});
        let (config, _) = read::<VmConfig>(json).unwrap();
        assert_eq!(config.platform.system_serial_number.as_deref(), Some("1"));
        assert_eq!(config.platform.system_uuid.as_deref(), Some("2"));
    }

    #[test]
    fn wrong_types_are_named_by_path() {
        assert_eq!(
            field_error(json!({"cpus": {"boot_vcpus": "two"}})),
            r#"cpus.boot_vcpus: invalid type: string "two", expected u32"#
        );
        assert_eq!(
            field_error(json!({"cpus": {"boot_vcpus": -1}})),
            "cpus.boot_vcpus: invalid value: integer `-1`, expected u32"
        );
        assert_eq!(
            field_error(json!({"serial": {"mode": "Teletype"}})),
            "serial.mode: unknown variant `Teletype`, expected one of `Off`, `Pty`, `Tty`, \
             `File`, `Socket`, `Null`"
        );
        assert_eq!(field_error(json!({"console": {}})), "console: missing field `mode`");
        assert_eq!(
            field_error(json!({"memory": {"partitions": {"mode": "both"}}})),
            "memory.partitions.mode: unknown variant `both`, expected one of `channel`, `numa`, \
             `auto`"
        );
        assert_eq!(
            field_error(json!({"disks": [{}, []], "memory": {}})),
            "disks[1]: invalid type: sequence, expected an object"
        );
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for text in ["", "[]", "nul", "{} {}", "{\"a\":1,}", "\u{feff}{}"] {
            let error = VmConfig::from_json(text.as_bytes()).unwrap_err();
            assert!(matches!(error, ConfigError::Syntax(_)), "{text:?}: {error}");
        }
        let error = object_from_file(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, ConfigError::Read(_)));
    }
}
