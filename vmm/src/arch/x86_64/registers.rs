//! The boot CPU's registers at the kernel's first instruction, and the MSRs firmware would set.

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

use super::layout;
use crate::kvm::vcpu::Registers;

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, `ebx` at the start information
    /// (Xen's `misc/pvh.pandoc`).
    Pvh {
        /// First instruction.
        address: u64,
    },
    /// 64-bit mode with identity-mapped pages, `rsi` at the zero page
    /// (Linux's `x86/boot.rst`, 64-bit boot protocol).
    Linux64 {
        /// First instruction.
        address: u64,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// The descriptors behind the selectors of a 64-bit entry: null twice, flat code, flat data, task.
pub const GDT: [u64; 5] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

impl Entry {
    /// The registers of the boot CPU.
    pub fn registers(self) -> Registers {
        let (regs, sregs): (kvm_regs, fn(&mut kvm_sregs)) = match self {
            Self::Pvh { address } => {
                (kvm_regs { rip: address, rbx: layout::BOOT_INFO, ..flags() }, protected)
            }
            Self::Linux64 { address } => {
                (kvm_regs { rip: address, rsi: layout::BOOT_INFO, ..flags() }, long)
            }
        };
        Registers { regs, sregs }
    }
}

/// Interrupts off; bit 1 is always set.
fn flags() -> kvm_regs {
    kvm_regs { rflags: 2, ..Default::default() }
}

fn protected(sregs: &mut kvm_sregs) {
    segments(sregs, false);
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
}

fn long(sregs: &mut kvm_sregs) {
    segments(sregs, true);
    sregs.gdt =
        kvm_dtable { base: layout::GDT, limit: size_of_val(&GDT) as u16 - 1, ..Default::default() };
    sregs.cr3 = layout::PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
}

fn segments(sregs: &mut kvm_sregs, long: bool) {
    const CODE: u8 = 0xb;
    const DATA: u8 = 0x3;
    const BUSY_TASK: u8 = 0xb;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: CODE,
        l: long.into(),
        db: (!long).into(),
        ..flat
    };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: DATA, db: 1, ..flat };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        selector: TASK_SELECTOR,
        type_: BUSY_TASK,
        limit: 0x67,
        present: 1,
        ..Default::default()
    };
}

/// MSRs of every CPU: fast strings, and all memory write-back unless a page says otherwise.
pub fn msrs() -> Msrs {
    const MISC_ENABLE: u32 = 0x1a0;
    const MISC_ENABLE_FAST_STRING: u64 = 1;
    const MTRR_DEF_TYPE: u32 = 0x2ff;
    const MTRR_ENABLE: u64 = 1 << 11;
    const MTRR_WRITE_BACK: u64 = 6;
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[
        entry(MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ])
    .expect("two entries fit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pvh_enters_unpaged_32_bit_code() {
        let Registers { regs, sregs } = Entry::Pvh { address: 0x100_0000 }.registers();
        let mut special = kvm_sregs::default();
        sregs(&mut special);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0000, layout::BOOT_INFO, 2));
        assert_eq!((special.cr0 & CR0_PG, special.cs.l, special.cs.db), (0, 0, 1));
    }

    #[test]
    fn linux_enters_paged_64_bit_code() {
        let Registers { regs, sregs } = Entry::Linux64 { address: 0x20_0200 }.registers();
        let mut special = kvm_sregs::default();
        sregs(&mut special);
        assert_eq!((regs.rip, regs.rsi), (0x20_0200, layout::BOOT_INFO));
        assert_eq!((special.cs.l, special.cs.db, special.cr3), (1, 0, layout::PAGE_TABLES));
        assert_eq!(special.efer & EFER_LMA, EFER_LMA);
        assert_eq!(special.gdt.limit, 39);
    }
}
