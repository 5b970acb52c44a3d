use std::collections::HashMap;

use safetensors::tensor::TensorView;

use super::*;

/// Tensors of a small model, with values that F16 and BF16 hold exactly.
pub(crate) fn tensors() -> Vec<(String, Dtype, Vec<f32>)> {
    let block = |block: usize, layer: &str| format!("model.layers.{block}.{layer}.weight");
    let values = |n: usize, from: f32| (0..n).map(|i| from + i as f32 * 0.5).collect::<Vec<_>>();
    vec![
        ("model.embed_tokens.weight".into(), Dtype::F32, values(80, -3.0)),
        (block(0, "self_attn.q_proj"), Dtype::BF16, values(32, -4.0)),
        (block(0, "input_layernorm"), Dtype::F32, values(8, 1.0)),
        (block(1, "self_attn.q_proj"), Dtype::BF16, values(32, 2.0)),
        (block(1, "mlp.up_proj"), Dtype::F16, values(40, -8.0)),
    ]
}

fn shape(name: &str, n: usize) -> Vec<usize> {
    if name.contains("norm") { vec![n] } else { vec![n / 8, 8] }
}

pub(crate) fn write(path: &Path, tensors: &[(String, Dtype, Vec<f32>)]) {
    let bytes: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, dtype, values)| {
            let mut out = Vec::new();
            from_f32(*dtype, values, &mut out).unwrap();
            let of = match dtype {
                Dtype::F16 => safetensors::Dtype::F16,
                Dtype::BF16 => safetensors::Dtype::BF16,
                _ => safetensors::Dtype::F32,
            };
            (name.clone(), of, shape(name, values.len()), out)
        })
        .collect();
    let views: HashMap<&str, TensorView<'_>> = bytes
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A model of two shards in `folder/model`.
pub(crate) fn sharded(folder: &Path) -> Model {
    let dir = folder.join("model");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("config.json"), r#"{"model_type": "llama", "tie_word_embeddings": true}"#).unwrap();
    std::fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    let all = tensors();
    let shards = [("model-00001-of-00002.safetensors", &all[..2]), ("model-00002-of-00002.safetensors", &all[2..])];
    let mut map = serde_json::Map::new();
    for (name, tensors) in shards {
        write(&dir.join(name), tensors);
        map.extend(tensors.iter().map(|(tensor, ..)| (tensor.clone(), name.into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(dir.join(INDEX), index.to_string()).unwrap();
    Model::open(&dir).unwrap()
}

#[test]
fn values_come_from_all_shards_and_types() {
    let folder = tempfile::tempdir().unwrap();
    let model = sharded(folder.path());
    for (name, dtype, values) in tensors() {
        assert_eq!(model.entry(&name).unwrap().spec.dtype, dtype);
        assert_eq!(model.tensor(&name).unwrap(), values, "{name}");
        let mut part = vec![0.0; 5];
        model.read(&name, 2..7, &mut part).unwrap();
        assert_eq!(part, values[2..7]);
    }
    let matrices = model.matrices();
    let names: Vec<(&str, usize)> = matrices.iter().map(|m| (m.group.as_str(), m.block)).collect();
    let (q, up) = ("model.layers.*.self_attn.q_proj.weight", "model.layers.*.mlp.up_proj.weight");
    assert_eq!(names, [(q, 0), (up, 1), (q, 1)]);
    assert!(model.read("model.embed_tokens.weight", 79..81, &mut [0.0; 2]).is_err());
    let tied = model.entry("lm_head.weight").unwrap_err().to_string();
    assert!(tied.contains("tied"), "{tied}");
}

/// What is wrong with a directory after `change`.
fn refused(change: impl Fn(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let dir = sharded(folder.path()).dir().to_owned();
    change(&dir);
    Model::open(&dir).unwrap_err().to_string()
}

#[test]
fn damage_is_named() {
    let second = "model-00002-of-00002.safetensors";
    let said = refused(|dir| std::fs::remove_file(dir.join(second)).unwrap());
    assert!(said.contains(second) && said.contains("No such file"), "{said}");
    let said = refused(|dir| {
        let bytes = std::fs::read(dir.join(second)).unwrap();
        std::fs::write(dir.join(second), &bytes[..bytes.len() - 3]).unwrap();
    });
    assert!(said.contains(second) && said.contains("cut off"), "{said}");
    let said = refused(|dir| std::fs::remove_file(dir.join("config.json")).unwrap());
    assert!(said.contains("config.json"), "{said}");
    let said = refused(|dir| std::fs::write(dir.join(INDEX), r#"{"weight_map": {"a": "../x"}}"#).unwrap());
    assert!(said.contains("../x is not a file's name"), "{said}");
    let said = refused(|dir| std::fs::write(dir.join(INDEX), r#"{"weight_map": 3}"#).unwrap());
    assert!(said.contains("weight_map must"), "{said}");
    let said = refused(|dir| {
        let text = std::fs::read_to_string(dir.join(INDEX)).unwrap().replace("layers.0.self", "layers.7.self");
        std::fs::write(dir.join(INDEX), text).unwrap();
    });
    assert!(said.contains("layers.7.self") && said.contains("is not"), "{said}");
    let said = refused(|dir| {
        std::fs::write(dir.join("config.json"), r#"{"quantization_config": {"quant_method": "gptq"}}"#).unwrap();
    });
    assert!(said.contains("quantised (gptq)") && said.contains("BF16"), "{said}");
}

#[test]
fn integers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let view = TensorView::new(safetensors::Dtype::I8, vec![2, 2], &[1, 2, 3, 4]).unwrap();
    let bytes = safetensors::serialize([("layers.0.q.weight", view)], None).unwrap();
    std::fs::write(folder.path().join(SINGLE), bytes).unwrap();
    let said = Model::open(folder.path()).unwrap_err().to_string();
    assert!(said.contains("layers.0.q.weight is I8"), "{said}");
}

#[test]
fn one_file_is_a_model_too() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let said = Model::open(folder.path()).unwrap_err().to_string();
    assert!(said.contains(SINGLE) && said.contains(INDEX), "{said}");
    write(&folder.path().join(SINGLE), &tensors());
    let model = Model::open(folder.path()).unwrap();
    assert_eq!(model.shards().len(), 1);
    assert_eq!(model.entries().len(), tensors().len());
}
