//! From JSON text to a [`VmConfig`].
//!
//! Clients send nulls where they mean "not given", and fields that no longer exist. Nulls are
//! removed before the types see them; fields that nothing reads are named in the log.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use log::warn;
use serde_json::{Map, Value};

use super::VmConfig;

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file of `--config` could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
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

/// Unknown fields named in the log for one configuration; the rest are counted.
const MAX_WARNINGS: usize = 16;

/// A body of a few MiB can become a tree of a few hundred: only one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl VmConfig {
    /// Reads JSON text. Unknown fields are ignored and named in the log.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] or [`ConfigError::Field`].
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        Self::from_value(object_from_json(text)?.into())
    }

    /// Reads a parsed JSON object, as [`VmConfig::from_json`] does.
    ///
    /// # Errors
    /// [`ConfigError::Field`].
    pub(crate) fn from_value(mut value: Value) -> Result<Self, ConfigError> {
        remove_nulls(&mut value);
        let (config, unknown) = read(value)?;
        for field in unknown.iter().take(MAX_WARNINGS) {
            warn!("configuration: {field}: unknown field, ignored");
        }
        if unknown.len() > MAX_WARNINGS {
            warn!("configuration: {} more unknown fields", unknown.len() - MAX_WARNINGS);
        }
        Ok(config)
    }
}

/// Reads the JSON object in the file at `path`.
///
/// # Errors
/// Every kind of [`ConfigError`].
pub(crate) fn object_from_file(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let text = std::fs::read(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    object_from_json(&text)
}

fn object_from_json(text: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    serde_json::from_slice(text).map_err(ConfigError::Syntax)
}

fn read(value: Value) -> Result<(VmConfig, Vec<String>), ConfigError> {
    let mut config: VmConfig = serde_path_to_error::deserialize(&value).map_err(|error| {
        let path = error.path().to_string();
        ConfigError::Field { path, problem: error.into_inner().to_string() }
    })?;
    if config.cpus.max_vcpus == 0 {
        config.cpus.max_vcpus = config.cpus.boot_vcpus;
    }
    let known = serde_json::to_value(&config).map_err(ConfigError::Syntax)?;
    let mut unknown = Vec::new();
    compare(&value, &known, String::new(), &mut unknown);
    Ok((config, unknown))
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
fn compare(sent: &Value, known: &Value, path: String, unknown: &mut Vec<String>) {
    match (sent, known) {
        (Value::Object(sent), Value::Object(known)) => {
            for (name, value) in sent {
                let dot = if path.is_empty() { "" } else { "." };
                let path = format!("{path}{dot}{name}");
                match known.get(name) {
                    Some(known) => compare(value, known, path, unknown),
                    None if ALIASES.contains(&path.as_str()) => {}
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(sent), Value::Array(known)) => {
            for (index, (sent, known)) in sent.iter().zip(known).enumerate() {
                compare(sent, known, format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}
