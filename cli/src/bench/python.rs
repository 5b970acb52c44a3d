//! The Python that peers run in.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::context::complain;
use crate::error::{Error, Result};

/// What the peers import.
const PACKAGES: [&str; 6] = ["torch", "onnxruntime", "onnx", "numpy", "safetensors", "diffusers"];

/// Where the peers run.
#[derive(Debug, Clone, clap::Args)]
pub struct PythonArgs {
    /// Python with torch, onnxruntime, onnx, numpy, safetensors and diffusers; without it a virtual environment is made and
    /// they are fetched (gigabytes).
    #[arg(long, env = "WEIGHTSMITH_BENCH_PYTHON")]
    python: Option<PathBuf>,
    /// Folder of that environment; it is used again.
    #[arg(long, default_value = ".weightsmith/bench")]
    venv: PathBuf,
}

impl PythonArgs {
    /// A Python that has what the peers import.
    ///
    /// # Errors
    /// When the one that is named lacks something, or none can be made: the messages of pip are on standard error.
    pub fn open(&self) -> Result<PathBuf> {
        if let Some(python) = &self.python {
            // A name without a folder is looked for where programs are.
            if python.components().count() > 1 && !python.is_file() {
                let text = format!("there is no {}; name a Python, or leave --python out", python.display());
                return Err(Error::input("python_missing", text));
            }
            return match imports(python) {
                true => Ok(python.clone()),
                false => Err(Error::input(
                    "python_unsuitable",
                    format!("{} cannot import all of {}; install them there", python.display(), PACKAGES.join(", ")),
                )),
            };
        }
        let python = self.venv.join("bin/python");
        if !imports(&python) {
            complain(&format!("fetching {} into {}", PACKAGES.join(", "), self.venv.display()));
            let base = std::env::var_os("WEIGHTSMITH_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
            run(Command::new(base).args(["-m", "venv"]).arg(&self.venv))?;
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
        }
        Ok(python)
    }
}

fn imports(python: &Path) -> bool {
    let status = Command::new(python)
        .args(["-c", &format!("import {}", PACKAGES.join(", "))])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

fn run(command: &mut Command) -> Result<()> {
    let program = PathBuf::from(command.get_program());
    let status = command.stdout(Stdio::null()).status().map_err(Error::io(&program))?;
    if status.success() {
        return Ok(());
    }
    let text =
        format!("{} failed ({status}): its messages are above; or name another with --python", program.display());
    Err(Error::input("python_failed", text))
}
