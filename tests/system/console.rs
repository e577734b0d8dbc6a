//! A console of the test's own, on Windows.
//!
//! Ctrl-C goes to all processes of a console, so whoever sends it to itself must have one alone. A test that does runs itself again, as a
//! process with a console that nobody else has and nobody sees. On Linux, where a signal goes to one process, there is nothing to do.

/// Runs the test of this name again with a console of its own, and says that it has; `false` where it may go on, since it has one.
///
/// # Panics
///
/// If the test fails there.
#[cfg(windows)]
pub(crate) fn runs_elsewhere(test: &str) -> bool {
    use std::os::windows::process::CommandExt;

    const CHILD: &str = "VELOQ_TEST_CONSOLE";
    /// A console, but no window for it.
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    let program = std::env::current_exe().expect("a test has a file");
    let mut again = std::process::Command::new(program);
    again.args(["--exact", test, "--nocapture"]).env(CHILD, "1").creation_flags(CREATE_NO_WINDOW);
    let output = again.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

#[cfg(not(windows))]
pub(crate) fn runs_elsewhere(_: &str) -> bool {
    false
}
