//! The real binary as a user runs it: commands, servers that end with the test in every case, labelled data.

#![allow(dead_code)]

pub mod data;
pub mod http;
pub mod moto;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything that should happen at once may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command `weightsmith`, with no setting of this environment but where ONNX Runtime and PostgreSQL are: a
/// registry that it opens runs on a private server in its data folder.
pub fn weightsmith<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weightsmith"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WEIGHTSMITH_") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    for name in ["WEIGHTSMITH_ORT", "WEIGHTSMITH_POSTGRES"] {
        command.env(name, required(name));
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// A variable that `make test` sets.
pub fn required(name: &str) -> std::ffi::OsString {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.unwrap_or_else(|| panic!("{name} is not set: run the tests with `make test`, which sets it"))
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// A configuration of `tests/configs`, as an argument.
pub fn config(name: &str) -> String {
    repository(&format!("tests/configs/{name}.toml")).display().to_string()
}

/// A folder that PostgreSQL's user can enter, whatever the umask, and that goes with the test.
pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("weightsmith-test-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Said {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs `weightsmith` with these arguments, which must succeed; gives its standard output.
pub fn succeed(args: &[&str]) -> String {
    let said = run(&mut weightsmith(args));
    assert_eq!(said.code, Some(0), "weightsmith {args:?}: {said:?}");
    said.out
}

/// Runs a command that must be refused: exit code 2 and one line on standard error, nothing on standard output.
/// Gives the line.
pub fn refused(command: &mut Command) -> String {
    let said = run(command);
    assert_eq!((said.code, said.out.as_str()), (Some(2), ""), "{command:?}: {said:?}");
    let line = said.err.strip_suffix('\n').unwrap_or_else(|| panic!("{command:?}: no line end: {said:?}"));
    assert!(!line.contains('\n'), "{command:?}: more than one line: {said:?}");
    assert!(line.starts_with("weightsmith: ") && line.ends_with(']'), "{command:?}: {line}");
    line.to_owned()
}

/// The digest at the end of the last line.
pub fn last_digest(out: &str) -> String {
    let word = out.split_whitespace().next_back().unwrap_or_default();
    assert!(word.len() == 71 && word.starts_with("sha256:"), "no digest at the end of {out:?}");
    word.to_owned()
}

/// A command under way. It is killed when this is dropped, and also when the test's own process ends in any way.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    errors: PathBuf,
    _guard: Guard,
    folder: TempDir,
}

/// A shell that kills a process when the pipe to this one closes.
struct Guard {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    fn over(pid: u32) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read -r _; kill -9 \"$0\"", &pid.to_string()]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pipe = shell.stdin.take();
        Self { shell, pipe }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // First: the process that it watches has ended, and another may have its number by now.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        drop(self.pipe.take());
    }
}

impl Running {
    /// Starts a command.
    pub fn start(mut command: Command) -> Self {
        let folder = folder();
        let errors = folder.path().join("stderr");
        command.stdout(Stdio::piped()).stderr(File::create(&errors).unwrap());
        let mut child = command.spawn().unwrap();
        let guard = Guard::over(child.id());
        let (sender, lines) = mpsc::channel();
        let reader = BufReader::new(child.stdout.take().unwrap());
        // The pipe is read to its end whether or not anybody looks at the lines.
        std::thread::spawn(move || reader.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Self { child, lines, errors, _guard: guard, folder }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines up to the first that contains `part`.
    pub fn lines_until(&mut self, part: &str, patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    lines.push(line);
                    if lines.last().is_some_and(|line| line.contains(part)) {
                        return lines;
                    }
                }
                Err(error) => panic!("no line with {part:?} ({error}): {lines:?}, {}", self.errors()),
            }
        }
    }

    /// The lines that are left when it has ended.
    pub fn rest(&mut self) -> Vec<String> {
        self.lines.iter().collect()
    }

    /// What it wrote to standard error so far.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    /// Sends a signal by its name, such as `INT`.
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &pid]).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end: {}", self.errors());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Running {
    /// Kills it, if it has not ended; says whether it had not.
    pub fn kill(&mut self) -> bool {
        let running = matches!(self.child.try_wait(), Ok(None));
        let _ = self.child.kill();
        let _ = self.child.wait();
        running
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes that work in a folder or below it: every process of a private PostgreSQL does, in its data folder.
pub fn processes_in(folder: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(pid), Ok(cwd)) = (pid, entry.path().join("cwd").read_link())
            && cwd.starts_with(folder)
        {
            found.push(pid);
        }
    }
    found
}

/// PostgreSQL's processes of a data folder, wherever the folder says that its files are.
pub fn postgres(data: &Path) -> Vec<u32> {
    let elsewhere = std::fs::read_to_string(data.join("postgres/location"));
    let mut found = processes_in(data);
    found.extend(elsewhere.iter().flat_map(|path| processes_in(Path::new(path.trim()))));
    found
}

/// Waits until `done`; fails with `what` when it takes longer than `patience`.
pub fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All files below a folder, with their sizes, sorted.
pub fn files_in(folder: &Path) -> Vec<(PathBuf, u64)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, u64)>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(data) if data.is_dir() => walk(&entry.path(), found),
                Ok(data) => found.push((entry.path(), data.len())),
                Err(_) => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, &mut found);
    found.sort();
    found
}

/// Builds the zoo of a configuration of `tests/configs` in `folder` and trains a generator on it: the bundle's file
/// and its digest.
pub fn train(name: &str, folder: &Path) -> (PathBuf, String) {
    let (zoo, out) = (folder.join("zoo"), folder.join(format!("{name}.tar")));
    let (config, path) = (config(name), |path: &Path| path.display().to_string());
    succeed(&["zoo", "build", "--config", &config, "--out", &path(&zoo)]);
    let said = succeed(&["train", "--config", &config, "--zoo", &path(&zoo), "--out", &path(&out)]);
    (out, last_digest(&said))
}

/// A path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Everything a stream holds.
pub fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Lines that a small language model learns in a moment.
pub fn corpus() -> String {
    let line = |i: usize| {
        let (colour, mood) = (["red", "old", "big"][i % 3], ["sad", "new"][i / 3 % 2]);
        format!("the {colour} cat sees the {mood} dog , and the {mood} dog sees the {colour} cat .\n")
    };
    (0..120).map(line).collect()
}
