//! Why a vCPU can't go on, for the person who reads the log.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::locate::locate;

/// Why a vCPU can't go on. The machine is to be stopped.
#[derive(Debug, thiserror::Error)]
#[error("vCPU {vcpu} stopped: {reason}\n{registers}")]
pub struct Fault {
    vcpu: usize,
    reason: Reason,
    registers: String,
    /// What [`locate`] found: not for sure what the vCPU reached for.
    located: Option<u64>,
}

impl Fault {
    /// The vCPU numbered `vcpu` has stopped.
    pub(super) fn new(vcpu: usize, reason: Reason, fd: &VcpuFd) -> Self {
        let registers = match (fd.get_regs(), fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => dump(&regs, &sregs),
            _ => "registers could not be read".to_owned(),
        };
        Self { vcpu, reason, registers, located: None }
    }

    /// Where the guest reached for memory that can't be accessed, if that is why it stopped: a
    /// guest-physical address, of the page where the host tells no more.
    pub fn inaccessible(&self) -> Option<u64> {
        match self.reason {
            Reason::Memory(address) => address.or(self.located),
            _ => None,
        }
    }

    /// Whether it reached for such memory and nobody has said where.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.reason, Reason::Memory(None))
    }

    /// Finds out where, as [`locate`] does.
    pub(super) fn locate(&mut self, fd: VcpuFd) {
        self.located = locate(fd);
    }
}

#[derive(Debug)]
pub(super) enum Reason {
    TripleFault,
    Entry(u64),
    Internal,
    /// At a guest-physical address, where the host tells it.
    Memory(Option<u64>),
    Run(kvm_ioctls::Error),
    Unexpected(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => write!(f, "triple fault"),
            Self::Entry(reason) => write!(f, "the CPU refused the guest's state ({reason:#x})"),
            Self::Internal => write!(f, "KVM can't emulate the guest's instruction"),
            Self::Memory(Some(address)) => write!(f, "no memory at {address:#x}"),
            Self::Memory(None) => write!(f, "no memory where it reached"),
            Self::Run(error) => write!(f, "KVM_RUN failed: {error}"),
            Self::Unexpected(exit) => write!(f, "unexpected exit {exit}"),
        }
    }
}

fn dump(regs: &kvm_regs, sregs: &kvm_sregs) -> String {
    format!(
        "  rip {:016x} rsp {:016x} rflags {:016x}\n\
         \x20 rax {:016x} rbx {:016x} rcx {:016x} rdx {:016x}\n\
         \x20 rsi {:016x} rdi {:016x} rbp {:016x}\n\
         \x20 r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}\n\
         \x20 r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}\n\
         \x20 cr0 {:016x} cr2 {:016x} cr3 {:016x} cr4 {:016x} efer {:x}\n\
         \x20 cs {:04x} base {:x} ss {:04x} base {:x} gdt {:x}+{:x} idt {:x}+{:x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
        sregs.cs.selector,
        sregs.cs.base,
        sregs.ss.selector,
        sregs.ss.base,
        sregs.gdt.base,
        sregs.gdt.limit,
        sregs.idt.base,
        sregs.idt.limit,
    )
}
