use std::collections::BTreeMap;

use candle_core::DType;
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, mistral, phi3};
use serde_json::{Value, json};
use training::progress::Progress;
use training::random;

use super::*;
use train::{TrainConfig, small};

fn settings(kind: &str, tied: bool) -> Value {
    json!({
        "model_type": kind, "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": tied, "hidden_act": "silu",
    })
}

fn random_tensors(config: &Config) -> BTreeMap<String, Tensor> {
    let tensor = |name: &str, shape: &[usize]| {
        let std = if shape.len() == 1 { 1.0 } else { 0.3 };
        random::normal(shape, &Device::Cpu, &mut random::stream(3, name)).unwrap().affine(std, 0.0).unwrap()
    };
    config.tensors().into_iter().map(|(name, shape)| (name.clone(), tensor(&name, &shape))).collect()
}

/// Logits of the last of some tokens, and the same from candle-transformers.
fn both(kind: &str, tied: bool) -> (Vec<f32>, Vec<f32>) {
    let json = settings(kind, tied);
    let config = Config::from_json(&json).unwrap();
    let decoder = Decoder::new(config.clone(), random_tensors(&config));
    let tokens = Tensor::new(&[[3u32, 14, 15, 9, 26, 5, 35, 49, 0]], &Device::Cpu).unwrap();
    let own = decoder.forward(&tokens).unwrap().narrow(1, 8, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let map: HashMap<String, Tensor> = decoder.tensors().clone().into_iter().collect();
    let vb = VarBuilder::from_tensors(map, DType::F32, &Device::Cpu);
    let theirs = match kind {
        "llama" => {
            let config: llama::LlamaConfig = serde_json::from_value(json).unwrap();
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
            llama::Llama::load(vb, &config).unwrap().forward(&tokens, 0, &mut cache).unwrap()
        }
        "mistral" => {
            let config: mistral::Config = serde_json::from_value(json).unwrap();
            mistral::Model::new(&config, vb).unwrap().forward(&tokens, 0).unwrap()
        }
        _ => {
            let config: phi3::Config = serde_json::from_value(json).unwrap();
            phi3::Model::new(&config, vb).unwrap().forward(&tokens, 0).unwrap()
        }
    };
    (own, theirs.flatten_all().unwrap().to_vec1().unwrap())
}

#[test]
fn logits_are_those_of_candle_transformers() {
    for (kind, tied) in [("llama", false), ("llama", true), ("mistral", false), ("phi3", false)] {
        let (own, theirs) = both(kind, tied);
        assert_eq!(own.len(), 50);
        let apart = own.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-3, "{kind} {tied}: {apart} apart");
    }
}

#[test]
fn gpt2_is_that_of_numpy() {
    let json = json!({"model_type": "gpt2", "vocab_size": 7, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 6});
    let config = Config::from_json(&json).unwrap();
    let tensor = |(index, (name, shape)): (usize, (String, Vec<usize>))| {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| ((index + 1) as f32 * 0.7 + i as f32 * 1.3).sin() * 0.5).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    let decoder = Decoder::new(config.clone(), config.tensors().into_iter().enumerate().map(tensor).collect());
    let logits = decoder.forward(&Tensor::new(&[[1u32, 5, 2]], &Device::Cpu).unwrap()).unwrap();
    let last: Vec<f32> = logits.narrow(1, 2, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    for (own, numpy) in last.iter().zip(NUMPY) {
        assert!((own - numpy).abs() < 1e-4, "{last:?} and {NUMPY:?}");
    }
}

/// Of the model above, computed with numpy in float64.
const NUMPY: [f32; 7] = [-0.594866, 1.251827, -0.809644, -0.343431, 1.194963, -0.997281, -0.076041];

#[test]
fn positions_and_windows_are_kept() {
    let mut json = settings("mistral", false);
    json["sliding_window"] = json!(3);
    json["num_hidden_layers"] = json!(1);
    let config = Config::from_json(&json).unwrap();
    let decoder = Decoder::new(config.clone(), random_tensors(&config));
    let logits = |tokens: &[u32]| {
        let tokens = Tensor::from_vec(tokens.to_vec(), (1, tokens.len()), &Device::Cpu).unwrap();
        decoder.forward(&tokens).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap()
    };
    let (one, other) = (logits(&[1, 2, 3, 4, 5]), logits(&[9, 2, 3, 4, 6]));
    assert_eq!(one[3], other[3], "the first is outside its window, the last behind it");
    assert_ne!(one[2], other[2]);
    let long = Tensor::zeros((1, 65), DType::U32, &Device::Cpu).unwrap();
    assert!(decoder.forward(&long).unwrap_err().to_string().contains("65 tokens"));
}

#[test]
fn what_is_not_run_is_said() {
    let said = |change: &dyn Fn(&mut Value)| {
        let mut json = settings("llama", false);
        change(&mut json);
        Config::from_json(&json).unwrap_err()
    };
    for (text, change) in [
        ("llama, mistral, phi3 and gpt2", &(|c: &mut Value| c["model_type"] = json!("mamba")) as &dyn Fn(&mut Value)),
        ("needs hidden_size", &|c| c["hidden_size"] = json!(0)),
        ("rope_scaling", &|c| c["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0})),
        ("attention_bias", &|c| c["attention_bias"] = json!(true)),
        ("3 of keys", &|c| c["num_key_value_heads"] = json!(3)),
    ] {
        assert!(said(change).contains(text), "{}", said(change));
    }
}

fn texts() -> Vec<String> {
    (0..400)
        .map(|i| format!("the {} cat sees the {} dog .", ["red", "old", "big"][i % 3], ["sad", "new"][i % 2]))
        .collect()
}

#[test]
fn a_small_model_learns_is_kept_and_scores() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokens::learn(&texts(), 280).unwrap();
    let ids = tokens::encode(&tokenizer, &texts()).unwrap();
    let (train_ids, test_ids) = ids.split_at(ids.len() / 2);
    for family in [Family::Llama, Family::Gpt2] {
        let config = small(family, tokenizer.get_vocab_size(true), 32, 1, 2, 32).unwrap();
        let settings = TrainConfig { steps: 60, batch: 8, length: 16, lr: 1e-2, seed: 1 };
        let decoder = train::train(&config, train_ids, &settings, &Progress::silent()).unwrap();
        let loss = decoder.loss(test_ids, 16).unwrap();
        let unigram = tokens::unigram_perplexity(train_ids, test_ids, config.vocabulary);
        assert!(loss.exp() < 0.5 * unigram, "{} against {unigram}", loss.exp());
        let dir = folder.path().join(format!("{family:?}"));
        decoder.save(&dir, &tokenizer).unwrap();
        let model = Model::open(&dir).unwrap();
        let again = Decoder::load(&model).unwrap();
        assert_eq!(again.config(), decoder.config());
        assert_eq!(again.loss(test_ids, 16).unwrap(), loss);
        assert!(tokens::open(&dir, config.vocabulary).is_ok());
        let text = tokens::open(&dir, 100).unwrap_err().to_string();
        assert!(text.contains("does not fit") && text.contains("100 tokens"), "{text}");
        assert!(decoder.save(&dir, &tokenizer).unwrap_err().to_string().contains("exists"));
        let cut = |text: &str| tokens::encode(&tokenizer, &[text.to_owned()]).unwrap();
        let context = cut("the red cat sees the");
        let context = &context[..context.len() - 1];
        let of = |text: &str| decoder.log_likelihood(context, &cut(text)).unwrap();
        assert!(of(" sad dog .") > of(" dog cat ."), "{} {}", of(" sad dog ."), of(" dog cat ."));
        assert!(decoder.log_likelihood(&[], &[1]).is_err());
    }
}

#[test]
fn a_damaged_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokens::learn(&texts(), 280).unwrap();
    let config = small(Family::Llama, 280, 16, 1, 2, 16).unwrap();
    let mut decoder = Decoder::new(config.clone(), random_tensors(&config));
    decoder.set("model.norm.weight", Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap());
    decoder.save(&folder.path().join("a"), &tokenizer).unwrap();
    let said = Decoder::load(&Model::open(&folder.path().join("a")).unwrap()).unwrap_err().to_string();
    assert!(said.contains("model.norm.weight is [8]; its configuration makes it [16]"), "{said}");
    assert!(small(Family::Llama, 280, 18, 1, 4, 16).is_err());
    assert!(tokens::learn(&[], 300).is_err() && tokens::learn(&texts(), 100).is_err());
    assert!(train::train(&config, &[1, 2, 3], &TrainConfig::default(), &Progress::silent()).is_err());
}
