//! Kernel configuration fragments: what they ask for, and whether a `.config` has it.

/// The lines of `fragment` that set or unset an option.
pub(crate) fn settings(fragment: &str) -> impl Iterator<Item = &str> {
    fragment.lines().map(str::trim_end).filter(|line| {
        line.starts_with("CONFIG_") || (line.starts_with("# CONFIG_") && line.ends_with(NOT_SET))
    })
}

const NOT_SET: &str = " is not set";

/// The settings of `fragment` that `config` lacks. An option that must not be set is fine when the
/// configuration does not mention it: its dependencies are off too.
pub(crate) fn missing<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    settings(fragment).filter(|setting| !holds(setting, config)).collect()
}

fn holds(setting: &str, config: &str) -> bool {
    match setting.strip_prefix("# ").and_then(|rest| rest.strip_suffix(NOT_SET)) {
        None => config.lines().any(|line| line == setting),
        Some(option) => !config
            .lines()
            .any(|line| line.strip_prefix(option).is_some_and(|rest| rest.starts_with('='))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str =
        "CONFIG_NET=y\n# CONFIG_VT is not set\nCONFIG_NR_CPUS=64\nCONFIG_EXT4_FS=m";

    #[test]
    fn settings_skip_comments_and_blank_lines() {
        let fragment = "# A comment\n\nCONFIG_NET=y\n# CONFIG_VT is not set\n";
        let found: Vec<_> = settings(fragment).collect();
        assert_eq!(found, ["CONFIG_NET=y", "# CONFIG_VT is not set"]);
    }

    #[test]
    fn an_option_with_another_value_is_missing() {
        assert_eq!(missing("CONFIG_EXT4_FS=y\nCONFIG_NET=y", CONFIG), ["CONFIG_EXT4_FS=y"]);
        assert_eq!(missing("CONFIG_NR_CPUS=6", CONFIG), ["CONFIG_NR_CPUS=6"]);
    }

    #[test]
    fn an_unset_option_may_be_absent_but_not_set() {
        assert!(missing("# CONFIG_VT is not set\n# CONFIG_SERIO is not set", CONFIG).is_empty());
        assert_eq!(missing("# CONFIG_NET is not set", CONFIG), ["# CONFIG_NET is not set"]);
    }

    #[test]
    fn a_longer_option_name_does_not_count() {
        assert!(missing("# CONFIG_NR is not set", CONFIG).is_empty());
        assert_eq!(missing("CONFIG_NE=y", CONFIG), ["CONFIG_NE=y"]);
    }
}
