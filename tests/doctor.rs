//! `weightsmith doctor` on a machine without a GPU: it checks what it says, and says what CUDA lacks.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use serde_json::Value;
use support::{folder, run, text, weightsmith};

#[test]
fn the_cpu_computes_what_it_should() {
    let place = folder();
    let file = place.path().join("deep/doctor.json");
    let said = run(&mut weightsmith(["doctor", "--device", "cpu", "--json", text(&file)]));
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
    let found: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(found["ok"], true);
    assert_eq!((&found["onnxruntime"]["provider"], &found["candle"]["device"]), (&"cpu".into(), &"cpu".into()));
    assert!(found["machine"]["cores"].as_u64().unwrap() >= 1 && found["machine"]["memory_gib"].as_f64().unwrap() > 0.1);
    let checks = found["checks"].as_array().unwrap();
    for subject in [
        "dataset encoder",
        "denoiser unet",
        "denoiser mlp",
        "denoiser transformer",
        "VAE encoder mlp",
        "VAE decoder mlp",
        "VAE encoder conv",
        "VAE decoder conv",
        "predictor",
        "forward tiny_cnn",
        "forward mlp",
        "step of unet",
        "step of transformer",
        "step of VAE",
        "step of a zoo",
    ] {
        let own: Vec<&Value> = checks.iter().filter(|check| check["subject"] == subject).collect();
        assert!(!own.is_empty(), "{subject} was not checked: {said:?}");
        for check in own {
            let (difference, tolerance) = (check["difference"].as_f64().unwrap(), check["tolerance"].as_f64().unwrap());
            assert!(check["pass"] == true && difference <= tolerance && tolerance <= 0.03, "{check}");
        }
    }
    // Other libraries add up in other orders: graphs that differ in nothing were not compared.
    let graphs = checks.iter().filter(|c| c["compared"].as_str().unwrap().starts_with("ONNX Runtime"));
    assert!(graphs.filter(|c| c["difference"].as_f64().unwrap() > 0.0).count() > 5, "{said:?}");
    let speed = &found["speed"];
    assert!(speed["samples_per_second"].as_f64().unwrap() > 0.1, "{speed}");
    assert!(speed["training_steps_per_second"].as_f64().unwrap() > 0.01, "{speed}");
    assert!(said.out.contains(&format!("all {} checks passed", checks.len())), "{said:?}");
}

#[test]
fn what_cuda_lacks_is_said() {
    if std::path::Path::new("/proc/driver/nvidia/version").exists() {
        return; // A machine with a GPU is for `doctor` itself.
    }
    for command in [&["doctor", "--device", "cuda"][..], &["doctor", "--device", "cuda", "--json", "x.json"]] {
        let place = folder();
        let said = run(weightsmith(command).current_dir(place.path()));
        assert_eq!(said.code, Some(2), "{said:?}");
        assert!(said.err.trim_end().ends_with("[cuda_unavailable]") && said.err.lines().count() == 1, "{said:?}");
        for part in [
            "ONNX Runtime",
            "onnxruntime-gpu",
            "CUDA cannot be used for training",
            "make cuda-runtime",
            "no NVIDIA driver",
        ] {
            assert!(said.err.contains(part), "{part}: {said:?}");
        }
        assert!(!place.path().join("x.json").exists());
    }
    let out = folder();
    let zoo = text(out.path()).to_owned() + "/zoo";
    let said = run(&mut weightsmith(["zoo", "build", "--device", "cuda", "--out", &zoo]));
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("CUDA cannot be used for training") && !std::path::Path::new(&zoo).exists(), "{said:?}");
}
