//! `weightsmith report`: a quick experiment from data that is built in, and what it refuses.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;
use support::{config, files_in, folder, refused, run, succeed, text, weightsmith};

const ARMS: [&str; 9] =
    ["generated", "zoo", "retrieval", "scratch", "noise", "average", "gaussian", "reconstruction", "shuffled"];

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// Mean and deviation of the accuracies that an arm lists.
fn listed(epoch: &Value) -> (f64, f64, usize) {
    let tasks = epoch["tasks"].as_object().unwrap().values();
    let all: Vec<f64> = tasks.flat_map(|t| t["accuracies"].as_array().unwrap()).map(number).collect();
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    (mean, (all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt(), all.len())
}

/// Checks that an arm's numbers are consistent with each other.
fn check_arm(name: &str, arm: &Value) {
    for epoch in ["epoch_0", "epoch_1"] {
        let numbers = &arm["epochs"][epoch];
        let (mean, std, models) = listed(numbers);
        assert!((number(&numbers["mean"]) - mean).abs() < 1e-9 && (0.0..=1.0).contains(&mean), "{name} {epoch}");
        assert!((number(&numbers["std"]) - std).abs() < 1e-9, "{name} {epoch}: {std}");
        assert_eq!(numbers["models"], models, "{name} {epoch}");
        assert!(number(&numbers["best"]["mean"]) >= mean - 1e-9, "{name} {epoch}");
    }
    let member = ["zoo", "retrieval"].contains(&name);
    assert_eq!(arm["novelty"].is_null(), member, "{name}: {}", arm["novelty"]);
    if !member {
        let (mean, largest) = (number(&arm["novelty"]["mean"]), number(&arm["novelty"]["largest"]));
        assert!(mean > 0.0 && mean <= largest, "{name}: {mean} {largest}");
    }
}

/// What the method claims, with room for the small size.
fn check_claims(set: &str, arms: &Value) {
    let at = |arm: &str| number(&arms[arm]["epochs"]["epoch_0"]["mean"]);
    let all: Vec<String> = ARMS.iter().map(|arm| format!("{arm} {:.3}", at(arm))).collect();
    let claim = |holds: bool, what: &str| assert!(holds, "{set}: {what}: {}", all.join(", "));
    claim(at("zoo") > at("scratch") + 0.4, "the zoo's models work");
    claim(at("generated") > at("shuffled") + 0.35, "the condition is used");
    claim(at("generated") > at("scratch") + 0.35, "generated weights work at once");
    claim(at("generated") > at("average"), "they are no average");
    claim(at("reconstruction") > 0.85, "what the VAE did not learn it reconstructs");
    let diverse = |arm: &str| number(&arms[arm]["disagreement"]);
    claim(diverse("scratch") > diverse("generated"), "untrained networks agree least");
    let novelty = |arm: &str| number(&arms[arm]["novelty"]["mean"]);
    claim((novelty("noise") / novelty("generated") - 1.0).abs() < 0.25, "noise is as novel as what is generated");
    claim(novelty("scratch") > novelty("generated"), "untrained networks are far from the zoo");
}

/// Checks that a text is one well-formed XML document; gives the texts in it.
fn xml_texts(svg: &str) -> Vec<String> {
    use quick_xml::events::Event;
    let mut reader = quick_xml::Reader::from_str(svg);
    let (mut open, mut texts, mut elements) = (Vec::new(), Vec::new(), 0);
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) => {
                tag.attributes().for_each(|attribute| drop(attribute.unwrap()));
                open.push(tag.name().as_ref().to_vec());
                elements += 1;
            }
            Event::Empty(tag) => {
                tag.attributes().for_each(|attribute| drop(attribute.unwrap()));
                elements += 1;
            }
            Event::End(tag) => assert_eq!(open.pop().unwrap(), tag.name().as_ref()),
            Event::Text(text) => texts.push(text.decode().unwrap().trim().to_owned()),
            Event::Eof => break,
            _ => {}
        }
    }
    assert!(open.is_empty() && elements > 100, "{elements} elements, open {open:?}");
    texts
}

fn modified(path: &Path) -> SystemTime {
    path.metadata().unwrap().modified().unwrap()
}

#[test]
fn a_quick_experiment() {
    let place = folder();
    let out = place.path().join("deep/out");
    let args = ["report", "digits", "--quick", "--out", text(&out)];
    let said = succeed(&args);
    let file = |ending: &str| out.join(format!("digits.{ending}"));
    let read = |ending: &str| std::fs::read_to_string(file(ending)).unwrap();
    let report: Value = serde_json::from_str(&read("json")).unwrap();
    for key in ["seconds", "peak_rss_mib"] {
        assert!(number(&report[key]) > 0.0, "{key}");
    }
    assert_eq!(report["seeds"], serde_json::json!([0]));
    assert_eq!(report["configuration"]["generator"]["tasks"]["classes"], 3);
    assert_eq!((&report["quick"], report["revision"].as_str().unwrap().is_empty()), (&Value::from(true), false));
    let groups = report["groups"].as_array().unwrap();
    let sets: Vec<&str> = groups.iter().map(|g| g["set"].as_str().unwrap()).collect();
    assert_eq!((sets, &report["arms"]), (vec!["seen", "unseen"], &groups[0]["arms"]));
    for group in groups {
        let arms = group["arms"].as_object().unwrap();
        assert_eq!(arms.keys().map(String::as_str).collect::<Vec<_>>(), ARMS);
        arms.iter().for_each(|(name, arm)| check_arm(name, arm));
        check_arm("train", &group["arms"]["reconstruction"]["train"]);
        check_claims(group["set"].as_str().unwrap(), &group["arms"]);
    }

    // The page and the plots say the same.
    let page = read("md");
    assert!(said.starts_with(&page), "{said}");
    let mean = number(&report["arms"]["generated"]["epochs"]["epoch_0"]["mean"]);
    assert!(page.contains(&format!("| generated | {:.1} ± ", 100.0 * mean)), "{page}");
    assert!(page.contains("none of these numbers is a result"), "{page}");
    let texts = xml_texts(&read("svg"));
    assert!(texts.contains(&format!("generated, seen {:.1}", 100.0 * mean)), "{texts:?}");

    // A second run only measures, and measures the same.
    let made: Vec<PathBuf> = files_in(&out.join("cache")).into_iter().map(|(path, _)| path).collect();
    let of = |ending: &str| made.iter().filter(|p| text(p).ends_with(ending)).count();
    assert_eq!((of(".tar"), of(".safetensors"), of(".part")), (1, 9, 0), "{made:?}");
    let bundle = made.iter().find(|p| text(p).ends_with(".tar")).unwrap();
    let before = (modified(bundle), modified(&file("json")));
    succeed(&args);
    let again: Value = serde_json::from_str(&read("json")).unwrap();
    assert_eq!((again["groups"] == report["groups"], modified(bundle)), (true, before.0));
    assert!(modified(&file("json")) > before.1);
}

/// A small experiment on the configuration `tiny`, with these lines.
fn tiny(place: &Path, name: &str, lines: &str) -> PathBuf {
    let path = place.join(format!("{name}.toml"));
    let head = format!("title = \"t\"\ntable = \"-\"\nsamples = 1\nseen_tasks = 2\nbase = {:?}\n", config("tiny"));
    std::fs::write(&path, head + lines).unwrap();
    path
}

#[test]
fn an_experiment_of_ones_own() {
    let place = folder();
    let out = place.path().join("out");
    let lines = "seeds = [0, 1]\narms = [\"generated\", \"zoo\"]\n[[variants]]\nname = \"full\"\n[[variants]]\nname = \"half\"\n\
                 share = 0.5\n[variants.overrides]\n\"vae.behaviour\" = 0.0\n\"vectors.alignment_sweeps\" = 0\n\
                 [overrides]\n\"zoo.runs_per_task\" = 2\n";
    let file = tiny(place.path(), "own", lines);
    let said = succeed(&["report", "--config", text(&file), "--out", text(&out)]);
    assert!(said.contains("| half | 40 |") && said.contains("| full | 80 |"), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(out.join("own.json")).unwrap()).unwrap();
    let groups = report["groups"].as_array().unwrap();
    assert_eq!(groups.iter().map(|g| g["variant"].as_str().unwrap()).collect::<Vec<_>>(), ["full", "half"]);
    for group in groups {
        // Each seed has a generator of its own, and all its models are counted.
        let generators = group["generators"].as_array().unwrap();
        let digests: Vec<&str> = generators.iter().map(|g| g["digest"].as_str().unwrap()).collect();
        assert!(digests.len() == 2 && digests[0] != digests[1], "{digests:?}");
        let epoch = &group["arms"]["generated"]["epochs"]["epoch_0"];
        assert_eq!((&epoch["models"], number(&epoch["std_over_seeds"]) >= 0.0), (&4.into(), true), "{epoch}");
    }
    let own = &report["configuration"]["variants"][1]["generator"];
    assert_eq!((&own["vae"]["behaviour"], &own["vectors"]["alignment_sweeps"]), (&0.0.into(), &0.into()));
    xml_texts(&std::fs::read_to_string(out.join("own.svg")).unwrap());
}

#[test]
fn each_source_is_left_out() {
    let place = folder();
    let out = place.path().join("out");
    let lines = "epochs = [0, 1]\nleave_out = true\n[overrides]\ntasks = { kind = \"sources\" }\n\
                 \"zoo.runs_per_task\" = 3\n[[overrides.data.sources]]\nname = \"a\"\nfrom = \"digits\"\n\
                 [[overrides.data.sources]]\nname = \"b\"\nfrom = \"digits\"\n";
    succeed(&["report", "--config", text(&tiny(place.path(), "left", lines)), "--out", text(&out)]);
    let report: Value = serde_json::from_slice(&std::fs::read(out.join("left.json")).unwrap()).unwrap();
    let page = std::fs::read_to_string(out.join("left.md")).unwrap();
    assert!(page.contains("## left out\n") && page.contains("| arm | a | b |"), "{page}");
    let left_out: Vec<&Value> = report["generators"].as_array().unwrap().iter().map(|g| &g["left_out"]).collect();
    assert_eq!(left_out, ["a", "b"]);
    assert!(
        report["generators"].as_array().unwrap().iter().all(|g| g["zoo_runs"] == 3 && number(&g["bundle_bytes"]) > 0.0)
    );
    for arm in ARMS {
        let tasks = report["arms"][arm]["epochs"]["epoch_1"]["tasks"].as_object().unwrap();
        assert_eq!(tasks.keys().collect::<Vec<_>>(), ["a", "b"], "{arm}");
    }
    // Its own models work, those of the other source too (it is the same data here).
    let at = |arm: &str| number(&report["arms"][arm]["epochs"]["epoch_0"]["mean"]);
    assert!(at("zoo") > 0.5 && at("retrieval") > 0.5 && at("scratch") < 0.4, "{} {}", at("zoo"), at("retrieval"));
}

/// Few-shot heads on principal components of the digits; a source of shuffled pixels is left out.
const HEADS: &str = r#"
title = "t"
table = "-"
samples = 3
seen_tasks = 10
unseen_tasks = 10
left_out_tasks = 10
arms = ["generated", "zoo", "retrieval", "shuffled", "closed_form_ridge", "closed_form_centroid", "adapted", "answer"]
[generator]
name = "heads"
seed = 7
[generator.data]
sources = [{ name = "digits", from = "digits" }, { name = "others", from = "folder:OTHERS", role = "left_out" }]
backbone = { kind = "pca", dim = 24 }
[generator.tasks]
kind = "class_sets"
classes = 3
seen = 90
orders = 6
[generator.architecture]
kind = "head"
[generator.zoo]
fit = "ridge"
images = 40
[generator.vae]
rows = true
hidden = [64]
latent = [3, 12]
steps = 300
batch = 32
[generator.encoder]
images = 3
width = 32
heads = 2
token_dim = 16
embedding_dim = 16
steps = 100
batch = 32
joint = 1.0
[generator.denoiser]
kind = "rows"
width = 48
blocks = 2
heads = 2
[generator.diffusion]
steps = 600
batch = 48
timesteps = 200
beta_start = 0.003
beta_end = 0.06
[[variants]]
name = "3-shot"
[[variants]]
name = "1-shot"
overrides = { "encoder.images" = 1 }
"#;

#[test]
fn few_shot_heads_have_closed_forms_and_an_answer_beside_them() {
    let place = folder();
    // Five classes that no digit is like: bars and checks, with noise.
    for class in 0..5usize {
        let dir = place.path().join("others").join(format!("c{class}"));
        std::fs::create_dir_all(&dir).unwrap();
        for n in 0..40usize {
            let noise = |i: usize| (i * 7919 + n * 104_729 + class * 31).wrapping_mul(2_654_435_761) >> 7 & 127;
            let on = |x: usize, y: usize| [x % 2, y % 2, (x + y) % 2, usize::from(x < 4), usize::from(y < 4)][class];
            let pixels = (0..64).map(|i| (on(i % 8, i / 8) * 128 + noise(i)) as u8).collect();
            image::GrayImage::from_raw(8, 8, pixels).unwrap().save(dir.join(format!("{n:02}.png"))).unwrap();
        }
    }
    let (file, out) = (place.path().join("heads.toml"), place.path().join("out"));
    let others = place.path().join("others");
    std::fs::write(&file, HEADS.replace("OTHERS", text(&others))).unwrap();
    succeed(&["report", "--config", text(&file), "--out", text(&out)]);
    let report: Value = serde_json::from_slice(&std::fs::read(out.join("heads.json")).unwrap()).unwrap();
    let groups = report["groups"].as_array().unwrap();
    let names: Vec<String> =
        groups.iter().map(|g| format!("{} {}", g["variant"].as_str().unwrap(), g["set"].as_str().unwrap())).collect();
    let sets = ["seen", "unseen", "left out"];
    let expected: Vec<String> = ["3-shot", "1-shot"].iter().flat_map(|v| sets.map(|s| format!("{v} {s}"))).collect();
    assert_eq!(names, expected);
    for (name, group) in names.iter().zip(groups) {
        let at = |arm: &str| number(&group["arms"][arm]["epochs"]["epoch_0"]["mean"]);
        let better = at("closed_form_ridge").max(at("closed_form_centroid"));
        let answers = &group["generators"][0]["answers"];
        let (origins, distances) = (answers["origins"].as_object().unwrap(), answers["distances"].as_array().unwrap());
        let said = format!(
            "{name}: {:.3} answer, {better:.3} closed form, {:.3} generated, {answers}",
            at("answer"),
            at("generated")
        );
        eprintln!("{said}");
        assert_eq!((origins.values().map(number).sum::<f64>(), distances.len()), (10.0, 10), "{said}");
        assert!(at("zoo") > 0.9 && at("shuffled") < 0.6, "{said}");
        if name.ends_with("left out") {
            assert!(at("generated") < better, "{said}");
            // Nine or fewer examples say what to trust, and the better of two closed forms is chosen with hindsight: one
            // wrong answer of ten costs 3 to 6 points. What was generated would cost 40.
            assert!(at("answer") >= better - 0.06, "{said}");
        } else {
            assert!(at("generated") > better && at("answer") >= better, "{said}");
        }
    }
    let page = std::fs::read_to_string(out.join("heads.md")).unwrap();
    assert!(page.contains("| closed_form_ridge |") && page.contains("`answer` is "), "{page}");
}

#[test]
fn list_names_every_experiment() {
    let said = succeed(&["report", "list"]);
    for name in ["digits", "table-1 ", "table-19-20", "table-4", "leave-one-out", "ablations", "zoo-size"] {
        assert!(said.lines().any(|line| line.starts_with(name)), "{name}: {said}");
    }
    assert!(said.contains("--data"), "what is missing is said: {said}");
    let help = succeed(&["report", "--help"]);
    assert!(help.contains("weightsmith report digits"), "{help}");
}

#[test]
fn mistakes_end_with_one_line_and_no_file() {
    let (place, empty) = (folder(), folder());
    let own = |name: &str, lines: &str| tiny(place.path(), name, lines).display().to_string();
    let unknown = own("unknown", "sampels = 3\n");
    let key = own("key", "[[variants]]\nname = \"v\"\n[variants.overrides]\n\"vae.behavior\" = 0.0\n");
    let zoo = own("zoo", "[[variants]]\nname = \"v\"\n[variants.overrides]\n\"zoo.epochs\" = 1\n");
    let arm = own("arm", "arms = [\"best\"]\n");
    let one = own("one", "[overrides]\n\"tasks.seen\" = 1\n\"tasks.orders\" = 1\n");
    let base = own("base", "[generator]\nname = \"x\"\n");
    let no_data = empty.path().join("no-data").display().to_string();
    for (args, code, part) in [
        (vec!["report", "--config", &unknown], "config_invalid", "unknown field `sampels`"),
        (vec!["report", "--config", &key], "config_invalid", "vae.behavior;"),
        (vec!["report", "--config", &zoo], "config_invalid", "one zoo"),
        (vec!["report", "--config", &arm], "config_invalid", "`best`"),
        (vec!["report", "--config", &one], "config_invalid", "single lineage"),
        (vec!["report", "--config", &base], "config_invalid", "either base"),
        (vec!["report", "--config", "/no/such.toml"], "io", "/no/such.toml"),
        (vec!["report", "table-1000"], "unknown_experiment", "table-19-20"),
        (vec!["report", "table-4"], "data_missing", "--data"),
        (vec!["report", "table-4", "--data", &no_data], "data_missing", "no folder mnist"),
        (vec!["report"], "usage", "<EXPERIMENT>"),
    ] {
        let cwd = folder();
        let line = refused(weightsmith(&args).current_dir(cwd.path()));
        assert!(line.ends_with(&format!(" [{code}]")), "{args:?}: {line}");
        assert!(line.contains(part), "{args:?} does not say {part:?}: {line}");
        assert_eq!(files_in(cwd.path()), [], "{args:?} wrote files");
    }

    // A loss that is not finite: the stage and the step, and no result.
    let wild = own("wild", "[overrides]\n\"vae.lr\" = 1e30\n");
    let out = empty.path().join("out");
    let said = run(&mut weightsmith(["report", "--config", &wild, "--out", text(&out)]));
    assert_eq!(said.code, Some(2), "{said:?}");
    let line = said.err.lines().last().unwrap();
    assert!(line.contains("vae: the loss is not finite at step") && line.ends_with("[diverged]"), "{line}");
    let left = files_in(&out);
    assert!(left.iter().all(|(path, _)| !text(path).contains("wild") && !text(path).ends_with(".part")), "{left:?}");
}
