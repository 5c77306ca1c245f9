//! Virtual CPUs: one thread each, named `vcpuN`.
//!
//! ```text
//!            spawn            pause             stop
//!   (none) --------> Running <-------> Paused --------> Stopped
//!                       |     resume                       ^
//!                       +----------- stop, fault ----------+
//! ```
//! A vCPU thread is in KVM_RUN, in a device's register callback, or parked. Asking it to do
//! something else is: write it into the state, raise its `attention`, and signal it until it has
//! answered; a signal that falls between the look at `attention` and KVM_RUN is followed by another.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::bus::Bus;
use devices::sync::lock;
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};
use log::{debug, error};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::exits::{ExitCounters, count};
pub use super::fault::Fault;
use super::fault::Reason;
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
    /// Of each vCPU: whether it is yet to take a non-maskable interrupt.
    nmis: Vec<bool>,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The thread of vCPU `index` answers no more.
    fn ended(&self, index: usize) {
        let mut state = self.state();
        state.alive -= 1;
        state.nmis[index] = false;
        self.changed.notify_all();
    }
}

/// A machine's vCPUs. Dropping it ends their threads.
pub struct Vcpus {
    control: Arc<Control>,
    threads: Vec<JoinHandle<Option<(Fault, VcpuFd)>>>,
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
        let nmis = vec![false; states.len()];
        let state = State { goal: Goal::Pause, parked: 0, alive: states.len(), nmis };
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

    /// Sends each vCPU a non-maskable interrupt: returns when those that run have it. The others get
    /// it when they resume.
    pub fn nmi(&self) {
        self.control.state().nmis.fill(true);
        self.summon(|state| state.goal != Goal::Run || !state.nmis.contains(&true));
    }

    /// Ends the threads; returns why one of them ended by itself. Where that was for closed memory
    /// and the host did not say where, `close` makes KVM tell: it takes the slots of closed memory
    /// away, and says whether it could.
    pub fn stop(&mut self, close: impl FnOnce() -> bool) -> Option<Fault> {
        self.control.state().goal = Goal::Stop;
        self.control.changed.notify_all();
        self.summon(|state| state.alive == 0);
        let ended = self.threads.drain(..).filter_map(|thread| thread.join().ok().flatten());
        // All of them: no thread is left when slots go.
        let (mut fault, fd) = ended.collect::<Vec<_>>().into_iter().next()?;
        if fault.is_lost() && close() {
            fault.locate(fd);
        }
        Some(fault)
    }

    /// Exits by kind.
    pub fn counters(&self) -> &ExitCounters {
        &self.control.counters
    }

    /// Gets every thread to look at the state, until `done`.
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
        if let Some(fault) = self.stop(|| false) {
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
        Ok(Self { index, fd, control, affinity: state.affinity, ran: false })
    }

    fn run(mut self) -> Option<(Fault, VcpuFd)> {
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
                break Some(Fault::new(self.index, reason, &self.fd));
            }
        };
        control.ended(self.index);
        if fault.is_some()
            && let Err(error) = control.faulted.write(1)
        {
            error!("reporting a fault: {error}");
        }
        Some((fault?, self.fd))
    }

    /// Does what the state says; returns whether to go on.
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
        if std::mem::take(&mut state.nmis[self.index]) {
            if let Err(error) = self.fd.nmi() {
                error!("vCPU {}: injecting an NMI: {error}", self.index);
            }
            control.changed.notify_all();
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
            Ok(VcpuExit::MemoryFault { gpa, .. }) => return Err(Reason::Memory(Some(gpa))),
            Ok(exit) => return Err(Reason::Unexpected(format!("{exit:?}"))),
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => count(&counters.interrupted),
                libc::EFAULT => return Err(Reason::Memory(None)),
                _ => return Err(Reason::Run(error)),
            },
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The one NMI that an operator sends a guest that hangs.
    #[test]
    fn an_nmi_whose_first_signal_is_lost_arrives() {
        install_signal_handler();
        let state = State { goal: Goal::Run, parked: 0, alive: 1, nmis: vec![false] };
        let control = Arc::new(Control {
            state: Mutex::new(state),
            changed: Condvar::new(),
            attention: vec![AtomicBool::new(false)],
            counters: ExitCounters::default(),
            faulted: EventFd::new(0).unwrap(),
            buses: Buses { ports: Bus::default(), memory: Bus::default() },
        });
        let vcpu = Arc::clone(&control);
        let thread = thread::spawn(move || {
            // Waits until a signal comes, as KVM_RUN does. The first comes too early.
            let (mut run, _silent) = UnixStream::pair().unwrap();
            for _ in 0..2 {
                assert_eq!(run.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::Interrupted);
            }
            vcpu.ended(0);
            None
        });
        let vcpus = Vcpus { control, threads: vec![thread] };
        vcpus.nmi();
        assert_eq!(vcpus.control.state().nmis, [false]);
    }
}
