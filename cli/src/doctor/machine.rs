//! The machine: cores, memory, GPUs, the NVIDIA driver.

use std::process::Command;

use serde::Serialize;

use crate::context::kernel_kib;

/// Where the kernel says which NVIDIA driver is loaded.
const DRIVER: &str = "/proc/driver/nvidia/version";

/// What there is.
#[derive(Debug, Serialize)]
pub struct Machine {
    os: String,
    architecture: &'static str,
    cores: usize,
    /// Gibibytes; none where the kernel does not tell.
    memory_gib: Option<f64>,
    /// The line of the loaded NVIDIA driver.
    nvidia_driver: Option<String>,
    /// Name, memory and driver of each GPU, as nvidia-smi tells.
    gpus: Vec<String>,
    /// Why there are none.
    no_gpus: Option<String>,
}

impl Machine {
    /// Looks.
    pub fn look() -> Self {
        let (gpus, no_gpus) = match gpus() {
            Ok(gpus) => (gpus, None),
            Err(why) => (Vec::new(), Some(why)),
        };
        let driver = std::fs::read_to_string(DRIVER).ok();
        Self {
            os: os(),
            architecture: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kernel_kib("/proc/meminfo", "MemTotal").map(|kib| kib / f64::from(1 << 20)),
            nvidia_driver: driver.and_then(|text| text.lines().next().map(|line| line.trim().to_owned())),
            gpus,
            no_gpus,
        }
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let memory = self.memory_gib.map_or_else(|| "unknown".to_owned(), |gib| format!("{gib:.1} GiB"));
        let mut lines = vec![
            format!("{} {}, {} cores, {memory} of memory", self.os, self.architecture, self.cores),
            format!("NVIDIA driver: {}", self.nvidia_driver.as_deref().unwrap_or("none is loaded")),
        ];
        lines.extend(self.gpus.iter().map(|gpu| format!("GPU: {gpu}")));
        lines.extend(self.no_gpus.iter().map(|why| format!("GPU: none known ({why})")));
        lines
    }

    /// What CUDA lacks on this machine.
    pub fn missing(&self) -> Option<String> {
        let text = format!("no NVIDIA driver is loaded ({DRIVER} is not there): this machine has no usable NVIDIA GPU");
        self.nvidia_driver.is_none().then_some(text)
    }
}

fn os() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| std::env::consts::OS.to_owned(), |name| name.trim_matches('"').to_owned())
}

/// One line a GPU.
fn gpus() -> Result<Vec<String>, String> {
    let asked = ["--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(asked).output().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => "there is no nvidia-smi".to_owned(),
        _ => format!("nvidia-smi: {e}"),
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.success() {
        true => Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()),
        false => Err(format!("nvidia-smi: {}", text.lines().next().unwrap_or("failed").trim())),
    }
}
