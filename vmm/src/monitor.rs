//! The monitor: one thread that owns the VM, and what reaches it from outside.
//!
//! Requests of the API, signals of the process and signals of the machine all arrive on this
//! thread, one at a time, so the VM needs no lock. The API's threads hand their requests over as
//! closures.
//!
//! ```text
//!              create            boot               pause
//!   (no VM) ----------> Created -------> Running <---------> Paused
//!           <----------         <-------          resume
//!              delete           shutdown (also from Paused)
//! ```
//! A guest's power-off ends the process; its reset, like `vm.reboot`, builds the machine anew. After
//! `vm.reboot` the VM runs; a guest's reset leaves it paused where it was.

mod instance;
mod memory;
mod partitions;
mod refused;
mod slots;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId,
    SubscriberOps,
};
use log::{info, warn};
use signal_hook::consts::{SIGCONT, SIGINT, SIGTERM, SIGWINCH};
use vmm_sys_util::epoll::Epoll;

use crate::api::config::VmConfig;
use crate::api::{
    ApiError, Control, ErrorKind, EventMonitor, Launch, PingReply, Reply, Request, Server,
    ServerError,
};
use crate::machine::spec::InvalidConfig;
use crate::machine::{self, Signals};
use instance::Instance;
pub use refused::RefusedAccess;

/// Why the monitor ends with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration given at start.
    #[error("the configuration is invalid")]
    Config(#[from] InvalidConfig),
    /// The serial port's or console's other end.
    #[error("the serial port or console could not be opened")]
    Characters(#[from] machine::chardev::CharError),
    /// The machine could not be built.
    #[error("the VM could not boot")]
    Machine(#[from] machine::Error),
    /// A vCPU can't go on.
    #[error("the guest crashed")]
    Fault(#[from] crate::kvm::vcpu::Fault),
    /// The guest reached for memory that it does not have, and is not to go on.
    #[error("the guest was stopped: {access}")]
    Refused {
        /// Where, and whose memory it is.
        access: Box<RefusedAccess>,
        /// The vCPU that can't go on, where it was one.
        source: Option<crate::kvm::vcpu::Fault>,
    },
    /// The API can't be served.
    #[error("the API can't be served")]
    Api(#[from] ServerError),
    /// The main loop failed.
    #[error("waiting for events failed")]
    Events(#[from] event_manager::Error),
    /// The host refused something at start.
    #[error("cannot set up {what}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

/// Runs the monitor until the guest powers off, `vmm.shutdown`, SIGTERM or SIGINT.
///
/// # Errors
/// The VM could not be started, or it crashed.
pub fn run(launch: Launch) -> Result<(), Error> {
    let mut manager = EventManager::<Monitor>::new()?;
    let monitor = Monitor::new(&launch)?;
    let id = manager.add_subscriber(monitor);
    let control = RemoteControl { endpoint: manager.remote_endpoint(), id };
    let server = launch
        .api_socket
        .as_ref()
        .map(|socket| Server::start(socket, Arc::new(control)))
        .transpose()?;
    if let Some(config) = launch.config {
        manager.subscriber_mut(id)?.start(config)?;
    }
    let result = loop {
        manager.run()?;
        if let Some(result) = manager.subscriber_mut(id)?.outcome.take() {
            break result;
        }
    };
    // The VM goes first, so that a client that still waits sees it gone; then the socket.
    drop(manager.remove_subscriber(id)?);
    drop(manager);
    drop(server);
    result
}

fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// What woke the monitor.
#[derive(Clone, Copy)]
enum Source {
    PowerOff,
    Reset,
    Fault,
    Refused,
    Serial,
    Terminate,
    Terminal,
}

impl Source {
    const ALL: [Self; 7] = [
        Self::PowerOff,
        Self::Reset,
        Self::Fault,
        Self::Refused,
        Self::Serial,
        Self::Terminate,
        Self::Terminal,
    ];
}

/// The state of the process. Owned by its main thread's event loop.
struct Monitor {
    vm: Option<Instance>,
    signals: Arc<Signals>,
    serial: Arc<Epoll>,
    terminate: UnixStream,
    terminal: UnixStream,
    events: EventMonitor,
    /// Set when the process is to end.
    outcome: Option<Result<(), Error>>,
}

impl Monitor {
    fn new(launch: &Launch) -> Result<Self, Error> {
        let sink = launch.event_monitor.as_ref();
        let events =
            sink.map(EventMonitor::start).transpose().map_err(host("the event monitor"))?;
        Ok(Self {
            vm: None,
            signals: Arc::new(Signals::new().map_err(host("the machine's signals"))?),
            serial: Arc::new(Epoll::new().map_err(host("the serial port's events"))?),
            terminate: signal_pipe(&[SIGTERM, SIGINT]).map_err(host("signal handlers"))?,
            terminal: signal_pipe(&[SIGWINCH, SIGCONT]).map_err(host("signal handlers"))?,
            events: events.unwrap_or_default(),
            outcome: None,
        })
    }

    /// Creates and boots the VM given at start.
    fn start(&mut self, config: VmConfig) -> Result<(), Error> {
        let mut vm = self.instance(config)?;
        vm.boot()?;
        self.vm = Some(vm);
        Ok(())
    }

    fn instance(&self, config: VmConfig) -> Result<Instance, Error> {
        let (signals, serial) = (Arc::clone(&self.signals), Arc::clone(&self.serial));
        Instance::new(config, signals, serial, self.events.clone())
    }

    fn call(&mut self, request: Request) -> Result<Reply, ApiError> {
        match (&mut self.vm, request) {
            (_, Request::Ping) => Ok(Reply::Ping(PingReply::of_this_process())),
            (_, Request::VmmShutdown) => {
                self.outcome.get_or_insert(Ok(()));
                Ok(Reply::Done)
            }
            (None, Request::Create(config)) => {
                self.vm = Some(self.instance(*config).map_err(|error| create_error(&error))?);
                Ok(Reply::Done)
            }
            (Some(_), Request::Create(_)) => {
                Err(ApiError::new(ErrorKind::WrongState, "there is a VM already; vm.delete it"))
            }
            (_, Request::Delete) => {
                self.vm = None;
                self.events.event("vm", "deleted", &[]);
                Ok(Reply::Done)
            }
            (Some(vm), request) => vm.call(request),
            (None, _) => Err(ApiError::new(ErrorKind::NotFound, "there is no VM; vm.create one")),
        }
    }

    fn handle(&mut self, source: Source) {
        // Of several reasons to end, the first holds.
        if self.outcome.is_some() {
            return;
        }
        match source {
            Source::PowerOff if self.signals.power_off.read().is_ok() => {
                info!("the guest powered off");
                self.events.event("vm", "shutdown", &[]);
                self.outcome = Some(Ok(()));
            }
            Source::Reset if self.signals.reset.read().is_ok() => {
                info!("the guest asked for a reset");
                let rebooted = self.vm.as_mut().map_or(Ok(()), Instance::reset);
                self.outcome = rebooted.err().map(|error| Err(error.into()));
            }
            Source::Fault if self.signals.fault.read().is_ok() => {
                let fault = self.vm.as_mut().and_then(Instance::fault);
                self.events.event("vm", "panic", &[]);
                self.outcome = fault.map(Err);
            }
            Source::Refused if self.signals.refused.read().is_ok() => {
                self.outcome = self.vm.as_ref().and_then(Instance::report_refused).map(Err);
            }
            // Its machine went between the loop's wake-up and now.
            Source::PowerOff | Source::Reset | Source::Fault | Source::Refused => {}
            Source::Serial => self.machine(machine::Machine::serial_ready),
            Source::Terminate => {
                info!("asked to end by a signal");
                self.outcome = Some(Ok(()));
            }
            Source::Terminal => {
                drain(&self.terminal);
                if let Some(vm) = &self.vm {
                    vm.refresh_terminal();
                }
            }
        }
    }

    fn machine(&self, act: impl Fn(&machine::Machine)) {
        if let Some(machine) = self.vm.as_ref().and_then(Instance::machine) {
            act(machine);
        }
    }

    fn descriptor(&self, source: Source) -> &dyn AsRawFd {
        match source {
            Source::PowerOff => &self.signals.power_off,
            Source::Reset => &self.signals.reset,
            Source::Fault => &self.signals.fault,
            Source::Refused => &self.signals.refused,
            Source::Serial => self.serial.as_ref(),
            Source::Terminate => &self.terminate,
            Source::Terminal => &self.terminal,
        }
    }
}

impl MutEventSubscriber for Monitor {
    fn init(&mut self, ops: &mut EventOps) {
        for source in Source::ALL {
            let fd = self.descriptor(source).as_raw_fd();
            if let Err(error) = ops.add(Events::with_data_raw(fd, source as u32, EventSet::IN)) {
                self.outcome = Some(Err(error.into()));
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if let Some(&source) = Source::ALL.get(events.data() as usize) {
            self.handle(source);
        }
    }
}

/// Why a configuration was not taken, as a client is told.
fn create_error(error: &Error) -> ApiError {
    match error {
        Error::Config(invalid) => invalid.clone().into(),
        error => ApiError::from_error(ErrorKind::Internal, error),
    }
}

/// A stream that becomes readable when one of `signals` arrives.
fn signal_pipe(signals: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for &signal in signals {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

fn drain(stream: &UnixStream) {
    use std::io::Read;
    let mut stream = stream;
    while stream.read(&mut [0; 16]).is_ok_and(|count| count > 0) {}
}

/// The monitor as the API's threads see it.
struct RemoteControl {
    endpoint: RemoteEndpoint<Monitor>,
    id: SubscriberId,
}

impl Control for RemoteControl {
    fn call(&self, request: Request) -> Result<Reply, ApiError> {
        let id = self.id;
        self.endpoint
            .call_blocking(move |ops| {
                ops.subscriber_mut(id)
                    .map_err(CallError::Gone)?
                    .call(request)
                    .map_err(CallError::Api)
            })
            .map_err(|error| match error {
                CallError::Api(error) => error,
                CallError::Gone(error) => {
                    warn!("a request came too late: {error}");
                    ApiError::new(ErrorKind::Internal, "the monitor is shutting down")
                }
            })
    }
}

enum CallError {
    Api(ApiError),
    Gone(event_manager::Error),
}

impl From<event_manager::Error> for CallError {
    fn from(error: event_manager::Error) -> Self {
        Self::Gone(error)
    }
}
