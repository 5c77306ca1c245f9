//! The command against a monitor that is none: a real unix socket, prepared answers.

// The whole file is a test; clippy exempts only what is marked as one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

/// What a fake monitor answers: call and body to status and body.
type Answers = dyn Fn(&str, &str) -> (u16, String) + Send + Sync;

/// Serves until the test ends; the socket goes with its folder.
struct Monitor {
    folder: TempDir,
    /// Method, path and body of each call so far.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Monitor {
    fn new(answers: impl Fn(&str, &str) -> (u16, String) + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("api")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(&mut stream.unwrap(), &answers, &note);
            }
        });
        Self { folder, asked }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("api")
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = memctl("--api-socket");
        command.arg(self.socket()).args(arguments.split(' '));
        command
    }

    fn run(&self, arguments: &str) -> (i32, String, String) {
        finished(&self.command(arguments).output().unwrap())
    }

    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn serve(stream: &mut UnixStream, answers: &Answers, note: &Mutex<Vec<(String, Value)>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut call, mut length) = (String::new(), String::new(), 0);
    while reader.read_line(&mut line).unwrap() > 2 {
        match line.strip_prefix("Content-Length: ") {
            Some(digits) => length = digits.trim().parse().unwrap(),
            None if call.is_empty() => call = line.trim().to_owned(),
            None => {}
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let (method, path) = call.strip_suffix(" HTTP/1.1").unwrap().split_once(' ').unwrap();
    let name = path.strip_prefix("/api/v1/").unwrap();
    let json = serde_json::from_str(&body).unwrap_or_default();
    note.lock().unwrap().push((format!("{method} {name}"), json));
    let (status, answer) = answers(name, &body);
    let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n", answer.len());
    // In two pieces, as a busy monitor might. The client may have hung up.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer.as_bytes()));
}

fn memctl(argument: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memctl"));
    command.arg(argument);
    command
}

fn finished(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn info() -> Value {
    json!({
        "state": "Running", "memory_actual_size": 3_u64 << 29,
        "config": {"memory": {"size": 1 << 29}},
        "device_tree": {"_mem0": {"id": "_mem0", "memory": {
            "addr": 1_u64 << 32, "shared": {"requested": 1 << 30, "plugged": 1 << 29, "peak": 1 << 29},
        }}},
    })
}

fn partition(state: &str, plugged: u64) -> Value {
    json!({"id": "fn-7", "state": state, "size": 512 << 20, "plugged": plugged, "used": null,
           "used_peak": 0, "peak": plugged, "last_release_us": 250, "extents": [], "number": 3,
           "new": true})
}

/// A VM with one partition that does as it is told.
fn vm() -> Monitor {
    Monitor::new(|call, _| match call {
        "vm.info" => (200, info().to_string()),
        "vm.partitions" => (200, json!([partition("bound", 512 << 20)]).to_string()),
        "vm.resize" | "vm.resize-zone" => (204, String::new()),
        "vm.remove-partition" => {
            let mut gone = partition("absent", 0);
            gone["removal_us"] = json!(1250);
            (200, gone.to_string())
        }
        _ => (200, partition("requested", 0).to_string()),
    })
}

#[test]
fn ls_is_a_table_without_colours_off_a_terminal() {
    let expected = "\
ID        STATE        SIZE  PLUGGED  USED  PEAK   RELEASE  GUEST
(shared)  Running  1536 MiB    1 GiB     -     -         -      -
fn-7      bound     512 MiB  512 MiB     -     -  0.250 ms      3
";
    assert_eq!(vm().run("ls"), (0, expected.into(), String::new()));
}

#[test]
fn changes_are_asked_for_with_the_apis_fields() {
    let vm = vm();
    let cases = [
        (
            "add fn-7 --size 512M --cookie 9 --prefault",
            "vm.add-partition",
            json!({"id": "fn-7", "size": 512 << 20, "cookie": 9, "prefault": true,
                   "release": "auto"}),
            "fn-7: added, requested, 0 bytes of 512 MiB plugged; the guest calls it 3\n",
        ),
        (
            "add fn-7 --size 512M --release manual",
            "vm.add-partition",
            json!({"id": "fn-7", "size": 512 << 20, "cookie": 0, "prefault": false,
                   "release": "manual"}),
            "fn-7: added, requested, 0 bytes of 512 MiB plugged; the guest calls it 3\n",
        ),
        (
            "rm fn-7 --timeout 500ms --evacuate",
            "vm.remove-partition",
            json!({"id": "fn-7", "timeout_ms": 500, "evacuate": true}),
            "fn-7: removed in 1.250 ms, of it 0.250 ms on the host\n",
        ),
        (
            "resize fn-7 --size 1G",
            "vm.resize-partition",
            json!({"id": "fn-7", "size": 1 << 30}),
            "fn-7: requested, 0 bytes of 512 MiB plugged\n",
        ),
        (
            "resize-vm --memory 4G",
            "vm.resize",
            json!({"desired_ram": 4_u64 << 30}),
            "shared memory: 4 GiB asked for; `memctl ls` shows what the guest has\n",
        ),
        (
            "resize-vm --memory 4G --zone mem1",
            "vm.resize-zone",
            json!({"id": "mem1", "desired_ram": 4_u64 << 30}),
            "zone mem1: 4 GiB asked for; `memctl ls` shows what the guest has\n",
        ),
    ];
    for (arguments, call, body, expected) in cases {
        assert_eq!(vm.run(arguments), (0, expected.into(), String::new()));
        assert_eq!(vm.asked(), [(format!("PUT {call}"), body)]);
    }
}

#[test]
fn programs_get_the_monitors_json() {
    let vm = vm();
    let json = |arguments: &str| -> Value {
        let (code, output, _) = vm.run(arguments);
        assert_eq!((code, output.lines().count()), (0, 1), "{arguments}: {output}");
        serde_json::from_str(&output).unwrap()
    };
    let list = json!({"info": info(), "partitions": [partition("bound", 512 << 20)]});
    assert_eq!(json("--json ls"), list);
    assert_eq!(json("add fn-7 --size 1G --json"), partition("requested", 0));
    assert_eq!(json("rm fn-7 --json")["removal_us"], 1250);
    assert_eq!(json("--json resize-vm --memory 1G"), Value::Null);
}

#[test]
fn refusals_show_the_monitors_chain_and_what_to_do() {
    let vm = Monitor::new(|_, _| {
        (409, r#"["Error from API","fn-7 is in use","4 MiB: pid 17"]"#.to_owned())
    });
    let (code, output, errors) = vm.run("rm fn-7");
    assert_eq!((code, output.as_str()), (1, ""));
    let lines: Vec<&str> = errors.lines().collect();
    assert_eq!(lines[0], "memctl: vm.remove-partition: refused with status 409");
    assert_eq!(lines[1..3], ["  caused by: fn-7 is in use", "  caused by: 4 MiB: pid 17"]);
    assert!(lines[3].starts_with("  what to do: it stays asked for"), "{errors}");
}

#[test]
fn who_only_asks_for_a_removal_is_not_refused() {
    let vm = Monitor::new(|_, body| {
        let slot = "partition fn-7: the guest has not given back 4 MiB of node 1 yet";
        let why = if body.contains("fn-7") { slot } else { "the VM has not booted" };
        (409, json!(["Error from API", why]).to_string())
    });
    let asked = "fn-7: asked back; `memctl watch` shows when it has gone\n";
    assert_eq!(vm.run("rm fn-7 --timeout 0s"), (0, asked.into(), String::new()));
    assert_eq!(vm.run("rm fn-7 --timeout 0s --json"), (0, "null\n".into(), String::new()));
    let (code, _, errors) = vm.run("rm fn-7 --timeout 10ms");
    assert!(code == 1 && errors.contains("it stays asked for"), "{errors}");
    let (code, _, errors) = vm.run("rm fn-8 --timeout 0s");
    assert!(code == 1 && errors.contains("has not booted"), "{errors}");
}

/// A VM whose partition is in the next of `states` at each look, and stays in the last.
fn moving(states: &'static [(&'static str, u64)]) -> Monitor {
    let looks = Mutex::new(0);
    Monitor::new(move |call, _| match call {
        "vm.partitions" => {
            let mut looks = looks.lock().unwrap();
            let (state, plugged) = states[states.len().min(*looks + 1) - 1];
            *looks += 1;
            let there = (state != "absent").then(|| partition(state, plugged));
            let list: Value = there.into_iter().collect();
            (200, list.to_string())
        }
        "vm.resize-partition" => (204, String::new()),
        _ => (200, partition("requested", 0).to_string()),
    })
}

#[test]
fn additions_and_resizes_can_be_waited_for() {
    const ALL: u64 = 512 << 20;
    let states = &[("requested", 0), ("requested", 1 << 20), ("plugged", ALL), ("bound", ALL)];
    let vm = moving(states);
    let told = "fn-7: added, bound, 512 MiB of 512 MiB plugged; the guest calls it 3\n";
    assert_eq!(vm.run("add fn-7 --size 512M --wait 1m"), (0, told.into(), String::new()));
    assert_eq!(vm.asked().len(), 1 + states.len());

    let vm = moving(&[("bound", 2 * ALL), ("bound", ALL)]);
    let told = "fn-7: bound, 512 MiB of 512 MiB plugged\n";
    assert_eq!(vm.run("resize fn-7 --size 512M --wait 1m"), (0, told.into(), String::new()));
    let (_, output, _) = vm.run("resize fn-7 --size 512M --wait 1m --json");
    assert_eq!(serde_json::from_str::<Value>(&output).unwrap(), partition("bound", ALL));

    let vm = moving(&[("requested", 0)]);
    let (code, output, errors) = vm.run("add fn-7 --size 512M --wait 100ms");
    let late = "memctl: fn-7: after 100ms it is still requested, 0 bytes of 512 MiB plugged\n";
    assert!((code, output.as_str()) == (1, "") && errors.starts_with(late), "{errors}");
    assert!(errors.contains("it stays asked for"), "{errors}");
    let (code, _, errors) = moving(&[("absent", 0)]).run("add fn-7 --size 512M --wait 1m");
    assert!(code == 1 && errors.starts_with("memctl: fn-7: it has gone while"), "{errors}");
}

#[test]
fn zones_have_a_row_each() {
    let mut info = info();
    let zone = |id: &str| json!({"id": id, "size": 1 << 29});
    info["config"]["memory"] = json!({"size": 0, "zones": [zone("near"), zone("far")]});
    info["device_tree"]["__mem_far"] = info["device_tree"]["_mem0"].clone();
    let vm = Monitor::new(move |call, _| match call {
        "vm.info" => (200, info.to_string()),
        _ => (200, "[]".to_owned()),
    });
    let expected = "\
ID           STATE        SIZE  PLUGGED  USED  PEAK  RELEASE  GUEST
(zone near)  Running   512 MiB  512 MiB     -     -        -      -
(zone far)   Running  1536 MiB    1 GiB     -     -        -      -
";
    assert_eq!(vm.run("ls"), (0, expected.into(), String::new()));
}

#[test]
fn monitors_that_are_not_there_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let run = || finished(&memctl("--api-socket").arg(&socket).arg("ls").output().unwrap());
    let (code, _, errors) = run();
    assert_eq!(code, 1);
    assert!(errors.contains(&format!("start the monitor with --api-socket {}", socket.display())));
    drop(UnixListener::bind(&socket).unwrap());
    let (code, _, errors) = run();
    assert_eq!(code, 1);
    assert!(errors.contains("has ended"), "{errors}");
    fs::remove_file(&socket).unwrap();
}

#[test]
fn nonsense_from_the_monitor_is_an_error() {
    for answer in ["{", "7", r#"{"device_tree":7}"#] {
        let vm = Monitor::new(move |_, _| (200, answer.to_owned()));
        let (code, _, errors) = vm.run("ls");
        assert_eq!(code, 1);
        assert!(errors.starts_with("memctl: vm.info: the monitor's answer makes no sense"));
    }
}

#[test]
fn wrong_usage_is_code_2() {
    let (code, _, errors) = finished(&memctl("ls").output().unwrap());
    assert_eq!(code, 2);
    assert!(errors.contains("--api-socket PATH"), "{errors}");
    assert_eq!(vm().run("add fn-7").0, 2);
    assert_eq!(vm().run("add fn-7 --size 1Q").0, 2);
}

#[test]
fn watch_prints_a_line_per_change_and_ends_with_the_monitor() {
    let looks = Mutex::new(0);
    let vm = Monitor::new(move |call, _| {
        if call == "vm.info" {
            return (200, info().to_string());
        }
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        match *looks {
            1 => (200, "[]".into()),
            2 | 3 => (200, json!([partition("requested", 0)]).to_string()),
            4 => (200, json!([partition("plugged", 512 << 20)]).to_string()),
            _ => (404, r#"["Error from API","there is no VM"]"#.into()),
        }
    });
    let (code, output, errors) = vm.run("watch --interval 10ms");
    let told: Vec<&str> = output.lines().map(|line| line.split_once("s  ").unwrap().1).collect();
    assert_eq!(
        told,
        [
            "(shared)    Running, 1 GiB of 1536 MiB plugged",
            "fn-7        added: requested, 0 bytes of 512 MiB plugged",
            "fn-7        requested -> plugged, plugged 0 bytes -> 512 MiB",
        ]
    );
    assert_eq!(code, 1);
    assert!(errors.contains("caused by: there is no VM"), "{errors}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let vm = vm();
    let mut child = vm.command("--json top --interval 10ms");
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    // Dropping the reader closes the pipe.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["partitions"][0]["id"], "fn-7");
    let (code, _, errors) = finished(&child.wait_with_output().unwrap());
    assert_eq!((code, errors.as_str()), (0, ""));
}

#[test]
fn top_wants_a_terminal_and_says_so() {
    let output = vm().command("top").stdin(Stdio::null()).output().unwrap();
    let (code, _, errors) = finished(&output);
    assert_eq!(code, 1);
    assert!(errors.contains("top needs a terminal") && errors.contains("memctl ls"), "{errors}");
}

#[test]
fn completions_need_no_monitor() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, output, _) = finished(&memctl("completions").arg(shell).output().unwrap());
        assert_eq!(code, 0);
        assert!(output.contains("resize-vm"), "{shell}");
    }
}
