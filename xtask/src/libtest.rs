//! What Rust's test harness prints, read back: per-test lines, result lines, lists of tests.

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran and passed.
    Passed,
    /// It ran and failed.
    Failed,
    /// It is marked `#[ignore]`.
    Skipped,
}

/// Counts of tests, and why some did not run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
    /// One line for each failed test: its program and its name.
    pub(crate) failures: Vec<String>,
    /// One line for each skipped test: its program, its name and the reason it gives.
    pub(crate) reasons: Vec<String>,
    /// One line for each test whose lab stopped, and which got a second one.
    pub(crate) second_labs: Vec<String>,
}

impl Tally {
    /// Counts one test of `program`.
    pub(crate) fn count(&mut self, program: &str, name: &str, outcome: Outcome, reason: &str) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed => self.fail(format!("{program}: {name}")),
            Outcome::Skipped => {
                self.skipped += 1;
                let reason = if reason.is_empty() { "no reason given" } else { reason };
                self.reasons.push(format!("{program}: {name}: {reason}"));
            }
        }
    }

    /// Counts a failure that no test line tells of: a crash, a lab that died.
    pub(crate) fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    /// Adds the counts of another tally.
    pub(crate) fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.reasons.extend(other.reasons);
        self.second_labs.extend(other.second_labs);
    }

    /// The closing line that CI reads.
    pub(crate) fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Reads the whole output of one test program, or of several one after the other. A program that
/// ended without its result line, or with a status that its result does not explain, counts as one
/// more failure.
pub(crate) fn tally(program: &str, output: &str, success: bool) -> Tally {
    let mut tally = ended(program, output);
    let mut result: Option<[u32; 3]> = None;
    for counts in output.lines().filter_map(result_line) {
        let sum = result.unwrap_or_default();
        result = Some(std::array::from_fn(|i| sum[i] + counts[i]));
    }
    match result {
        None => {
            let last = running(output).map_or(String::new(), |name| format!(" {name}:"));
            tally.fail(format!("{program}:{last} ended without a result"));
        }
        // What a test's child process prints can break a test's own line; the result is whole.
        Some(counts) => [tally.passed, tally.failed, tally.skipped] = counts,
    }
    if result.is_some() && !success && tally.failed == 0 {
        tally.fail(format!("{program}: ended with an error after its tests"));
    }
    tally
}

/// Counts the tests that ended, of a program that may not have.
pub(crate) fn ended(program: &str, output: &str) -> Tally {
    let mut tally = Tally::default();
    for (name, outcome, reason) in output.lines().filter_map(test_line) {
        tally.count(program, name, outcome, reason);
    }
    tally
}

/// The test that was running when a program's output ended, if it ended early.
pub(crate) fn running(output: &str) -> Option<&str> {
    let last = output.lines().filter_map(started).next_back()?;
    let finished = output.lines().filter_map(test_line).any(|(name, ..)| name == last);
    (!finished).then_some(last)
}

/// The names of `tests` that a program which ended early did not come to.
pub(crate) fn not_reached(tests: &[String], output: &str) -> Vec<String> {
    let reached: Vec<&str> = output.lines().filter_map(started).collect();
    tests.iter().filter(|name| !reached.contains(&name.as_str())).cloned().collect()
}

/// Reads `test NAME ...`, which a test has before it ends too.
fn started(line: &str) -> Option<&str> {
    let (name, _) = line.strip_prefix("test ")?.split_once(" ...")?;
    Some(name.trim_end_matches(" - should panic"))
}

/// Reads `test NAME ... OUTCOME`.
fn test_line(line: &str) -> Option<(&str, Outcome, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = name.trim_end_matches(" - should panic");
    if let Some(reason) = rest.strip_prefix("ignored") {
        return Some((name, Outcome::Skipped, reason.trim_start_matches(", ")));
    }
    match rest.split_whitespace().next()? {
        "ok" => Some((name, Outcome::Passed, "")),
        "FAILED" => Some((name, Outcome::Failed, "")),
        _ => None,
    }
}

/// Reads `test result: ok. N passed; N failed; N ignored; ...`.
fn result_line(line: &str) -> Option<[u32; 3]> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = counts.split("; ");
    let mut count = |noun| parts.next()?.strip_suffix(noun)?.trim().parse().ok();
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

/// Reads what `--list --format terse` prints: the names of the tests.
pub(crate) fn listed(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test boot::reaches_a_shell ... ok
test disk::refuses_writes ... FAILED
test hw::needs_intel ... ignored, needs VMX
test api::old - should panic ... ok

failures:
---- disk::refuses_writes stdout ----
test output that looks like nothing

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s
";

    #[test]
    fn outcomes_and_reasons_are_counted() {
        let tally = tally("guest", OUTPUT, false);
        assert_eq!(tally.line(), "2 passed, 1 failed, 1 skipped");
        assert_eq!(tally.reasons, ["guest: hw::needs_intel: needs VMX"]);
        assert_eq!(tally.failures, ["guest: disk::refuses_writes"]);
    }

    #[test]
    fn a_program_that_crashes_is_one_failure() {
        let cut = &OUTPUT[..OUTPUT.find("test disk").unwrap()];
        let tally = tally("guest", cut, false);
        assert_eq!(tally.line(), "1 passed, 1 failed, 0 skipped");
        assert_eq!(tally.failures, ["guest: ended without a result"]);
    }

    #[test]
    fn the_test_that_killed_its_lab_is_named_and_later_ones_are_left_over() {
        let output = "running 3 tests\ntest a ... ok\ntest b ... \u{0}";
        assert_eq!(tally("t", output, false).failures, ["t: b: ended without a result"]);
        assert_eq!(not_reached(&["a", "b", "c"].map(str::to_owned), output), ["c"]);
    }

    #[test]
    fn a_bad_status_after_good_tests_is_a_failure() {
        let output = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured\n";
        assert_eq!(tally("t", output, true).line(), "1 passed, 0 failed, 0 skipped");
        assert_eq!(tally("t", output, false).line(), "1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn a_line_broken_by_a_child_process_is_counted_by_the_result() {
        let output = "test a ... from a child\nok\n\
                      test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured";
        assert_eq!(tally("t", output, true).line(), "1 passed, 0 failed, 0 skipped");
    }

    #[test]
    fn results_of_several_programs_add_up() {
        let one = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 2 ignored; 0 measured\n";
        assert_eq!(tally("docs", &one.repeat(3), true).line(), "3 passed, 0 failed, 6 skipped");
    }

    #[test]
    fn lines_of_a_test_that_resemble_outcomes_do_not_count() {
        assert_eq!(test_line("test x ... bench: 5 ns/iter"), None);
        assert_eq!(test_line("testing ... ok"), None);
        assert_eq!(test_line("test a ... ok <1.2s>"), Some(("a", Outcome::Passed, "")));
        assert_eq!(test_line("test a ... ignored"), Some(("a", Outcome::Skipped, "")));
    }

    #[test]
    fn the_list_has_tests_only() {
        assert_eq!(listed("a::b: test\nc: benchmark\nd: test\n\n2 tests"), ["a::b", "d"]);
    }
}
