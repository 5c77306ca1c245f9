//! Parts of the configuration that no feature reads yet.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// JSON kept as it came, so that `vm.info` returns it and the check can tell whether it asks for
/// something.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Section(Option<Value>);

impl Section {
    /// Whether it asks for nothing: absent, false, an empty list, or an object whose fields all
    /// ask for nothing.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(asks_for_nothing)
    }
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(asks_for_nothing),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(json: &str) -> Section {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn empty_json_asks_for_nothing() {
        for json in ["null", "[]", "{}", "false", r#"{"amx":false,"list":[],"none":null}"#] {
            assert!(section(json).is_empty(), "{json}");
        }
        for json in ["[{}]", "true", "0", r#"{"cid":3}"#, r#"{"amx":true}"#] {
            assert!(!section(json).is_empty(), "{json}");
        }
    }
}
