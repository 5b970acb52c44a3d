//! Learn, generate, search and mix, on a model that is trained here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use training::progress::Progress;
use training::stages::layers::LayersConfig;
use training::stages::rows::RowsConfig;

use crate::evaluate::{Candidate, Evaluator, External, MultipleChoice, Question, likelihood};
use crate::generator::Generator;
use crate::lm::train::{TrainConfig, small, train};
use crate::lm::{Decoder, Family, tokens};
use crate::model::Model;
use crate::rewrite::rewrite;
use crate::search::{Course, Proposal, SearchConfig, search};
use crate::soup::soup;
use crate::spectra::spectra;

fn texts(from: usize, n: usize) -> Vec<String> {
    let text = |i: usize| {
        let (colour, mood) = (["red", "old", "big"][i % 3], ["sad", "new"][i / 3 % 2]);
        format!("the {colour} cat sees the {mood} dog , and the {mood} dog sees the {colour} cat .")
    };
    (from..from + n).map(text).collect()
}

fn trained(folder: &Path) -> Model {
    let tokenizer = tokens::learn(&texts(0, 60), 280).unwrap();
    let ids = tokens::encode(&tokenizer, &texts(0, 60)).unwrap();
    let config = small(Family::Llama, tokenizer.get_vocab_size(true), 32, 2, 2, 32).unwrap();
    let settings = TrainConfig { steps: 60, batch: 8, length: 24, lr: 1e-2, seed: 1 };
    let dir = folder.join("base");
    train(&config, &ids, &settings, &Progress::silent()).unwrap().save(&dir, &tokenizer).unwrap();
    Model::open(&dir).unwrap()
}

fn config() -> LayersConfig {
    let rows = RowsConfig {
        hidden: 0,
        latent: 24,
        beta: 1e-4,
        kl_from: 0.7,
        vae_steps: 400,
        width: 64,
        blocks: 2,
        diffusion_steps: 400,
        batch: 16,
        lr: 3e-3,
        sampling_steps: 8,
        ..RowsConfig::default()
    };
    LayersConfig { chunk: 512, rows, ..LayersConfig::default() }
}

fn generator(model: &Model) -> Generator {
    let layers = spectra(model, 0.5, &Progress::silent()).unwrap();
    let names: Vec<String> = layers.into_iter().filter(|l| l.selected).map(|l| l.matrix.name).collect();
    assert_eq!(names.len(), 7, "of each group one of two blocks");
    Generator::learn(model, &names, &config(), &Progress::silent()).unwrap()
}

fn apart(a: &[f32], b: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn layers_are_learned_kept_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(folder.path());
    let generator = generator(&model);
    let file = folder.path().join("generator.safetensors");
    generator.save(&file).unwrap();
    let again = Generator::open(&file).unwrap();
    assert!(again.names().eq(generator.names()) && again.parameters() == generator.parameters());
    let names: Vec<String> = generator.names().map(str::to_owned).collect();
    let to = folder.path().join("made");
    rewrite(&model, &to, &mut generator.sample(5).unwrap()).unwrap();
    let made = Model::open(&to).unwrap();
    let back = folder.path().join("back");
    rewrite(&model, &back, &mut generator.reconstruct(&model).unwrap()).unwrap();
    let back = Model::open(&back).unwrap();
    for name in model.entries().keys() {
        let (own, new) = (model.tensor(name).unwrap(), made.tensor(name).unwrap());
        if names.contains(name) {
            assert!(apart(&back.tensor(name).unwrap(), &own) < 0.7, "{name}");
            assert!(apart(&again.sample_matrix(5, name).unwrap(), &new) < 1e-4, "{name}: a file gives the same");
            assert!(apart(&again.sample_matrix(6, name).unwrap(), &new) > 1e-4, "{name}: another seed another");
        } else {
            assert_eq!(own, new, "{name}");
        }
    }
    assert!(again.sample_matrix(5, "model.norm.weight").unwrap_err().to_string().contains("makes no matrix"));
    let other = Generator::learn(&model, &["model.norm.weight".into()], &config(), &Progress::silent());
    assert!(other.unwrap_err().to_string().contains("no matrix of a block"));
    assert!(Generator::open(&to.join("model.safetensors")).unwrap_err().to_string().contains("no generator"));
}

#[test]
fn a_search_never_gets_worse_and_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(folder.path());
    let generator = generator(&model);
    let mut evaluator = likelihood(&model, &texts(60, 20), 24).unwrap();
    for proposal in [Proposal::Generated, Proposal::Noise] {
        let config = SearchConfig { candidates: 2, proposal, shares: vec![1.0, 0.25], seed: 3, retries: 1 };
        let path = folder.path().join(format!("{proposal:?}.json"));
        let (course, kept) = search(&model, &generator, &mut evaluator, (&config, &path), &Progress::silent()).unwrap();
        assert_eq!((course.steps.len(), course.evaluations()), (7, 14));
        let mut before = course.initial;
        for step in &course.steps {
            assert!(step.before == before && step.after >= before, "{step:?}");
            let best = step.tried.iter().filter_map(|t| t.score).fold(f64::NEG_INFINITY, f64::max);
            assert!(if step.kept.is_some() { step.after == best } else { best < step.before }, "{step:?}");
            before = step.after;
        }
        let mut candidate = Candidate { model: &model, changed: kept.clone() };
        assert_eq!(evaluator.score(&mut candidate).unwrap(), course.score());
        // Stopped after three matrices.
        let stopped = Course { steps: course.steps[..3].to_vec(), ..course.clone() };
        std::fs::write(&path, serde_json::to_vec(&stopped).unwrap()).unwrap();
        let (again, same) = search(&model, &generator, &mut evaluator, (&config, &path), &Progress::silent()).unwrap();
        // JSON loses the last bit of some scores.
        let scores = again.steps.iter().zip(&course.steps).all(|(a, b)| (a.after - b.after).abs() < 1e-12);
        assert!(scores && again.steps.len() == 7 && same == kept, "{again:?}");
        let none = SearchConfig { shares: Vec::new(), ..config.clone() };
        assert!(search(&model, &generator, &mut evaluator, (&none, &path), &Progress::silent()).is_err());
        let other = SearchConfig { seed: 4, ..config };
        let error = search(&model, &generator, &mut evaluator, (&other, &path), &Progress::silent());
        assert!(error.unwrap_err().to_string().contains("another search"));
    }
}

/// A program that writes one thing or another.
fn program(folder: &Path, name: &str, script: &str) -> External {
    let path: PathBuf = folder.join(name);
    std::fs::write(&path, script).unwrap();
    let command = vec!["sh".to_owned(), path.display().to_string()];
    External { command, limit: Duration::from_secs(2), folder: folder.to_owned() }
}

#[test]
fn a_program_scores_a_directory_and_its_failures_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(folder.path());
    let mut candidate = Candidate { model: &model, changed: BTreeMap::new() };
    let mut good = program(folder.path(), "good", "test -f \"$1/config.json\" || exit 3\necho loading\necho 0.25\n");
    assert_eq!(good.score(&mut candidate).unwrap(), 0.25);
    for (name, script, wanted) in [
        ("fails", "exit 3\n", "exit status: 3"),
        ("hangs", "exec sleep 30\n", "longer than 2 s"),
        ("nan", "echo nan\n", "no score"),
        ("words", "echo well done\n", "not with a number"),
    ] {
        let error = program(folder.path(), name, script).score(&mut candidate).unwrap_err().to_string();
        assert!(error.contains(wanted), "{name}: {error}");
    }
    let left = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(left.filter(|name| name.contains("candidate")).count() == 0, "candidates are removed");
    // Every second run fails: others take the place of those.
    let script =
        "n=$(cat \"$0.n\" 2>/dev/null || echo 0)\necho $((n + 1)) > \"$0.n\"\n[ $((n % 2)) = 0 ] || exit 1\necho $n\n";
    let mut flaky = program(folder.path(), "flaky", script);
    let generator = generator(&model);
    let config = SearchConfig { candidates: 1, proposal: Proposal::Generated, shares: vec![1.0], seed: 3, retries: 2 };
    let path = folder.path().join("course.json");
    let (course, kept) = search(&model, &generator, &mut flaky, (&config, &path), &Progress::silent()).unwrap();
    assert!(kept.len() == 7 && course.steps.iter().all(|s| s.tried.len() == 2 && s.tried[0].failure.is_some()));
    let mut broken = program(folder.path(), "broken", "[ -f \"$0.n\" ] && exit 1\ntouch \"$0.n\"\necho 1\n");
    let path = folder.path().join("other.json");
    let error = search(&model, &generator, &mut broken, (&config, &path), &Progress::silent()).unwrap_err();
    assert!(error.to_string().contains("no candidate of"), "{error}");
}

#[test]
fn questions_are_answered_by_likelihood() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(folder.path());
    let decoder = Decoder::load(&model).unwrap();
    let tokenizer = tokens::open(model.dir(), decoder.config().vocabulary).unwrap();
    let line = |answer: usize| {
        format!(r#"{{"context": "the red cat sees", "choices": [" the sad dog", " cat the . ,"], "answer": {answer}}}"#)
    };
    let questions = Question::read(&[line(0), String::new(), line(1)].join("\n")).unwrap();
    let mut evaluator = MultipleChoice::new(decoder, &tokenizer, &questions).unwrap();
    assert_eq!(evaluator.score(&mut Candidate { model: &model, changed: BTreeMap::new() }).unwrap(), 0.5);
    for (text, wanted) in [("", "no questions"), (&line(2), "line 1"), ("{}", "line 1")] {
        let error = Question::read(text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert!(likelihood(&model, &["the".into()], 24).is_err());
}

#[test]
fn a_soup_is_a_mean() {
    let folder = tempfile::tempdir().unwrap();
    let model = trained(folder.path());
    let generator = generator(&model);
    let to = folder.path().join("made");
    rewrite(&model, &to, &mut generator.sample(5).unwrap()).unwrap();
    let open = |path: &Path| Model::open(path).unwrap();
    let mixed = folder.path().join("soup");
    soup(&[(open(model.dir()), 3.0), (open(&to), 1.0)], &mixed).unwrap();
    let (made, mixed) = (open(&to), open(&mixed));
    for name in model.entries().keys() {
        let (a, b, mean) = (model.tensor(name).unwrap(), made.tensor(name).unwrap(), mixed.tensor(name).unwrap());
        assert!(a.iter().zip(&b).zip(&mean).all(|((a, b), m)| (0.75 * a + 0.25 * b - m).abs() < 1e-5), "{name}");
    }
    let again = folder.path().join("again");
    assert!(soup(&[(open(model.dir()), 1.0)], &again).is_err());
    assert!(soup(&[(open(model.dir()), 1.0), (open(&to), f64::NAN)], &again).is_err());
    assert!(!again.exists());
}
