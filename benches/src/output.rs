//! Where a program's results go, and what they are called.

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

/// What every program can be told of its results.
#[derive(Args, Debug)]
pub struct Output {
    /// Folder for the results.
    #[arg(long, value_name = "DIR", env = "TESSERA_OUTPUT", default_value = "benches/results")]
    out: PathBuf,
    /// What the files are called, for another result than the program's usual one.
    #[arg(long, value_name = "STEM")]
    name: Option<String>,
}

impl Output {
    /// The stem of the files' names: `usual`, unless the user wants another.
    pub(crate) fn stem(&self, usual: &str) -> String {
        self.name.as_deref().unwrap_or(usual).to_owned()
    }

    /// Writes a file.
    ///
    /// # Errors
    /// It can't be written, or its folder can't be made.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.out.join(name);
        fs::create_dir_all(&self.out)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
        Ok(())
    }
}

/// The command line that makes the results again: `cargo xtask`'s, where that has started this
/// program.
pub(crate) fn command_line() -> String {
    env::var("TESSERA_COMMAND").unwrap_or_else(|_| env::args().collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        output: Output,
    }

    #[test]
    fn a_result_of_another_name_leaves_the_usual_one_alone() {
        let output =
            |more: &[&str]| Options::parse_from(["plug"].iter().chain(more)).output.stem("plug");
        assert_eq!(output(&[]), "plug");
        assert_eq!(output(&["--name", "plug_2cpus"]), "plug_2cpus");
    }

    #[test]
    fn a_folder_is_made_for_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("a/b");
        Output { out: out.clone(), name: None }.write("plug.md", "text").unwrap();
        assert_eq!(fs::read_to_string(out.join("plug.md")).unwrap(), "text");
    }
}
