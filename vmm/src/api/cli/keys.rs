//! `key=value,key=[a,b]`: the values of options that describe something.
//!
//! Written once, driven by a table per option: which keys there are, how each value is read, and
//! which field of the JSON it becomes. Commas inside `[]` and `""` separate nothing.

use serde_json::{Map, Value};

/// The keys of one option.
pub(super) struct Table {
    /// As written: `--disk`.
    pub option: &'static str,
    /// In the order the help names them.
    pub keys: &'static [Key],
    /// What Cloud Hypervisor's option has besides.
    pub unsupported: &'static [&'static str],
}

/// One key of an option.
pub(super) struct Key {
    /// As written.
    pub name: &'static str,
    /// Name of the JSON field.
    pub field: &'static str,
    /// From text to the field's value, or what is wrong with the text.
    pub read: Read,
}

/// See [`Key::read`].
pub(super) type Read = fn(&str) -> Result<Value, String>;

/// What is wrong with the value of an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct OptionError {
    option: &'static str,
    problem: String,
}

impl OptionError {
    /// A `problem` with the value of `option`.
    pub(super) fn new(option: &'static str, problem: String) -> Self {
        Self { option, problem }
    }

    /// What is wrong, without the option's name.
    pub(super) fn problem(&self) -> &str {
        &self.problem
    }
}

impl Table {
    /// Reads the value of the option into an object with a field for each key given.
    ///
    /// # Errors
    /// A key that does not exist or comes twice, or a value its key cannot take.
    pub(super) fn parse(&self, text: &str) -> Result<Map<String, Value>, OptionError> {
        let mut fields = Map::new();
        for item in split(text).map_err(|problem| self.error(problem))? {
            let (name, value) = item
                .split_once('=')
                .ok_or_else(|| self.error(format!("{item:?} is not of the form key=value")))?;
            let key = self.keys.iter().find(|key| key.name == name);
            let key = key.ok_or_else(|| self.unknown(name))?;
            let value = (key.read)(unquote(value))
                .map_err(|problem| self.error(format!("{name}: {problem}")))?;
            if fields.insert(key.field.to_owned(), value).is_some() {
                return Err(self.error(format!("{name}: given twice")));
            }
        }
        Ok(fields)
    }

    fn unknown(&self, name: &str) -> OptionError {
        if self.unsupported.contains(&name) {
            return self.error(format!("{name}: not supported yet; leave it out"));
        }
        let names: Vec<&str> = self.keys.iter().map(|key| key.name).collect();
        self.error(format!("unknown key {name:?}; valid keys are {}", names.join(", ")))
    }

    fn error(&self, problem: String) -> OptionError {
        OptionError::new(self.option, problem)
    }
}

/// The items of `[a,b]`; the brackets may be missing around one item.
pub(super) fn items(text: &str) -> Result<Vec<&str>, String> {
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some("") => Ok(Vec::new()),
        Some(text) => split(text),
        None => split(text).and_then(|items| match items[..] {
            [item] => Ok(vec![item]),
            _ => Err(format!("{text:?} is not of the form [a,b]")),
        }),
    }
}

/// Splits at the commas outside brackets and quotes. Returns at least one item.
fn split(text: &str) -> Result<Vec<&str>, String> {
    let mut items = Vec::new();
    let (mut start, mut depth, mut quoted) = (0, 0_usize, false);
    for (at, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth += 1,
            ']' => {
                depth = depth.checked_sub(1).ok_or_else(|| format!("a ] too many in {text:?}"))?;
            }
            ',' if depth == 0 => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if depth != 0 || quoted {
        let missing = if quoted { '"' } else { ']' };
        return Err(format!("a {missing} is missing in {text:?}"));
    }
    items.push(&text[start..]);
    Ok(items)
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tables;
    use super::*;

    const TABLE: Table = Table {
        option: "--thing",
        keys: &[
            Key { name: "a", field: "alpha", read: |text| Ok(text.into()) },
            Key { name: "b", field: "beta", read: |text| items(text).map(Value::from) },
        ],
        unsupported: &["z"],
    };

    fn parsed(text: &str) -> String {
        match TABLE.parse(text) {
            Ok(fields) => Value::Object(fields).to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn keys_become_fields() {
        assert_eq!(parsed("a=1"), r#"{"alpha":"1"}"#);
        assert_eq!(parsed("b=[x,y],a=p=q"), r#"{"alpha":"p=q","beta":["x","y"]}"#);
        assert_eq!(parsed("a="), r#"{"alpha":""}"#);
        assert_eq!(parsed("b=[]"), r#"{"beta":[]}"#);
        assert_eq!(parsed("b=x"), r#"{"beta":["x"]}"#);
    }

    #[test]
    fn quotes_and_brackets_protect_commas() {
        assert_eq!(parsed(r#"a="x,y",b=[1@[2,3],4]"#), r#"{"alpha":"x,y","beta":["1@[2,3]","4"]}"#);
        assert_eq!(parsed(r#"a="x]""#), r#"{"alpha":"x]"}"#);
    }

    #[test]
    fn errors_name_option_key_and_remedy() {
        assert_eq!(parsed("c=1"), r#"--thing: unknown key "c"; valid keys are a, b"#);
        assert_eq!(parsed("a=1,z=1"), "--thing: z: not supported yet; leave it out");
        assert_eq!(parsed("a=1,"), r#"--thing: "" is not of the form key=value"#);
        assert_eq!(parsed("a"), r#"--thing: "a" is not of the form key=value"#);
        assert_eq!(parsed("a=1,a=2"), "--thing: a: given twice");
        assert_eq!(parsed("b=[x"), r#"--thing: a ] is missing in "b=[x""#);
        assert_eq!(parsed("b=x]"), r#"--thing: a ] too many in "b=x]""#);
        assert_eq!(parsed("a=\"x"), r#"--thing: a " is missing in "a=\"x""#);
    }

    proptest! {
        #[test]
        fn any_value_parses_or_is_refused(text in r#"([a-z_]{0,4}=?["\[\],@:0-9KMG-]{0,6}){0,8}"#) {
            for table in [&TABLE, &tables::CPUS, &tables::MEMORY, &tables::DISK] {
                let _ = table.parse(&text);
            }
        }

        #[test]
        fn any_value_of_a_real_key_parses_or_is_refused(value in r#"["\[\],@:0-9KMG-]*|.*"#) {
            for table in [&tables::CPUS, &tables::MEMORY, &tables::DISK, &tables::PLATFORM] {
                for key in table.keys {
                    let _ = table.parse(&format!("{}={value}", key.name));
                }
            }
        }
    }
}
