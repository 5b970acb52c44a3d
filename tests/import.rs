//! Zoos from outside, against the binary: thousands of files, a kill in the middle, the same command again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use support::{Running, folder, refused, run, succeed, text, weightsmith};

/// A safetensors file of one tensor `w` of two values.
fn file(values: [f32; 2]) -> Vec<u8> {
    let header = json!({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).to_string();
    let padded = header.len().next_multiple_of(8);
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(8 + padded, b' ');
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

fn files(folder: &Path, count: u32) {
    std::fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        std::fs::write(folder.join(format!("m{index:05}.safetensors")), file([index as f32, 1.0])).unwrap();
    }
}

fn import(data: &Path, args: &[&str]) -> String {
    succeed(&[&["zoo", "import", "--zoo", "outside", "--data-dir", text(data)], args].concat())
}

#[test]
fn two_thousand_files_survive_a_kill() {
    let data = folder();
    let models = data.path().join("models");
    files(&models, 2000);
    let place = data.path().join("data");
    let mut killed =
        Running::start(weightsmith(["zoo", "import", "--zoo", "outside", "--data-dir", text(&place), text(&models)]));
    std::thread::sleep(Duration::from_millis(2500));
    let in_time = killed.kill();
    let said = import(&place, &[text(&models)]);
    assert!(said.contains("of 2000 files") && said.contains(" 0 failed"), "{said}");
    let again = import(&place, &[text(&models)]);
    assert!(again.contains("0 added") && again.contains("2000 imported before"), "{again}");
    if in_time {
        let numbers: Vec<usize> = said.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        assert_eq!(numbers[0] + numbers[2], 2000, "each once, before or after: {said}");
    }
}

#[test]
fn a_csv_describes_and_bad_files_are_named() {
    let data = folder();
    let models = data.path().join("models");
    files(&models, 3);
    std::fs::write(models.join("nan.safetensors"), file([f32::NAN, 1.0])).unwrap();
    std::fs::write(models.join("again.safetensors"), file([1.0, 1.0])).unwrap();
    let place = data.path().join("data");
    let csv = models.join("models.csv");
    let command = |more: &[&str]| {
        let first =
            ["zoo", "import", "--zoo", "outside", "--data-dir", text(&place), "--csv", text(&csv), text(&models)];
        weightsmith([&first[..], more].concat())
    };
    for (rows, part) in [
        ("path,acuracy\nm00000.safetensors,0.5\n", "acuracy"),
        ("path\nmissing.safetensors\n", "row 2 names missing.safetensors"),
        ("path\nm00000.safetensors\n", "has no row"),
        ("path\nm00000.safetensors\nm00000.safetensors\n", "two rows"),
    ] {
        std::fs::write(&csv, rows).unwrap();
        let line = refused(&mut command(&[]));
        assert!(line.contains(part) && line.contains("csv_invalid"), "{line}");
    }
    std::fs::write(&csv, "path,accuracy,dataset,run,epoch,tags\nm00001.safetensors,0.5,digits,a,3,x;y\n").unwrap();
    let said = run(&mut command(&["--defaults", "--keep-going"]));
    assert_eq!(said.code, Some(2), "{said:?}");
    let named = said.err.lines().any(|line| line.contains("nan.safetensors") && line.contains("tensor w"));
    assert!(named && said.err.contains("[import_incomplete]"), "{said:?}");
    assert!(said.out.contains("3 added, 1 with weights that the zoo has, 0 imported before, 1 failed"), "{said:?}");
    let said = import(&place, &["--csv", text(&csv), "--defaults", text(&models.join("m00000.safetensors"))]);
    assert!(said.contains("1 imported before"), "{said}");
    let again = import(&place, &[text(&models.join("again.safetensors"))]);
    assert!(
        again.contains("0 added") && (again.contains("1 with weights") || again.contains("1 imported before")),
        "{again}"
    );
}
