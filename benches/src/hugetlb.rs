//! Huge pages that the host keeps for guests alone (hugetlb).

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::elastic::MIB;

/// Where Linux says how many pages of 2 MiB there are, and is told how many there should be.
const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Pages that are kept while this lives.
#[derive(Debug)]
pub struct Kept {
    before: u64,
}

impl Kept {
    /// Keeps pages for `bytes`, beside those that are kept already.
    ///
    /// # Errors
    /// The host has not so much memory in one piece, or this process may not say so.
    pub fn for_guests(bytes: u64) -> Result<Self> {
        // From here on what is changed is put back.
        let this = Self { before: count()? };
        let wanted = this.before + bytes.div_ceil(2 * MIB);
        fs::write(COUNT, wanted.to_string()).with_context(|| format!("cannot write {COUNT}"))?;
        let has = count()?;
        ensure!(has >= wanted, "the host has {has} huge pages, not {wanted}: too little memory");
        Ok(this)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // There is nobody to tell; the next one says what it is short of.
        let _ = fs::write(COUNT, self.before.to_string());
    }
}

fn count() -> Result<u64> {
    let text = fs::read_to_string(COUNT).with_context(|| format!("cannot read {COUNT}"))?;
    text.trim().parse().with_context(|| format!("{COUNT} holds {text:?}"))
}
