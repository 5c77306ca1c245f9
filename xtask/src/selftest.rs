//! The kernel's own self-test of partitions, which our patches bring and a guest test runs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache::{Cache, Key};
use crate::kernel::{self, Inputs};
use crate::process::run;

/// Where self-tests are in the kernel's tree.
const FOLDER: &str = "tools/testing/selftests";

/// Raised when this file builds something else from the same inputs.
const RECIPE: u32 = 1;

/// Gives the program, linked statically, and builds it when it is missing.
pub(crate) fn ensure(cache: &Cache) -> Result<PathBuf> {
    let mut patches = Vec::new();
    for patch in Inputs::in_workspace()?.patches {
        if fs::read_to_string(&patch)?.contains(FOLDER) {
            patches.push(patch);
        }
    }
    let key = Key::new(RECIPE).input("source", kernel::source_version()?);
    let key = patches.iter().try_fold(key, |key, patch| key.file(patch))?;
    let dir = cache.artefact("selftest", &key, |dir| {
        let tree = dir.join("tree");
        kernel::unpack(&tree, FOLDER)?;
        for patch in &patches {
            kernel::apply(patch, &tree)?;
        }
        let mut gcc = Command::new("gcc");
        gcc.current_dir(tree.join(FOLDER).join("cgroup"));
        gcc.args(["-static", "-s", "-O2", "-Wall", "-Werror", "-pthread", "-o"]);
        run(gcc.arg(dir.join("test_partition")).args(["test_partition.c", "cgroup_util.c"]))?;
        Ok(fs::remove_dir_all(tree)?)
    })?;
    Ok(dir.join("test_partition"))
}
