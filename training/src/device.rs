//! The device that this process trains on. Networks know theirs; what makes new ones (fits of many models, training that a
//! job asks for) takes this one.

use std::sync::{Mutex, PoisonError};

use candle_core::Device;
use rayon::prelude::*;

use crate::error::{Error, Result};

static CHOSEN: Mutex<Option<Device>> = Mutex::new(None);

/// Whether this program was built for CUDA (feature `cuda`).
pub const CUDA_BUILT: bool = cfg!(feature = "cuda");

/// The device of training: the one that was chosen, else the CPU.
pub fn current() -> Device {
    CHOSEN.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or(Device::Cpu)
}

/// Makes `device` the one of this process; before any training.
pub fn choose(device: &Device) {
    *CHOSEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(device.clone());
}

/// What `f` makes of each, in order: on all cores; on a GPU, which has one queue, one after the other.
///
/// # Errors
/// One of `f`'s.
pub(crate) fn each<I, T: Send, R: Send>(items: I, f: impl Fn(T) -> Result<R> + Sync + Send) -> Result<Vec<R>>
where
    I: IntoParallelIterator<Item = T> + IntoIterator<Item = T>,
{
    match current().is_cpu() {
        true => items.into_par_iter().map(f).collect(),
        false => items.into_iter().map(f).collect(),
    }
}

/// The first GPU.
///
/// # Errors
/// [`Error::NoCuda`] with what is missing: a build for CUDA, a driver, a library, or a GPU.
pub fn cuda() -> Result<Device> {
    if !CUDA_BUILT {
        let reason =
            "this program is built without it: build with `make cuda`, and run target/cuda/release/weightsmith";
        return Err(Error::NoCuda(reason.into()));
    }
    // cudarc panics where a library lacks a function.
    let made = std::panic::catch_unwind(|| Device::new_cuda(0));
    match made {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(Error::NoCuda(explain(&error.to_string()))),
        Err(_) => Err(Error::NoCuda("a library of CUDA is too old for this build".into())),
    }
}

/// The error of a driver call, with what to do about it where that is known.
fn explain(error: &str) -> String {
    let first = error.lines().next().unwrap_or_default().trim();
    let known = [
        ("STUB_LIBRARY", "there is no NVIDIA driver here (libcuda.so.1): install one on a machine with a GPU"),
        ("NO_DEVICE", "the NVIDIA driver sees no GPU"),
        ("SYSTEM_DRIVER_MISMATCH", "the NVIDIA driver's library and kernel module are of different versions"),
        ("UNSUPPORTED_PTX_VERSION", "the NVIDIA driver is older than the CUDA that this program is built with"),
        ("CUBLAS", "cuBLAS cannot be loaded: run `make cuda-runtime`, then `. .weightsmith/cuda.sh`"),
        ("CURAND", "cuRAND cannot be loaded: run `make cuda-runtime`, then `. .weightsmith/cuda.sh`"),
    ];
    let upper = error.to_uppercase();
    match known.iter().find(|(sign, _)| upper.contains(sign)) {
        Some((_, advice)) => format!("{advice} ({first})"),
        None => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_driver_say_what_to_do() {
        let text = explain("DriverError(CUDA_ERROR_STUB_LIBRARY, \"<Failure when calling cuGetErrorString()>\")\nmore");
        assert!(text.starts_with("there is no NVIDIA driver") && text.contains("STUB_LIBRARY"), "{text}");
        assert!(explain("CublasError(CUBLAS_STATUS_NOT_INITIALIZED)").contains("make cuda-runtime"));
        assert_eq!(explain("something else"), "something else");
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_says_so() {
        assert!(matches!(cuda(), Err(Error::NoCuda(text)) if text.contains("make cuda")));
        assert!(current().is_cpu());
    }
}
