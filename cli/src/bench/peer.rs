//! A Python program that does the same work, spoken to line by line.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::error::{Error, Result};

/// A running peer; it ends when this is dropped.
pub struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// What it said when it was ready.
    pub ready: Value,
    _folder: tempfile::TempDir,
}

impl Peer {
    /// Starts the script with this Python and these arguments, and waits until it is ready.
    ///
    /// # Errors
    /// When there is no such Python, or the script ends before it is ready: its standard error says why.
    pub fn start(python: &Path, script: &str, args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(Error::io("a temporary folder"))?;
        // A file, for a script may start itself again.
        let path = folder.path().join("peer.py");
        std::fs::write(&path, script).map_err(Error::io(&path))?;
        let mut child = Command::new(python)
            .arg(&path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io(python))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = output.ok_or_else(|| Error::Internal("the peer has no output".into()))?;
        let mut peer = Self { child, input, output: BufReader::new(output), ready: Value::Null, _folder: folder };
        peer.ready = peer.answer()?;
        Ok(peer)
    }

    /// Asks for `n` rounds of its work, and gives what it says of them.
    ///
    /// # Errors
    /// When it ended: its standard error says why.
    pub fn ask(&mut self, n: usize) -> Result<Value> {
        if let Some(input) = &mut self.input {
            writeln!(input, "{n}").and_then(|()| input.flush()).map_err(Error::io(PathBuf::from("the peer")))?;
        }
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).map_err(Error::io(PathBuf::from("the peer")))?;
        if read == 0 {
            return Err(Error::Internal("the peer ended: its standard error says why".into()));
        }
        serde_json::from_str(&line).map_err(|_| Error::Internal(format!("the peer said {}", line.trim())))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input is the end of its work; it may have ended by itself.
        drop(self.input.take());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn python() -> PathBuf {
        std::env::var_os("WEIGHTSMITH_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from)
    }

    #[test]
    fn a_peer_answers_and_its_end_is_noticed() {
        let script = "import json, sys\nprint(json.dumps({'ready': True, 'arg': sys.argv[1]}), flush=True)\n\
                      for line in sys.stdin:\n    n = int(line)\n    if n > 2: break\n    \
                      print(json.dumps({'seconds': n * 2}), flush=True)\n";
        let mut peer = Peer::start(&python(), script, &["x"]).unwrap();
        assert_eq!(peer.ready["arg"], "x");
        assert_eq!(peer.ask(2).unwrap()["seconds"], 4);
        assert!(peer.ask(3).is_err());
        assert!(Peer::start(&python(), "print('no')", &[]).is_err());
        assert!(Peer::start(Path::new("/nowhere/python"), "", &[]).is_err());
    }
}
