//! Loading the library. One test: a process loads one library, so the order matters.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;

use inference::{Device, Error, Provider, Runtime};

#[test]
fn libraries_that_cannot_be_used_are_named_and_a_good_one_still_loads() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Runtime::new(&folder.path().join("libonnxruntime.so"), Device::Cpu, 1).unwrap_err();
    assert_eq!(missing.code(), "runtime_missing");

    let text = folder.path().join("libonnxruntime.so.1.32.0");
    std::fs::write(&text, "not a library").unwrap();
    let error = Runtime::new(&text, Device::Cpu, 1).unwrap_err();
    assert_eq!(error.code(), "runtime_unusable");
    assert!(error.to_string().contains("WEIGHTSMITH_ORT") && error.to_string().contains("libonnxruntime"), "{error}");

    let library = support::library();
    let runtime = Runtime::new(&library, Device::Auto, 0).unwrap();
    assert!(runtime.threads() >= 1);
    assert!(runtime.version().is_some_and(|v| v.starts_with("1.")), "{runtime:?}");

    match Runtime::new(&library, Device::Cuda, 1) {
        Ok(cuda) => assert_eq!((cuda.provider(), runtime.provider()), (Provider::Cuda, Provider::Cuda)),
        Err(error) => {
            assert_eq!((error.code(), runtime.provider()), ("cuda_unavailable", Provider::Cpu));
            assert!(error.to_string().contains("onnxruntime-gpu"), "{error}");
        }
    }
    assert_eq!(Runtime::new(&library, Device::Cpu, 3).unwrap().threads(), 3);
    let error = Runtime::new(&text, Device::Cpu, 1).unwrap_err();
    assert!(matches!(error, Error::RuntimeConflict { .. }), "{error}");
    assert!(Runtime::new(Path::new("/"), Device::Cpu, 1).is_err());
}
