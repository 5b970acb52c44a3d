//! `config.json` of the families that are run here.

use serde_json::Value;

use crate::error::{Error, Result};

/// How blocks are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama and Mistral: rotary positions, RMS norms, gated MLP; separate projections.
    Llama,
    /// Phi-3: as Llama, with queries, keys and values in one matrix, gate and up in another.
    Phi3,
    /// GPT-2: learned positions, layer norms, biases, matrices stored as inputs × outputs.
    Gpt2,
}

/// What of a configuration the forward pass needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Family.
    pub family: Family,
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Width.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to variances.
    pub epsilon: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How many positions before it a token sees; none: all.
    pub window: Option<usize>,
    /// Positions at most.
    pub positions: usize,
    /// Whether the output layer is the embedding.
    pub tied: bool,
}

impl Config {
    /// From `config.json`.
    ///
    /// # Errors
    /// A sentence that says which key is missing or which value is not supported, and what is.
    pub fn from_json(config: &Value) -> std::result::Result<Self, String> {
        let kind = config["model_type"].as_str().unwrap_or_default();
        let family = match kind {
            "llama" | "mistral" => Family::Llama,
            "phi3" => Family::Phi3,
            "gpt2" => Family::Gpt2,
            other => return Err(format!("its model_type is {other:?}; llama, mistral, phi3 and gpt2 are run")),
        };
        let size = |key: &str| -> std::result::Result<usize, String> {
            let value = config[key].as_u64().filter(|v| *v > 0).and_then(|v| usize::try_from(v).ok());
            value.ok_or_else(|| format!("its configuration needs {key}, a number above 0"))
        };
        let or = |key: &str, default: usize| if config[key].is_null() { Ok(default) } else { size(key) };
        let number = |key: &str, default: f64| config[key].as_f64().unwrap_or(default);
        let config = if family == Family::Gpt2 {
            let (hidden, heads) = (size("n_embd")?, size("n_head")?);
            Self {
                family,
                vocabulary: size("vocab_size")?,
                hidden,
                intermediate: or("n_inner", 4 * hidden)?,
                layers: size("n_layer")?,
                heads,
                kv_heads: heads,
                head_dim: hidden / heads,
                epsilon: number("layer_norm_epsilon", 1e-5),
                rope_theta: 0.0,
                window: None,
                positions: or("n_positions", 1024)?,
                tied: true,
            }
        } else {
            supported(config)?;
            let (hidden, heads) = (size("hidden_size")?, size("num_attention_heads")?);
            Self {
                family,
                vocabulary: size("vocab_size")?,
                hidden,
                intermediate: size("intermediate_size")?,
                layers: size("num_hidden_layers")?,
                heads,
                kv_heads: or("num_key_value_heads", heads)?,
                head_dim: or("head_dim", hidden / heads)?,
                epsilon: number("rms_norm_eps", 1e-5),
                rope_theta: number("rope_theta", 10_000.0),
                window: config["sliding_window"].as_u64().and_then(|w| usize::try_from(w).ok()),
                positions: or("max_position_embeddings", 2048)?,
                tied: config["tie_word_embeddings"].as_bool().unwrap_or(false),
            }
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.head_dim == 0 || self.head_dim % 2 == 1 || !self.heads.is_multiple_of(self.kv_heads) {
            let (heads, kv, width) = (self.heads, self.kv_heads, self.hidden);
            return Err(format!("{heads} heads, {kv} of keys and values, do not fit a width of {width}"));
        }
        Ok(())
    }

    /// As `config.json` for other programs.
    pub fn to_json(&self) -> Value {
        match self.family {
            Family::Gpt2 => serde_json::json!({
                "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": self.vocabulary,
                "n_embd": self.hidden, "n_inner": self.intermediate, "n_layer": self.layers, "n_head": self.heads,
                "n_positions": self.positions, "layer_norm_epsilon": self.epsilon,
                "activation_function": "gelu_new", "tie_word_embeddings": true, "torch_dtype": "float32",
            }),
            Family::Llama | Family::Phi3 => {
                let (kind, class) = match self.family {
                    Family::Phi3 => ("phi3", "Phi3ForCausalLM"),
                    _ => ("llama", "LlamaForCausalLM"),
                };
                serde_json::json!({
                    "model_type": kind, "architectures": [class], "vocab_size": self.vocabulary,
                    "hidden_size": self.hidden, "intermediate_size": self.intermediate,
                    "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                    "num_key_value_heads": self.kv_heads, "rms_norm_eps": self.epsilon,
                    "rope_theta": self.rope_theta, "max_position_embeddings": self.positions, "hidden_act": "silu",
                    "tie_word_embeddings": self.tied, "torch_dtype": "float32",
                })
            }
        }
    }

    /// The tensors of the model: names and shapes, as Hugging Face writes them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, m, q, kv) = (self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all: Vec<(String, Vec<usize>)> = Vec::new();
        let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
        if self.family == Family::Gpt2 {
            add("transformer.wte.weight".into(), &[self.vocabulary, h]);
            add("transformer.wpe.weight".into(), &[self.positions, h]);
            for block in 0..self.layers {
                let name = |layer: &str, part: &str| format!("transformer.h.{block}.{layer}.{part}");
                for norm in ["ln_1", "ln_2"] {
                    add(name(norm, "weight"), &[h]);
                    add(name(norm, "bias"), &[h]);
                }
                let matrices =
                    [("attn.c_attn", h, 3 * h), ("attn.c_proj", h, h), ("mlp.c_fc", h, m), ("mlp.c_proj", m, h)];
                for (layer, inputs, outputs) in matrices {
                    add(name(layer, "weight"), &[inputs, outputs]);
                    add(name(layer, "bias"), &[outputs]);
                }
            }
            add("transformer.ln_f.weight".into(), &[h]);
            add("transformer.ln_f.bias".into(), &[h]);
            return all;
        }
        add("model.embed_tokens.weight".into(), &[self.vocabulary, h]);
        for block in 0..self.layers {
            let name = |layer: &str| format!("model.layers.{block}.{layer}.weight");
            add(name("input_layernorm"), &[h]);
            if self.family == Family::Phi3 {
                add(name("self_attn.qkv_proj"), &[q + 2 * kv, h]);
                add(name("self_attn.o_proj"), &[h, q]);
                add(name("post_attention_layernorm"), &[h]);
                add(name("mlp.gate_up_proj"), &[2 * m, h]);
            } else {
                add(name("self_attn.q_proj"), &[q, h]);
                add(name("self_attn.k_proj"), &[kv, h]);
                add(name("self_attn.v_proj"), &[kv, h]);
                add(name("self_attn.o_proj"), &[h, q]);
                add(name("post_attention_layernorm"), &[h]);
                add(name("mlp.gate_proj"), &[m, h]);
                add(name("mlp.up_proj"), &[m, h]);
            }
            add(name("mlp.down_proj"), &[h, m]);
        }
        add("model.norm.weight".into(), &[h]);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocabulary, h]);
        }
        all
    }

    /// An error of a model's directory.
    pub fn of(model: &crate::model::Model) -> Result<Self> {
        Self::from_json(model.config()).map_err(|reason| Error::model(model.dir(), reason))
    }
}

/// Refuses what a Llama's configuration may ask for and the forward pass does not do.
fn supported(config: &Value) -> std::result::Result<(), String> {
    let scaling = &config["rope_scaling"];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    if !scaling.is_null() && kind != Some("default") {
        return Err(format!("its rope_scaling is {scaling}; models without it are run"));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if config[key] == Value::Bool(true) {
            return Err(format!("it has {key}; models without it are run"));
        }
    }
    let act = config["hidden_act"].as_str().unwrap_or("silu");
    if act != "silu" {
        return Err(format!("its hidden_act is {act}; silu is run"));
    }
    let partial = config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
    if partial < 1.0 {
        return Err(format!("its partial_rotary_factor is {partial}; 1 is run"));
    }
    Ok(())
}
