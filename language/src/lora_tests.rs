use candle_core::DType;
use candle_nn::VarBuilder;
use candle_transformers::models::bert;
use serde_json::{Value, json};
use tokenizers::Tokenizer;
use weights::manifest::Pooling;

use super::*;
use crate::bert::BertConfig;

fn settings() -> Value {
    json!({
        "model_type": "bert", "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "max_position_embeddings": 32,
        "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    })
}

fn values(config: &BertConfig) -> BTreeMap<String, Tensor> {
    let tensor = |name: &str, shape: &[usize]| {
        let std = if shape.len() == 1 { 0.5 } else { 0.3 };
        let noise = random::normal(shape, &Device::Cpu, &mut random::stream(3, name)).unwrap();
        noise.affine(std, if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 }).unwrap()
    };
    let all = config.tensors().into_iter().chain(config.pooler());
    all.map(|(name, shape)| (name.clone(), tensor(&name, &shape))).collect()
}

/// A tokenizer of whole words in BERT's form.
fn tokenizer() -> Tokenizer {
    let words = "[PAD] [UNK] [CLS] [SEP] good bad film the a was not very plot and actor seen yes no well poor";
    let vocabulary: serde_json::Map<String, Value> =
        words.split(' ').enumerate().map(|(i, word)| (word.to_owned(), json!(i))).collect();
    let special = |id: usize, name: &str| json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let piece = |id: &str, kind: usize| json!({"SpecialToken": {"id": id, "type_id": kind}});
    let sequence = |id: &str, kind: usize| json!({"Sequence": {"id": id, "type_id": kind}});
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[CLS]", 0), sequence("A", 0), piece("[SEP]", 0)],
            "pair": [piece("[CLS]", 0), sequence("A", 0), piece("[SEP]", 0), sequence("B", 1), piece("[SEP]", 1)],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    json.to_string().parse().unwrap()
}

/// An encoder's directory in `folder`.
fn encoder(folder: &Path) -> TextEncoder {
    let config = BertConfig::from_json(&settings()).unwrap();
    std::fs::write(folder.join("config.json"), settings().to_string()).unwrap();
    tokenizer().save(folder.join("tokenizer.json"), false).unwrap();
    let map: std::collections::HashMap<String, Tensor> = values(&config).into_iter().collect();
    candle_core::safetensors::save(&map, folder.join("model.safetensors")).unwrap();
    TextEncoder::open(folder).unwrap()
}

fn examples(n: usize, seed: u64) -> Vec<Example> {
    use rand::Rng;
    let mut rng = random::stream(seed, "examples");
    let example = |i: usize| {
        let label = (i % 2) as u32;
        let word = [["bad", "poor"], ["good", "well"]][i % 2][rng.random_range(0..2)];
        let (before, behind) =
            (["the film was", "a very"][rng.random_range(0..2)], ["plot", "actor and film"][rng.random_range(0..2)]);
        let second = i.is_multiple_of(3).then(|| "seen".to_owned());
        Example { first: format!("{before} {word} {behind}"), second, label }
    };
    (0..n).map(example).collect()
}

#[test]
fn hidden_states_are_those_of_candle_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder(folder.path());
    let texts = [("the film was good", None), ("bad", Some("not seen very well")), ("a plot", Some("no"))];
    let batch = batch(encoder.tokenizer(), &texts, 9).unwrap();
    assert_eq!(batch.tokens.to_vec2::<u32>().unwrap()[1], [2, 5, 3, 10, 15, 11, 18, 3]);
    assert_eq!(batch.types.to_vec2::<u32>().unwrap()[1], [0, 0, 0, 1, 1, 1, 1, 1]);
    let bert = encoder.bert();
    let own = bert.blocks(&bert.embed(&batch).unwrap(), &batch, 0..3, &|_, _| Ok(None)).unwrap();
    let config: bert::Config = serde_json::from_value(settings()).unwrap();
    let map = values(bert.config()).into_iter().collect();
    let theirs = bert::BertModel::load(VarBuilder::from_tensors(map, DType::F32, &Device::Cpu), &config).unwrap();
    let theirs = theirs.forward(&batch.tokens, &batch.types, Some(&batch.mask)).unwrap();
    // Where texts are filled up nothing is asked of either.
    let mask = batch.mask.unsqueeze(2).unwrap();
    let apart = (own - theirs).unwrap().broadcast_mul(&mask).unwrap().abs().unwrap().max_all().unwrap();
    assert!(apart.to_scalar::<f32>().unwrap() < 1e-3, "{apart:?}");
}

#[test]
fn embeddings_are_of_unit_length_and_do_not_depend_on_their_company() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Vec::new();
    for pooling in [Pooling::Mean, Pooling::First, Pooling::Last] {
        let encoder = encoder(folder.path()).with_pooling(pooling);
        let all = encoder.embed(&["the film was good", "bad", "a very well seen plot"]).unwrap();
        let alone = encoder.embed(&["bad"]).unwrap();
        assert_eq!((all.len(), all[0].len()), (3, encoder.dim()));
        let norm = all[0].iter().map(|v| v * v).sum::<f32>();
        assert!((norm - 1.0).abs() < 1e-5);
        assert!(all[1].iter().zip(&alone[0]).all(|(a, b)| (a - b).abs() < 1e-5));
        first.push(alone);
    }
    assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2]);
}

#[test]
fn an_adapter_learns_and_is_kept_as_peft_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = encoder(folder.path());
    let config = LoraConfig { rank: 2, alpha: 4, blocks: 2, ..LoraConfig::default() };
    let adapted = Adapted::new(encoder.bert(), "base", &config, 2).unwrap();
    assert_eq!(adapted.layout().params.len(), 2 * 2 * 2 + 2);
    let (train, test) = (examples(240, 1), examples(64, 2));
    let (train, test) = (adapted.encode(&encoder, &train, 16).unwrap(), adapted.encode(&encoder, &test, 16).unwrap());
    let settings = FitConfig { epochs: 20, batch: 16, lr: 2e-2, keep: 2 };
    let kept = adapted.fit(&train, &settings, (1, 2), &Progress::silent()).unwrap();
    assert_eq!(kept.iter().map(|k| k.epoch).collect::<Vec<_>>(), [19, 20]);
    let theta = &kept[1].theta;
    let of = |theta: &[f32]| accuracy(&adapted.predict(theta, &test).unwrap(), test.labels());
    assert!(of(theta) > 0.9, "{}", of(theta));
    assert_eq!(adapted.fit(&train, &settings, (1, 2), &Progress::silent()).unwrap()[1].theta, *theta);
    // Without the adapters the classifier sees another encoder.
    let mut bare = theta.clone();
    for param in adapted.layout().params.iter().filter(|p| p.name.contains("lora_B")) {
        bare[param.range()].fill(0.0);
    }
    assert_ne!(adapted.predict(&bare, &test).unwrap(), adapted.predict(theta, &test).unwrap());
    let dir = folder.path().join("adapter");
    adapted.save(theta, &dir).unwrap();
    assert_eq!(adapted.open(&dir).unwrap(), *theta);
    let written: Value = serde_json::from_slice(&std::fs::read(dir.join(CONFIG)).unwrap()).unwrap();
    assert_eq!((&written["r"], &written["layers_to_transform"]), (&json!(2), &json!([1, 2])));
    let bytes = std::fs::read(dir.join(FILE)).unwrap();
    let (shape, _) = tensors::named_from_safetensors(
        &bytes,
        "base_model.model.bert.encoder.layer.1.attention.self.query.lora_A.weight",
    )
    .unwrap();
    assert_eq!(shape, [2, 32]);
    let wide = LoraConfig { rank: 3, ..config.clone() };
    assert!(Adapted::new(encoder.bert(), "base", &wide, 2).unwrap().open(&dir).is_err());
    assert!(adapted.predict(&theta[1..], &test).is_err());
    for (odd, wanted) in [
        (LoraConfig { targets: vec!["q_proj".into()], ..config.clone() }, "there are dense, key, query, value"),
        (LoraConfig { rank: 0, ..config.clone() }, "rank"),
        (LoraConfig { blocks: 4, ..config.clone() }, "at most 3 blocks"),
    ] {
        let error = Adapted::new(encoder.bert(), "base", &odd, 2).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn correlation_is_that_of_matthews() {
    let labels = [1, 1, 1, 0, 0, 1];
    assert_eq!(matthews(&labels, &labels), 1.0);
    assert_eq!(matthews(&[1; 6], &labels), 0.0);
    // sklearn.metrics.matthews_corrcoef([1,1,1,0,0,1], [1,0,1,0,1,1])
    assert!((matthews(&[1, 0, 1, 0, 1, 1], &labels) - 0.25).abs() < 1e-9);
    assert_eq!(accuracy(&[1, 0, 1, 0, 1, 1], &labels), 4.0 / 6.0);
}
