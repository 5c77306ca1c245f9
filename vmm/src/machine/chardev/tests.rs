use std::fs::File;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::OpenptFlags;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;

use super::outlet::Outlet;
use super::*;

const SOON: Duration = Duration::from_secs(5);

fn readable_within(fd: impl AsFd, time: Duration) -> bool {
    let time = Timespec::try_from(time).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&time)).unwrap() > 0
}

/// Whether the device's loop would be woken now.
fn is_awake(backend: &dyn CharBackend) -> bool {
    readable_within(backend.input().unwrap(), Duration::from_millis(20))
}

/// Waits for input as a device does, through as many wake-ups as it takes.
fn receive(backend: &dyn CharBackend, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        backend.arm();
        assert!(readable_within(backend.input().unwrap(), SOON), "got only {bytes:?}");
        let mut buffer = [0; 16];
        let count = backend.read(&mut buffer[..(len - bytes.len()).min(16)]);
        bytes.extend_from_slice(&buffer[..count]);
    }
    bytes
}

/// Serves every wake-up until there is none, and returns how many there were.
fn wake_ups(backend: &dyn CharBackend) -> usize {
    let mut count = 0;
    backend.arm();
    while count < 100 && is_awake(backend) {
        backend.read(&mut [0; 16]);
        backend.arm();
        count += 1;
    }
    count
}

fn read_exactly(mut from: impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

fn piped() -> (CharDevice, File, PipeReader) {
    let ((stdin, typing), (screen, stdout)) = (pipe().unwrap(), pipe().unwrap());
    let device = CharDevice::terminal(stdin.as_fd(), stdout.as_fd()).unwrap();
    (device, File::from(std::os::fd::OwnedFd::from(typing)), screen)
}

fn socket() -> (TempDir, PathBuf, CharDevice) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial.sock");
    let device = CharDevice::open(&CharMode::Socket(path.clone())).unwrap().unwrap();
    (dir, path, device)
}

#[test]
fn off_is_no_device_and_null_a_silent_one() {
    assert!(CharDevice::open(&CharMode::Off).unwrap().is_none());
    let null = CharDevice::open(&CharMode::Null).unwrap().unwrap();
    null.backend().write(b"gone");
    assert!(null.backend().input().is_none());
    assert_eq!(null.backend().read(&mut [0; 4]), 0);
    assert_eq!(null.window_size(), WindowSize::default());
}

#[test]
fn a_file_is_made_anew_and_takes_output() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial.log");
    std::fs::write(&path, "from the last run").unwrap();
    let file = CharDevice::open(&CharMode::File(path.clone())).unwrap().unwrap();
    file.backend().write(b"one\n");
    file.backend().write(&[b'2'; 10_000]);
    assert!(file.backend().input().is_none());
    assert_eq!(std::fs::read(&path).unwrap(), [b"one\n".as_slice(), &[b'2'; 10_000]].concat());
}

#[test]
fn a_file_that_cannot_be_opened_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing/serial.log");
    let error = CharDevice::open(&CharMode::File(path)).err().unwrap();
    assert!(error.to_string().contains("missing/serial.log"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_reader_that_stops_costs_one_wait_and_then_nothing() {
    let (device, _typing, mut screen) = piped();
    let backend = device.backend();
    let start = Instant::now();
    backend.write(&[b'x'; 1 << 20]);
    assert!(start.elapsed() >= PATIENCE);
    let start = Instant::now();
    (0..50).for_each(|_| backend.write(b"dropped"));
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    // Once there is room, output flows again.
    read_exactly(&mut screen, 32 << 10);
    backend.write(b"back");
    let rest = read_exactly(&mut screen, (32 << 10) + 4);
    assert_eq!(&rest[32 << 10..], b"back");
}

#[test]
fn a_slow_reader_loses_nothing() {
    let (mut screen, stdout) = pipe().unwrap();
    let reader = std::thread::spawn(move || {
        let mut total = 0;
        let mut buffer = [0; 16 << 10];
        loop {
            std::thread::sleep(Duration::from_millis(1));
            match screen.read(&mut buffer).unwrap() {
                0 => return total,
                count => total += count,
            }
        }
    });
    // The reader may get no CPU for longer than a guest is made to wait.
    let outlet = Outlet::with_patience(stdout, Duration::from_secs(60));
    (0..128).for_each(|_| outlet.send(&[b'x'; 4 << 10]).unwrap());
    drop(outlet);
    assert_eq!(reader.join().unwrap(), 512 << 10);
}

#[test]
fn a_reader_that_is_gone_is_no_matter() {
    let (device, _typing, screen) = piped();
    drop(screen);
    device.backend().write(b"nobody");
}

#[test]
fn input_waits_for_the_guest_and_ends_quietly() {
    let (device, mut typing, _screen) = piped();
    let backend = device.backend();
    typing.write_all(b"abcdef").unwrap();
    assert!(!is_awake(&*backend), "not armed yet");
    assert_eq!(receive(&*backend, 4), b"abcd");
    assert!(!is_awake(&*backend), "not armed again");
    assert_eq!(receive(&*backend, 2), b"ef");
    drop(typing);
    assert_eq!(wake_ups(&*backend), 1);
    assert_eq!(wake_ups(&*backend), 0);
}

#[test]
fn closed_standard_input_wakes_nobody() {
    let null = File::open("/dev/null").unwrap();
    let (_screen, stdout) = pipe().unwrap();
    for stdin in [null, tempfile::tempfile().unwrap()] {
        let device = CharDevice::terminal(stdin.as_fd(), stdout.as_fd()).unwrap();
        assert_eq!(wake_ups(&*device.backend()), 0);
    }
}

#[test]
fn a_terminal_is_raw_while_in_use_and_restored_after() {
    let (pty, _keyboard) = Pty::open().unwrap();
    let tty = File::options().read(true).write(true).open(pty.path()).unwrap();
    let mut cooked = tcgetattr(&tty).unwrap();
    cooked.local_modes |= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    rustix::termios::tcsetattr(&tty, rustix::termios::OptionalActions::Now, &cooked).unwrap();
    let local = || tcgetattr(&tty).unwrap().local_modes;

    let device = CharDevice::terminal(tty.as_fd(), tty.as_fd()).unwrap();
    assert!(!local().intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
    tcsetwinsize(&tty, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    assert_eq!(device.window_size(), WindowSize { columns: 80, rows: 24 });
    // Our shell's own descriptor stays a blocking one.
    assert!(!rustix::fs::fcntl_getfl(&tty).unwrap().contains(OFlags::NONBLOCK));
    device.refresh();
    assert!(!local().contains(LocalModes::ICANON));
    drop(device);
    assert!(local().contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
}

#[test]
fn a_terminal_carries_both_ways() {
    let (pty, keyboard) = Pty::open().unwrap();
    let tty = File::options().read(true).write(true).open(pty.path()).unwrap();
    let device = CharDevice::terminal(tty.as_fd(), tty.as_fd()).unwrap();
    keyboard.write(b"ls\x03");
    assert_eq!(receive(&*device.backend(), 3), b"ls\x03");
    device.backend().write(b"file\n");
    assert_eq!(receive(&keyboard, 5), b"file\n");
    drop(tty);
}

#[test]
fn pty_clients_come_and_go() {
    let device = CharDevice::open(&CharMode::Pty).unwrap().unwrap();
    let backend = device.backend();
    let connect = || {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        rustix::fs::open(device.pty_path().unwrap(), flags.into(), Mode::empty()).unwrap()
    };
    backend.write(b"early ");
    for _ in 0..3 {
        let mut client = File::from(connect());
        backend.write(b"login:\n");
        client.write_all(b"root\r").unwrap();
        assert_eq!(receive(&*backend, 5), b"root\r");
        drop(client);
        assert_eq!(wake_ups(&*backend), 0, "a client's leaving is not an event");
    }
    assert_eq!(read_exactly(File::from(connect()), 13), b"early login:\n");
}

#[test]
fn a_pty_without_clients_does_not_hold_the_guest_up() {
    let device = CharDevice::open(&CharMode::Pty).unwrap().unwrap();
    let start = Instant::now();
    (0..256).for_each(|_| device.backend().write(&[b'x'; 4 << 10]));
    assert!(start.elapsed() < 10 * PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn a_socket_serves_one_client_after_another() {
    let (_dir, path, device) = socket();
    let backend = device.backend();
    backend.write(b"nobody hears this");
    let mut first = UnixStream::connect(&path).unwrap();
    let mut second = UnixStream::connect(&path).unwrap();
    first.write_all(b"first").unwrap();
    second.write_all(b"second").unwrap();
    assert_eq!(receive(&*backend, 5), b"first");
    backend.write(b"to the first");
    assert_eq!(read_exactly(&mut first, 12), b"to the first");
    drop(first);
    assert_eq!(receive(&*backend, 6), b"second");
    backend.write(b"to the second");
    assert_eq!(read_exactly(&mut second, 13), b"to the second");
    drop(second);
    assert!(wake_ups(&*backend) < 3);
    let third = UnixStream::connect(&path).unwrap();
    (&third).write_all(b"!").unwrap();
    assert_eq!(receive(&*backend, 1), b"!");
}

#[test]
fn a_client_that_stopped_sending_still_gets_output() {
    let (_dir, path, device) = socket();
    let backend = device.backend();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"ls\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(receive(&*backend, 3), b"ls\n");
    assert_eq!(wake_ups(&*backend), 1);
    backend.write(b"file\n");
    assert_eq!(read_exactly(&mut client, 5), b"file\n");
    drop(client);
    assert_eq!(wake_ups(&*backend), 1);
}

#[test]
fn a_client_found_dead_while_writing_makes_room_for_the_next() {
    let (_dir, path, device) = socket();
    let backend = device.backend();
    let first = UnixStream::connect(&path).unwrap();
    (&first).write_all(b"1").unwrap();
    assert_eq!(receive(&*backend, 1), b"1");
    backend.arm();
    drop(first);
    backend.write(b"too late");
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"2").unwrap();
    assert!(is_awake(&*backend), "armed for the listener without being asked again");
    assert_eq!(receive(&*backend, 1), b"2");
}

#[test]
fn a_socket_client_that_does_not_read_costs_one_wait() {
    let (_dir, path, device) = socket();
    let backend = device.backend();
    let client = UnixStream::connect(&path).unwrap();
    (&client).write_all(b"1").unwrap();
    assert_eq!(receive(&*backend, 1), b"1");
    let start = Instant::now();
    (0..512).for_each(|_| backend.write(&[b'x'; 4 << 10]));
    assert!(start.elapsed() < 5 * PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn a_stale_socket_is_replaced_a_live_one_is_not_and_none_is_left() {
    let (_dir, path, device) = socket();
    let error = CharDevice::open(&CharMode::Socket(path.clone())).err().unwrap();
    assert!(matches!(error, CharError::Socket { .. }));
    drop(device);
    assert!(!path.exists());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let device = CharDevice::open(&CharMode::Socket(path.clone())).unwrap().unwrap();
    UnixStream::connect(&path).unwrap();
    drop(device);
    assert!(!path.exists());
}

#[test]
fn a_plain_file_in_the_way_of_a_socket_is_kept() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(CharDevice::open(&CharMode::Socket(file.path().into())).is_err());
    assert!(file.path().exists());
}
