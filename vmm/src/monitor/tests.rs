//! The monitor between one machine and the next, without a machine.

use super::testing::VmFiles;
use super::*;

fn monitor() -> Monitor {
    let quiet = || UnixStream::pair().unwrap().0;
    Monitor {
        vm: None,
        signals: Arc::new(Signals::new().unwrap()),
        serial: Arc::new(Epoll::new().unwrap()),
        terminate: quiet(),
        terminal: quiet(),
        events: EventMonitor::default(),
        outcome: None,
    }
}

impl Signals {
    fn all(&self) -> [&vmm_sys_util::eventfd::EventFd; 4] {
        [&self.power_off, &self.reset, &self.fault, &self.refused]
    }
}

/// The loop takes events in batches: a call among them may have ended the machine that the next
/// one is of.
#[test]
fn what_a_dead_machine_signalled_does_nothing() {
    let mut monitor = monitor();
    for source in [Source::PowerOff, Source::Reset, Source::Fault, Source::Refused] {
        monitor.handle(source);
        assert!(monitor.outcome.is_none());
    }
}

#[test]
fn signals_end_with_their_vm() {
    let (files, mut monitor) = (VmFiles::new(), monitor());
    monitor.call(Request::Create(Box::new(files.config()))).unwrap();
    monitor.signals.all().into_iter().for_each(|signal| signal.write(1).unwrap());
    monitor.call(Request::Delete).unwrap();
    assert!(monitor.signals.all().into_iter().all(|signal| signal.read().is_err()));
}

#[test]
fn the_first_reason_to_end_holds() {
    let mut monitor = monitor();
    monitor.signals.all().into_iter().for_each(|signal| signal.write(1).unwrap());
    for source in [Source::PowerOff, Source::Reset, Source::Fault, Source::Refused] {
        monitor.handle(source);
        assert!(matches!(monitor.outcome, Some(Ok(()))));
    }
    let crash = || Error::Host { what: "a crash", source: io::ErrorKind::Other.into() };
    monitor.outcome = Some(Err(crash()));
    monitor.call(Request::VmmShutdown).unwrap();
    assert!(matches!(monitor.outcome, Some(Err(_))));
}
