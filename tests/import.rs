//! Zoos from outside, against the binary: thousands of files, a kill in the middle, the same command again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;

use serde_json::json;
use support::data::safetensors;
use support::http::Server;
use support::{PATIENCE, Running, files_in, folder, refused, run, succeed, text, wait_until, weightsmith};

fn files(folder: &Path, count: u32) {
    std::fs::create_dir_all(folder).unwrap();
    for index in 0..count {
        std::fs::write(folder.join(format!("m{index:05}.safetensors")), safetensors([index as f32, 1.0])).unwrap();
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
    // Files of more than two batches: at least one is in the database, and many are still to come.
    wait_until("the import is under way", PATIENCE, || files_in(&place.join("artifacts")).len() > 150);
    assert!(killed.kill(), "the import was killed before its end");
    let said = import(&place, &[text(&models)]);
    let numbers: Vec<usize> = said.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
    let [added, known, passed, failed, of] = numbers[..] else { panic!("{said}") };
    assert_eq!((added + passed, known, failed, of), (2000, 0, 0, 2000), "{said}");
    assert!(added > 0 && passed > 0, "killed in the middle: {said}");
    let again = import(&place, &[text(&models)]);
    assert!(again.contains("0 added") && again.contains("2000 imported before"), "{again}");

    let server = Server::start(&place, &[]);
    let all = server.api.all("/v1/checkpoints");
    let mut sources: Vec<&str> = all.iter().map(|row| row["run"].as_str().unwrap()).collect();
    sources.sort_unstable();
    let wanted: Vec<String> = (0..2000).map(|index| format!("m{index:05}")).collect();
    assert_eq!(sources, wanted, "each file once");
}

#[test]
fn a_zoo_is_made_with_its_first_checkpoints() {
    let data = folder();
    let place = data.path().join("data");
    let models = data.path().join("models");
    files(&models, 2);
    let bad = models.join("a.safetensors");
    std::fs::write(&bad, safetensors([f32::NAN, 1.0])).unwrap();
    let command = ["zoo", "import", "--zoo", "outside", "--data-dir", text(&place), text(&models)];
    let line = refused(&mut weightsmith(command));
    assert!(line.contains("a.safetensors") && line.contains("tensor w") && line.contains("[non_finite]"), "{line}");
    let server = Server::start(&place, &["--no-worker"]);
    assert!(server.api.all("/v1/zoos").is_empty(), "no zoo without a checkpoint");
    drop(server);
    std::fs::remove_file(&bad).unwrap();
    assert!(import(&place, &[text(&models)]).contains("2 added"));
    let server = Server::start(&place, &["--no-worker"]);
    let zoos = server.api.all("/v1/zoos");
    assert_eq!((zoos.len(), zoos[0]["checkpoints"].as_u64()), (1, Some(2)));
}

#[test]
fn an_architecture_comes_from_a_checkpoint_or_json() {
    let data = folder();
    let place = data.path().join("data");
    let model = data.path().join("model.safetensors");
    std::fs::write(&model, safetensors([1.0, 2.0])).unwrap();
    let layout = data.path().join("layout.json");
    let command = |file: &Path, name: &str| {
        weightsmith(["architecture", "import", text(file), "--name", name, "--data-dir", text(&place)])
    };
    for _ in 0..2 {
        let said = run(&mut command(&model, "pair"));
        assert_eq!((said.code, said.out.as_str()), (Some(0), "pair has 1 tensors, 2 values\n"), "{said:?}");
    }
    std::fs::write(&layout, json!({"params": [{"name": "v", "shape": [3]}]}).to_string()).unwrap();
    assert!(refused(&mut command(&layout, "pair")).contains("already_exists"));
    assert_eq!(run(&mut command(&layout, "three")).out, "three has 1 tensors, 3 values\n");
    for (content, code) in [("{\"params\": []}", "no_tensors"), ("{\"tensors\": []}", "layout_invalid")] {
        std::fs::write(&layout, content).unwrap();
        let line = refused(&mut command(&layout, "wrong"));
        assert!(line.contains(code), "{line}");
    }
    let listed = succeed(&["architecture", "list", "--data-dir", text(&place)]);
    let names: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["pair", "three"]);
    let wrong = ["zoo", "import", "--zoo", "z", "--architecture", "three", "--data-dir", text(&place), text(&model)];
    assert!(refused(&mut weightsmith(wrong)).contains("tensor_missing"));
    let right = ["zoo", "import", "--zoo", "y", "--architecture", "pair", "--data-dir", text(&place), text(&model)];
    assert!(succeed(&right).contains("1 added"));
}

#[test]
fn a_csv_describes_and_bad_files_are_named() {
    let data = folder();
    let models = data.path().join("models");
    files(&models, 3);
    std::fs::write(models.join("nan.safetensors"), safetensors([f32::NAN, 1.0])).unwrap();
    std::fs::write(models.join("again.safetensors"), safetensors([1.0, 1.0])).unwrap();
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
    std::fs::write(&csv, "path,accuracy\nm00001.safetensors,1.5\n").unwrap();
    let line = refused(&mut command(&["--defaults", "--keep-going"]));
    assert!(line.contains("accuracy") && line.contains("invalid_value"), "{line}");
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
