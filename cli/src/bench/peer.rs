//! Another program that does the same work: one line to it asks for rounds, one line of JSON from it answers.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::error::{Error, Result};

/// The variable that names the Python of the peers.
pub const PYTHON: &str = "WEIGHTSMITH_BENCH_PYTHON";

/// A running peer; it ends when this is dropped.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    name: String,
}

impl Peer {
    /// Writes the peer's `source` to `folder/name`, and starts it with these arguments.
    ///
    /// # Errors
    /// When the file cannot be written, or Python cannot be started.
    pub fn start(python: &Path, folder: &Path, (name, source): (&str, &str), args: &[&str]) -> Result<Self> {
        let file = folder.join(name);
        std::fs::write(&file, source).map_err(Error::io(&file))?;
        Self::of(Command::new(python).arg(&file).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()), name, python)
    }

    fn of(command: &mut Command, name: &str, program: &Path) -> Result<Self> {
        let mut child = command.spawn().map_err(Error::io(program))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| Error::Internal(format!("{name} has no output")))?;
        Ok(Self { child, input, output: BufReader::new(output), name: name.to_owned() })
    }

    /// The next line that it prints.
    ///
    /// # Errors
    /// When it ended, or prints something else; its standard error says why.
    pub fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.output.read_line(&mut line).map_err(Error::io(&self.name))?;
        if count == 0 {
            return Err(Error::Internal(format!("{} ended early: its standard error says why", self.name)));
        }
        serde_json::from_str(&line).map_err(|e| Error::Internal(format!("{} printed {line:?}: {e}", self.name)))
    }

    /// Asks for `rounds` rounds, and gives its answer, which has the `seconds` that they took.
    ///
    /// # Errors
    /// As [`Peer::read`].
    pub fn ask(&mut self, rounds: usize) -> Result<Value> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{rounds}").and_then(|()| input.flush()).map_err(Error::io(&self.name))?;
        }
        self.read()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Its input ends, and with that the program; it may have ended before.
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number of an answer.
///
/// # Errors
/// When it is not there.
pub fn number(answer: &Value, key: &str) -> Result<f64> {
    answer[key].as_f64().ok_or_else(|| Error::Internal(format!("a peer answered {answer}, without {key:?}")))
}

/// The Python that peers run with: what was given, or the variable [`PYTHON`].
///
/// # Errors
/// When neither names one.
pub fn python(given: Option<PathBuf>) -> Result<PathBuf> {
    given.or_else(|| std::env::var_os(PYTHON).map(PathBuf::from)).ok_or_else(|| {
        let text = format!("a Python with the peers' packages is needed: --python PATH, or the variable {PYTHON}");
        Error::input("python_missing", &text)
    })
}

/// The value in the middle; of an even number the mean of both there.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    (at(sorted.len().saturating_sub(1) / 2) + at(sorted.len() / 2)) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Peer {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Peer::of(&mut command, "shell", Path::new("sh")).unwrap()
    }

    #[test]
    fn lines_go_both_ways() {
        let mut peer = shell("echo '{\"ready\":true}'; while read n; do echo \"{\\\"seconds\\\":$n.5}\"; done");
        assert_eq!(peer.read().unwrap()["ready"], true);
        for n in [3, 7] {
            assert_eq!(number(&peer.ask(n).unwrap(), "seconds").unwrap(), n as f64 + 0.5);
        }
    }

    #[test]
    fn a_peer_that_fails_is_an_error() {
        assert!(shell("exit 1").read().unwrap_err().to_string().contains("ended early"));
        assert!(shell("echo Traceback").read().unwrap_err().to_string().contains("Traceback"));
        assert!(number(&serde_json::json!({"loss": 1}), "seconds").unwrap_err().to_string().contains("seconds"));
    }

    #[test]
    fn medians() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        assert!(median(&[]).is_nan());
    }
}
