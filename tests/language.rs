//! Language models from the command line: trained, looked at, their layers learned, generated, searched and mixed.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{folder, refused, repository, succeed, text, weightsmith};

fn corpus(path: &Path) {
    std::fs::write(path, support::corpus()).unwrap();
}

/// The number behind `word` in a command's output.
fn number(out: &str, word: &str) -> f64 {
    let behind = out.split(word).nth(1).unwrap_or_else(|| panic!("no {word} in {out}"));
    let number: String = behind.trim_start().chars().take_while(|c| c.is_ascii_digit() || "-.".contains(*c)).collect();
    number.trim_end_matches('.').parse().unwrap()
}

#[test]
fn from_text_to_a_soup() {
    let data = folder();
    let at = |name: &str| data.path().join(name);
    let (lines, base, layers) = (at("lines.txt"), at("base"), at("layers.safetensors"));
    corpus(&lines);
    let sizes = ["--width", "32", "--layers", "2", "--heads", "2", "--vocabulary", "280", "--length", "24"];
    let steps = ["--steps", "60", "--batch", "8", "--lr", "0.01"];
    let train = ["language", "train", "--text", text(&lines), "--out", text(&base)];
    let said = succeed(&[&train[..], &sizes, &steps].concat());
    assert!(number(&said, "held out:") < 0.5 * number(&said, "frequencies:"), "{said}");
    let again = refused(&mut weightsmith([&train[..], &sizes, &steps].concat()));
    assert!(again.contains("exists already"), "{again}");

    let (svg, numbers) = (at("spectrum.svg"), at("spectrum.json"));
    let said = succeed(&["spectrum", text(&base), "--top", "0.5", "--svg", text(&svg), "--json", text(&numbers)]);
    assert!(said.contains("selected: 7 of 14 matrices"), "{said}");
    assert!(std::fs::read_to_string(&svg).unwrap().contains("singular value / edge"));
    let spectra: Vec<Value> = serde_json::from_slice(&std::fs::read(&numbers).unwrap()).unwrap();
    assert_eq!(spectra.iter().filter(|layer| layer["selected"] == true).count(), 7);

    let settings = at("layers.toml");
    std::fs::write(
        &settings,
        "chunk = 512\nlatent = 24\nhidden = 0\nvae_steps = 100\ndiffusion_steps = 100\nwidth = 32\nblocks = 1\n",
    )
    .unwrap();
    let learn = ["language", "learn", text(&base), "--top", "0.5", "--config", text(&settings), "--out", text(&layers)];
    let said = succeed(&learn);
    assert!(said.contains("kurtosis") && said.contains("7 matrices"), "{said}");
    let from = ["--generator", text(&layers)];
    let made = at("made");
    succeed(&[&["language", "generate", text(&base)][..], &from, &["--out", text(&made)]].concat());
    let (better, score) = (at("better"), ["--text", text(&lines), "--length", "24"]);
    let search = ["language", "search", text(&base), "--candidates", "2", "--out", text(&better)];
    let said = succeed(&[&search[..], &from, &score].concat());
    assert!(number(&said, ": score") <= number(&said, "before,"), "{said}");
    let course: Value = serde_json::from_slice(&std::fs::read(at("better.course.json")).unwrap()).unwrap();
    assert_eq!(course["steps"].as_array().unwrap().len(), 7);

    let mixed = at("mixed");
    let (one, other) = (format!("{}=2", base.display()), format!("{}=1", better.display()));
    succeed(&["language", "soup", &one, &other, "--out", text(&mixed)]);
    let perplexity =
        |model: &Path| number(&succeed(&[&["language", "evaluate", text(model)][..], &score].concat()), "perplexity");
    assert!(perplexity(&better) <= perplexity(&base) + 1e-3, "{} {}", perplexity(&better), perplexity(&base));
    assert!(perplexity(&mixed) < 2.0 * perplexity(&base));
}

#[test]
fn what_is_wrong_is_said() {
    let data = folder();
    let nothing = data.path().join("nothing");
    for (args, wanted) in [
        (vec!["spectrum", text(&nothing)], "config.json"),
        (vec!["language", "evaluate", text(&nothing)], "config.json"),
        (vec!["language", "soup", "a=x", "b", "--out", text(&nothing)], "x is no weight"),
        (vec!["language", "train", "--text", text(&nothing), "--out", text(&nothing)], "No such file"),
    ] {
        let line = refused(&mut weightsmith(&args));
        assert!(line.contains(wanted), "{line}");
    }
    assert!(!nothing.exists());
}

/// A BERT of random values, with a tokenizer of whole words.
fn text_encoder(dir: &Path) {
    let config = json!({
        "model_type": "bert", "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 32, "type_vocab_size": 2,
    });
    std::fs::create_dir(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let vocabulary: serde_json::Map<String, Value> = "[UNK] the cat dog horse bird man has seen times ."
        .split(' ')
        .zip(0..)
        .map(|(w, i)| (w.to_owned(), json!(i)))
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = language::bert::BertConfig::from_json(&config).unwrap();
    let all: Vec<(String, Vec<usize>)> = config.tensors().into_iter().chain(config.pooler()).collect();
    let values = |shape: &[usize]| (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.7).sin() * 0.3).collect();
    let values: Vec<Vec<f32>> = all.iter().map(|(_, shape)| values(shape)).collect();
    let list: Vec<(&str, &[usize], &[f32])> =
        all.iter().zip(&values).map(|((name, shape), v)| (name.as_str(), shape.as_slice(), v.as_slice())).collect();
    let bytes = weights::tensors::named_to_safetensors(&list, &std::collections::BTreeMap::new());
    std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn reports_on_language_models() {
    let data = folder();
    let (texts, out) = (data.path().join("data"), data.path().join("out"));
    let noun = |i: usize| ["cat", "dog", "horse", "bird", "man"][i % 5];
    let sentence = |i: usize| format!("{i} times the {} has seen the {} .", noun(i), noun(i / 5 + 1));
    let table = |header: &str, row: &dyn Fn(usize) -> String| -> String {
        std::iter::once(format!("{header}\n")).chain((0..60).map(row)).collect()
    };
    let write = |name: &str, text: &str| {
        let path = texts.join("text").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for file in ["train.tsv", "dev.tsv"] {
        write(&format!("sst2/{file}"), &table("label\tsentence", &|i| format!("{}\t{}\n", i % 2, sentence(i))));
        let row = |i: usize| {
            format!("{i}\t{}\t{}\t{}\n", sentence(100 + i), sentence(200 + i), ["entailment", "not_entailment"][i % 2])
        };
        write(&format!("rte/{file}"), &table("index\tsentence1\tsentence2\tlabel", &row));
    }
    let pair = |i: usize| format!("{}\t1\t2\t{}\t{}\n", i % 2, sentence(300 + i), sentence(400 + i));
    for file in ["train", "test"] {
        write(&format!("mrpc/msr_paraphrase_{file}.txt"), &table("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", &pair));
    }
    std::fs::create_dir_all(texts.join("text/cola")).unwrap();
    let file = std::fs::File::create(texts.join("text/cola/cola_public.zip")).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    for name in ["in_domain_train", "in_domain_dev"] {
        archive.start_file(format!("cola_public/raw/{name}.tsv"), zip::write::SimpleFileOptions::default()).unwrap();
        let rows: String = (0..60).map(|i| format!("x\t{}\t\t{}\n", i % 2, sentence(500 + i))).collect();
        std::io::Write::write_all(&mut archive, rows.as_bytes()).unwrap();
    }
    archive.finish().unwrap();
    let report = |name: &str| -> Value {
        succeed(&["report", name, "--quick", "--data", text(&texts), "--out", text(&out)]);
        assert!(out.join(format!("{name}.md")).is_file());
        serde_json::from_slice(&std::fs::read(out.join(format!("{name}.json"))).unwrap()).unwrap()
    };
    let search = report("table-6");
    let of = |arm: &str, split: &str| search["arms"][arm]["llama"][split]["mean"].as_f64().unwrap();
    for arm in ["searched", "searched, noise"] {
        assert!(of(arm, "validation_perplexity") <= of("start", "validation_perplexity"), "{}", search["arms"]);
    }
    assert_eq!(report("table-18")["arms"].as_object().unwrap().len(), 4);
    let scale = report("scale-872m");
    assert!(scale["parameters"] == json!(401_408) && scale["floor_seconds"].as_f64().unwrap() > 0.0, "{scale}");
    let configured = std::fs::read_to_string(repository("configs/report/scale-872m.toml")).unwrap();
    assert!(configured.contains("873,463,808"));
    let encoder = data.path().join("encoder");
    text_encoder(&encoder);
    let ask = ["report", "table-5", "--quick", "--data", text(&texts), "--out", text(&out)];
    let line = refused(&mut weightsmith(ask));
    assert!(line.contains("--text-encoder"), "{line}");
    succeed(&[&ask[..], &["--text-encoder", text(&encoder)]].concat());
    let adapters: Value = serde_json::from_slice(&std::fs::read(out.join("table-5.json")).unwrap()).unwrap();
    let arms = adapters["arms"].as_object().unwrap();
    assert!(arms.len() == 9 && arms.values().all(|by| by.as_object().unwrap().len() == 4), "{}", adapters["arms"]);
    let line = refused(&mut weightsmith(["report", "table-6", "--data", text(&out)]));
    assert!(line.contains("text/sst2") && line.contains("not in"), "{line}");
}

#[test]
fn adapters_for_a_described_task() {
    let encoder = support::required("WEIGHTSMITH_TEXT_ENCODER");
    let data = folder();
    let at = |name: &str| data.path().join(name);
    let tsv = at("own");
    std::fs::create_dir(&tsv).unwrap();
    let rows = "label\ttext\nyes\tit is so\nno\tit is not so\nyes\tsurely\nno\tnever\n";
    std::fs::write(tsv.join("train.tsv"), rows).unwrap();
    std::fs::write(tsv.join("test.tsv"), rows).unwrap();
    let settings = |classes: &str| {
        format!(
            "name = \"own\"\ntrain_examples = 16\ntest_examples = 8\nlength = 12\nruns = 1\n[lora]\nrank = 1\nblocks = 1\n\
             [fit]\nepochs = 2\nkeep = 2\nbatch = 8\n[generator]\nlatent = 4\nhidden = 0\nvae_steps = 20\ndiffusion_steps = 20\n\
             width = 16\nblocks = 1\n[[tasks]]\nname = \"opinion\"\nfrom = \"phrases:opinion\"\ndescriptions = [\"Praise or not\"]\n\
             [[tasks]]\nname = \"own\"\nfrom = \"tsv:{}\"\nclasses = {classes}\ndescriptions = [\"Yes or no\", \"Consent\"]\n",
            tsv.display()
        )
    };
    let (config, out) = (at("own.toml"), at("own.tar"));
    let learn = [
        "language",
        "adapters",
        "--encoder",
        encoder.to_str().unwrap(),
        "--config",
        text(&config),
        "--out",
        text(&out),
    ];
    std::fs::write(&config, settings("[\"no\"]")).unwrap();
    assert!(refused(&mut weightsmith(learn)).contains("two `classes` or more"));
    std::fs::write(&config, settings("[\"no\", \"maybe\"]")).unwrap();
    assert!(refused(&mut weightsmith(learn)).contains("its label is \"yes\"; known are no, maybe"));
    assert!(!out.exists());
    std::fs::write(&config, settings("[\"no\", \"yes\"]")).unwrap();
    let said = succeed(&learn);
    assert!(said.contains("opinion") && said.contains("own.tar sha256:"), "{said}");

    let made = at("made");
    let generate = ["generate", "--bundle", text(&out), "--out", text(&made), "--count", "2"];
    let said = succeed(&[&generate[..], &["--text", "Yes or no"]].concat());
    assert!(said.contains("the nearest task of the zoo is own, at 0.00"), "{said}");
    let peft: Value =
        serde_json::from_slice(&std::fs::read(made.join("sample-1/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&peft["r"], &peft["modules_to_save"]), (&json!(1), &json!(["classifier"])));
    assert!(made.join("sample-1/adapter_model.safetensors").exists());
    assert!(refused(&mut weightsmith([&generate[..], &["--text", " "]].concat())).contains("empty"));
    assert!(refused(&mut weightsmith([&generate[..], &["--data", "digits"]].concat())).contains("--text"));
}
