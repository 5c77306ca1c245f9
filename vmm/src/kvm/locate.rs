//! Where a vCPU reached for closed memory.
//!
//! Most hosts end KVM_RUN with EFAULT and do not say where. But for an address without a memory slot
//! KVM emulates the instruction and passes it on with its address. So, once the machine is at its
//! end and the slots of closed memory are gone ([`super::Vm::map_open_blocks`]), the vCPU tries its
//! instruction once more.

use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug, kvm_regs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

/// One instruction takes microseconds, where the host gives the thread a CPU. A guest that goes on,
/// or sleeps, is ended after this.
const LIMIT: Duration = Duration::from_secs(1);

/// How often the thread is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// RFLAGS.AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;

/// The guest-physical address that the vCPU's next instruction reaches for and that has no memory
/// slot; where KVM does not tell, that of the instruction itself, which may be what is not there.
/// The vCPU is of no use afterwards.
pub(super) fn locate(fd: VcpuFd) -> Option<u64> {
    let thread = thread::Builder::new().name("locate".into()).spawn(move || step(fd)).ok()?;
    let start = Instant::now();
    while !thread.is_finished() {
        thread::sleep(LOOK);
        if start.elapsed() > LIMIT {
            // Ends KVM_RUN. One that comes too early is followed by another.
            let _ = thread.kill(SIGRTMIN());
        }
    }
    thread.join().ok().flatten()
}

fn step(mut fd: VcpuFd) -> Option<u64> {
    let instruction = instruction(&fd);
    // No interrupt comes first, and nothing after. An older host lacks the means.
    let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ;
    let _ = fd.set_guest_debug(&kvm_guest_debug { control, ..Default::default() });
    match fd.run() {
        Ok(VcpuExit::MmioRead(address, _) | VcpuExit::MmioWrite(address, _)) => Some(address),
        // Not closed: the host itself has no memory there.
        Err(error) if error.errno() != libc::EINTR => None,
        // KVM can't emulate what it can't fetch; a user program gets an exception instead, of which
        // its kernel makes something else, or it sleeps.
        _ => instruction,
    }
}

/// Where the next instruction is.
fn instruction(fd: &VcpuFd) -> Option<u64> {
    let regs = fd.get_regs().ok()?;
    // Else KVM finds no user program's address where SMAP is on (SDM 3A, 5.6).
    fd.set_regs(&kvm_regs { rflags: regs.rflags | ALIGNMENT_CHECK, ..regs }).ok()?;
    let place = fd.translate_gva(regs.rip);
    fd.set_regs(&regs).ok()?;
    place.ok().filter(|place| place.valid != 0).map(|place| place.physical_address)
}
