//! What is measured: flat keys, each the median of paired rounds.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::context::{kernel_says, say, write_json};
use crate::error::Result;

/// Figures by key, such as `serving.overhead_batch_1`.
#[derive(Debug, Default)]
pub struct Figures(BTreeMap<String, Value>);

impl Figures {
    /// Adds a figure and prints it.
    pub fn put(&mut self, key: &str, value: f64, meaning: &str) {
        let small = value != 0.0 && value.abs() < 1e-2;
        let text = if small { format!("{value:.1e}") } else { format!("{value:.3}") };
        say(&format!("{key:<48} {text:>10}  {meaning}"));
        self.0.insert(key.to_owned(), json!(if small { value } else { (value * 1e4).round() / 1e4 }));
    }

    /// Adds something that is no number.
    pub fn note(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), value);
    }

    /// Writes them with the machine they were measured on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut all = self.0.clone();
        all.insert("machine".into(), machine());
        write_json(path, &all)
    }
}

/// The machine: processor, cores, memory, system, and the build.
pub fn machine() -> Value {
    json!({
        "processor": kernel_says("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "memory": kernel_says("/proc/meminfo", "MemTotal"),
        "system": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "weightsmith": env!("CARGO_PKG_VERSION"),
        "optimised": !cfg!(debug_assertions),
    })
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// Medians of paired rounds: seconds of ours, and of each peer over ours in the same round. Who goes first changes.
///
/// # Errors
/// The first that fails.
pub fn paired(
    rounds: usize,
    mut ours: impl FnMut() -> Result<f64>,
    peers: &mut [&mut dyn FnMut() -> Result<f64>],
) -> Result<(f64, Vec<f64>)> {
    let (mut own, mut ratios) = (Vec::new(), vec![Vec::new(); peers.len()]);
    for round in 0..rounds {
        let before = if round % 2 == 0 { Some(ours()?) } else { None };
        let theirs = peers.iter_mut().map(|peer| peer()).collect::<Result<Vec<_>>>()?;
        let seconds = match before {
            Some(seconds) => seconds,
            None => ours()?,
        };
        own.push(seconds);
        ratios.iter_mut().zip(theirs).for_each(|(ratios, theirs)| ratios.push(theirs / seconds));
    }
    Ok((median(own), ratios.into_iter().map(median).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn medians_of_paired_rounds() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        assert!(median(Vec::new()).is_nan());
        // The machine is slower in one round, for both.
        let (mut ours, mut theirs) = ([1.0, 5.0, 1.0].into_iter(), [2.0, 10.0, 2.0].into_iter());
        let mut peer = || Ok(theirs.next().unwrap());
        let (own, ratios) = paired(3, || Ok(ours.next().unwrap()), &mut [&mut peer]).unwrap();
        assert_eq!((own, ratios), (1.0, vec![2.0]));
        assert!(paired(1, || Err(Error::Internal("no".into())), &mut []).is_err());
    }

    #[test]
    fn a_file_has_flat_keys_and_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let mut figures = Figures::default();
        figures.put("serving.overhead_batch_1", 1.234_56, "ours over bare");
        figures.write(&folder.path().join("bench.json")).unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(folder.path().join("bench.json")).unwrap()).unwrap();
        assert_eq!(read["serving.overhead_batch_1"], 1.2346);
        assert!(read["machine"]["cores"].as_u64().unwrap() > 0);
    }
}
