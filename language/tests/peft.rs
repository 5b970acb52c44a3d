//! An adapter as Python's `peft` loads it: the same logits there.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::process::Command;

use datasets::glue::Example;
use language::lora::{Adapted, FitConfig, LoraConfig};
use language::text::TextEncoder;
use training::progress::Progress;

/// Loads base and adapter, and prints the logits of each text.
const SCRIPT: &str = r#"
import json, sys
import torch
from peft import PeftModel
from transformers import AutoTokenizer, BertForSequenceClassification
base, adapter, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(base)
model = BertForSequenceClassification.from_pretrained(base, num_labels=2)
model = PeftModel.from_pretrained(model, adapter).eval()
batch = tokenizer([t[0] for t in texts], [t[1] for t in texts], padding=True, truncation=True, max_length=32, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**batch).logits.tolist()))
"#;

#[test]
#[ignore = "needs a Python with torch, transformers and peft, and a text encoder: `make test-peft`"]
fn peft_gives_the_same_logits() {
    let of = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: use `make test-peft`"));
    let (python, base) = (of("WEIGHTSMITH_PEFT_PYTHON"), of("WEIGHTSMITH_TEXT_ENCODER"));
    let encoder = TextEncoder::open(Path::new(&base)).unwrap();
    let adapted = Adapted::new(encoder.bert(), &base, &LoraConfig::default(), 2).unwrap();
    let pairs = [
        ("The film was a joy.", "It was good.", 1),
        ("A dull plot, badly told.", "Nobody liked it.", 0),
        ("Wonderful actors!", "See it.", 1),
        ("I want my money back.", "Never again.", 0),
    ];
    let example = |&(first, second, label): &(&str, &str, u32)| Example {
        first: first.into(),
        second: Some(second.into()),
        label,
    };
    let examples: Vec<Example> = pairs.iter().map(example).collect();
    let data = adapted.encode(&encoder, &examples, 32).unwrap();
    let settings = FitConfig { epochs: 8, batch: 4, lr: 1e-2, keep: 1 };
    let theta = adapted.fit(&data, &settings, (1, 2), &Progress::silent()).unwrap().remove(0).theta;
    let folder = tempfile::tempdir().unwrap();
    let adapter = folder.path().join("adapter");
    adapted.save(&theta, &adapter).unwrap();
    let texts: Vec<[&str; 2]> = pairs.iter().map(|p| [p.0, p.1]).collect();
    let output = Command::new(python)
        .args(["-c", SCRIPT, &base, &adapter.display().to_string(), &serde_json::to_string(&texts).unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let theirs: Vec<Vec<f32>> = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let own = adapted.scores(&theta, &data).unwrap();
    let bare = adapted.scores(&adapted.start(1).unwrap(), &data).unwrap();
    for ((own, theirs), bare) in own.iter().zip(&theirs).zip(&bare) {
        assert!(own.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-3), "{own:?} here, {theirs:?} there");
        assert!(own.iter().zip(bare).any(|(a, b)| (a - b).abs() > 0.1), "the adapter does nothing: {own:?}");
    }
}
