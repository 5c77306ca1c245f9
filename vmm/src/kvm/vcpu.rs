//! Virtual CPUs: one thread each, named `vcpuN`.
//!
//! ```text
//!            spawn            pause             stop
//!   (none) --------> Running <-------> Paused --------> Stopped
//!                       |     resume                       ^
//!                       +----------- stop, fault ----------+
//! ```
//! A vCPU thread is in KVM_RUN, in a device's register callback, or parked. Asking it to do
//! something else is: set the goal, raise its `attention`, and signal it until it has answered; a
//! signal that falls between the look at `attention` and KVM_RUN is followed by another.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::bus::Bus;
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use log::{debug, error};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::exits::{ExitCounters, count};
use super::{Error, Vm, call};

/// A vCPU thread only runs the loop below and register callbacks.
const STACK: usize = 256 << 10;

/// How long to wait for a signalled vCPU before signalling again.
const SIGNAL_PERIOD: Duration = Duration::from_millis(1);

const MSR_TSC: u32 = 0x10;

/// The two address spaces whose accesses end outside the kernel.
pub struct Buses {
    /// Port I/O.
    pub ports: Bus,
    /// Memory-mapped I/O.
    pub memory: Bus,
}

/// What a vCPU is made with. `registers` is `None` for CPUs that wait for the guest to start them.
pub struct VcpuState {
    /// Its CPUID leaves.
    pub cpuid: CpuId,
    /// Its model-specific registers.
    pub msrs: Msrs,
    /// Where the boot CPU begins.
    pub registers: Option<Registers>,
    /// Host CPUs its thread may run on; empty for any.
    pub affinity: Vec<usize>,
}

/// General and special registers at the first instruction.
#[derive(Clone, Copy)]
pub struct Registers {
    /// General registers.
    pub regs: kvm_regs,
    /// Changes the special registers that KVM starts with.
    pub sregs: fn(&mut kvm_sregs),
}

/// Why a vCPU can't go on. The machine is to be stopped.
#[derive(Debug, thiserror::Error)]
#[error("vCPU {vcpu} stopped: {reason}\n{registers}")]
pub struct Fault {
    vcpu: usize,
    reason: Reason,
    registers: String,
}

impl Fault {
    /// Where the guest reached for memory that can't be accessed, if that is why it stopped: a
    /// guest-physical address, of the page where the host tells no more.
    pub fn inaccessible(&self) -> Option<u64> {
        match self.reason {
            Reason::Memory(address) => Some(address),
            _ => None,
        }
    }
}

#[derive(Debug)]
enum Reason {
    TripleFault,
    Entry(u64),
    Internal,
    Memory(u64),
    Run(kvm_ioctls::Error),
    Unexpected(String),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => write!(f, "triple fault"),
            Self::Entry(reason) => write!(f, "the CPU refused the guest's state ({reason:#x})"),
            Self::Internal => write!(f, "KVM can't emulate the guest's instruction"),
            Self::Memory(address) => write!(f, "access to inaccessible memory at {address:#x}"),
            Self::Run(error) => write!(f, "KVM_RUN failed: {error}"),
            Self::Unexpected(exit) => write!(f, "unexpected exit {exit}"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    Run,
    Pause,
    Stop,
}

/// What all vCPU threads of a machine share.
struct Control {
    state: Mutex<State>,
    changed: Condvar,
    attention: Vec<AtomicBool>,
    counters: ExitCounters,
    faulted: EventFd,
    buses: Buses,
}

struct State {
    goal: Goal,
    /// Threads that wait for the goal to change.
    parked: usize,
    /// Threads that have not ended.
    alive: usize,
    /// Non-maskable interrupts asked for so far.
    nmis: u64,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine's vCPUs. Dropping it ends their threads.
pub struct Vcpus {
    control: Arc<Control>,
    threads: Vec<JoinHandle<Option<Fault>>>,
}

impl Vcpus {
    /// Makes one vCPU per entry of `states`. Their threads start at once, paused.
    /// `faulted` is signalled when one can't go on; [`Vcpus::stop`] then returns why.
    ///
    /// # Errors
    /// KVM or the host refused; no thread is left behind.
    pub fn start(
        vm: &Vm,
        states: Vec<VcpuState>,
        buses: Buses,
        faulted: EventFd,
    ) -> Result<Self, Error> {
        install_signal_handler();
        let state = State { goal: Goal::Pause, parked: 0, alive: states.len(), nmis: 0 };
        let control = Arc::new(Control {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: states.iter().map(|_| AtomicBool::new(true)).collect(),
            counters: ExitCounters::default(),
            faulted,
            buses,
        });
        let vcpus = states
            .into_iter()
            .enumerate()
            .map(|(index, state)| Vcpu::new(vm, index, state, Arc::clone(&control)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut this = Self { control, threads: Vec::with_capacity(vcpus.len()) };
        for vcpu in vcpus {
            let builder = thread::Builder::new().name(format!("vcpu{}", vcpu.index));
            let thread = builder.stack_size(STACK).spawn(move || vcpu.run());
            this.threads.push(thread.map_err(Error::Thread)?);
        }
        Ok(this)
    }

    /// Lets the vCPUs run.
    pub fn resume(&self) {
        self.control.state().goal = Goal::Run;
        self.control.changed.notify_all();
    }

    /// Returns when every vCPU is out of the guest and out of every device callback.
    pub fn pause(&self) {
        self.control.state().goal = Goal::Pause;
        self.summon(|state| state.parked == state.alive);
    }

    /// Sends each vCPU a non-maskable interrupt, at once or when it resumes.
    pub fn nmi(&self) {
        self.control.state().nmis += 1;
        self.control.attention.iter().for_each(|flag| flag.store(true, Ordering::Release));
        self.signal();
    }

    /// Ends the threads; returns why one of them ended by itself.
    pub fn stop(&mut self) -> Option<Fault> {
        self.control.state().goal = Goal::Stop;
        self.control.changed.notify_all();
        self.summon(|state| state.alive == 0);
        self.threads.drain(..).filter_map(|thread| thread.join().ok().flatten()).next()
    }

    /// Exits by kind.
    pub fn counters(&self) -> &ExitCounters {
        &self.control.counters
    }

    /// Gets every thread to look at the goal, until `done`.
    fn summon(&self, done: impl Fn(&State) -> bool) {
        self.control.attention.iter().for_each(|flag| flag.store(true, Ordering::Release));
        let mut state = self.control.state();
        // A thread that was never started can't answer.
        state.alive = state.alive.min(self.threads.len());
        while !done(&state) {
            drop(state);
            self.signal();
            state = self.control.state();
            if !done(&state) {
                let waited = self.control.changed.wait_timeout(state, SIGNAL_PERIOD);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn signal(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            if let Err(error) = thread.kill(SIGRTMIN()) {
                debug!("signalling a vCPU: {error}");
            }
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        if let Some(fault) = self.stop() {
            error!("{fault}");
        }
    }
}

/// The signal only has to end KVM_RUN.
extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn install_signal_handler() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        register_signal_handler(SIGRTMIN(), ignore).expect("SIGRTMIN is a valid signal");
    });
}

struct Vcpu {
    index: usize,
    fd: VcpuFd,
    control: Arc<Control>,
    affinity: Vec<usize>,
    nmis_seen: u64,
    /// Whether it has been in the guest: before that its counter has no past.
    ran: bool,
}

impl Vcpu {
    fn new(vm: &Vm, index: usize, state: VcpuState, control: Arc<Control>) -> Result<Self, Error> {
        let fd = vm.fd.create_vcpu(index as u64).map_err(call("create a vCPU"))?;
        fd.set_cpuid2(&state.cpuid).map_err(call("set CPUID"))?;
        fd.set_msrs(&state.msrs).map_err(call("set model-specific registers"))?;
        set_lint(&fd)?;
        if let Some(Registers { regs, sregs }) = state.registers {
            let mut special = fd.get_sregs().map_err(call("read special registers"))?;
            sregs(&mut special);
            fd.set_sregs(&special).map_err(call("set special registers"))?;
            fd.set_regs(&regs).map_err(call("set registers"))?;
            set_fpu(&fd)?;
        }
        Ok(Self { index, fd, control, affinity: state.affinity, nmis_seen: 0, ran: false })
    }

    fn run(mut self) -> Option<Fault> {
        if let Err(error) = pin(&self.affinity) {
            error!("vCPU {}: cannot pin to host CPUs {:?}: {error}", self.index, self.affinity);
        }
        let control = Arc::clone(&self.control);
        let attention = &control.attention[self.index];
        let fault = loop {
            if attention.load(Ordering::Acquire) && !self.attend() {
                break None;
            }
            if let Err(reason) = self.step() {
                break Some(self.fault(reason));
            }
        };
        control.state().alive -= 1;
        control.changed.notify_all();
        if fault.is_some()
            && let Err(error) = control.faulted.write(1)
        {
            error!("reporting a fault: {error}");
        }
        fault
    }

    /// Does what the goal says; returns whether to go on.
    fn attend(&mut self) -> bool {
        let control = Arc::clone(&self.control);
        control.attention[self.index].store(false, Ordering::Release);
        let mut state = control.state();
        if state.goal == Goal::Pause {
            // Tells the guest's clock that time stood still; guests without kvmclock say EINVAL.
            let _ = self.fd.kvmclock_ctrl();
            let stopped = self.ran.then(|| self.timestamp()).flatten();
            state.parked += 1;
            control.changed.notify_all();
            while state.goal == Goal::Pause {
                state = control.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.parked -= 1;
            if let Some(timestamp) = stopped.filter(|_| state.goal == Goal::Run) {
                self.set_timestamp(timestamp);
            }
        }
        self.ran = true;
        if self.nmis_seen != state.nmis {
            self.nmis_seen = state.nmis;
            if let Err(error) = self.fd.nmi() {
                error!("vCPU {}: injecting an NMI: {error}", self.index);
            }
        }
        state.goal == Goal::Run
    }

    /// The time-stamp counter as the guest reads it.
    fn timestamp(&self) -> Option<u64> {
        let entry = kvm_msr_entry { index: MSR_TSC, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry]).ok()?;
        let read = self.fd.get_msrs(&mut msrs).is_ok_and(|count| count == 1);
        read.then(|| msrs.as_slice()[0].data)
    }

    /// Sets the guest's counter back to where a pause found it. KVM takes writes of all vCPUs within
    /// a second for one and keeps them in step.
    fn set_timestamp(&self, data: u64) {
        let entry = kvm_msr_entry { index: MSR_TSC, data, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
        if let Err(error) = self.fd.set_msrs(&msrs) {
            error!("vCPU {}: setting its time-stamp counter back: {error}", self.index);
        }
    }

    /// Runs the guest until its next exit and serves that.
    fn step(&mut self) -> Result<(), Reason> {
        let Control { buses, counters, .. } = self.control.as_ref();
        match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&counters.memory_read);
                buses.memory.read(address, data);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&counters.memory_write);
                buses.memory.write(address, data);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&counters.port_read);
                accesses_mut(data).for_each(|data| {
                    buses.ports.read(port.into(), data);
                });
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&counters.port_write);
                accesses(data).for_each(|data| {
                    buses.ports.write(port.into(), data);
                });
            }
            Ok(VcpuExit::Intr) => count(&counters.interrupted),
            Ok(VcpuExit::Shutdown) => return Err(Reason::TripleFault),
            Ok(VcpuExit::InternalError) => return Err(Reason::Internal),
            Ok(VcpuExit::FailEntry(reason, _)) => return Err(Reason::Entry(reason)),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => return Err(Reason::Memory(gpa)),
            Ok(exit) => return Err(Reason::Unexpected(format!("{exit:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => count(&counters.interrupted),
                _ => return Err(Reason::Run(error)),
            },
        }
        Ok(())
    }

    fn fault(&self, reason: Reason) -> Fault {
        let registers = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => dump(&regs, &sregs),
            _ => "registers could not be read".to_owned(),
        };
        Fault { vcpu: self.index, reason, registers }
    }
}

/// A string instruction's exit carries many accesses to one port; KVM hands them over as one
/// buffer, and only string instructions make it longer than a register.
fn accesses(data: &[u8]) -> std::slice::Chunks<'_, u8> {
    data.chunks(if data.len() > 4 { 1 } else { data.len().max(1) })
}

fn accesses_mut(data: &mut [u8]) -> std::slice::ChunksMut<'_, u8> {
    let size = if data.len() > 4 { 1 } else { data.len().max(1) };
    data.chunks_mut(size)
}

fn pin(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Wires LINT0 to the legacy controller and LINT1 to NMI, as firmware does (SDM 3A, 11.5.1).
fn set_lint(fd: &VcpuFd) -> Result<(), Error> {
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const MODE_EXTINT: i8 = 7;
    const MODE_NMI: i8 = 4;
    let mut lapic = fd.get_lapic().map_err(call("read the local APIC"))?;
    for (register, mode) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
        let byte = &mut lapic.regs[register + 1];
        *byte = (*byte & !7) | mode;
    }
    fd.set_lapic(&lapic).map_err(call("set the local APIC"))
}

/// The state FNINIT leaves (SDM 1, 8.1.5) and the default MXCSR.
fn set_fpu(fd: &VcpuFd) -> Result<(), Error> {
    let fpu = kvm_bindings::kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    fd.set_fpu(&fpu).map_err(call("set the FPU"))
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
