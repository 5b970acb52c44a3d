//! The forward pass of a language model: logits of every position, differentiable with respect to every weight.
//!
//! candle-transformers gives logits of the last position only, through operations without gradients; the tests compare
//! with it.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor};

use super::config::{Config, Family};
use crate::nn::{self, linear, product};

type Result<T> = candle_core::Result<T>;

/// A model that can be run: a configuration and its tensors by name, f32.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: Config,
    tensors: BTreeMap<String, Tensor>,
}

impl Decoder {
    /// A model of `config` with the tensors that [`Config::tensors`] names.
    pub fn new(config: Config, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { config, tensors }
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its tensors.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Puts another tensor in the place of `name`.
    pub fn set(&mut self, name: &str, value: Tensor) {
        self.tensors.insert(name.to_owned(), value);
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("the model has no tensor {name}")))
    }

    /// Logits `[b, t, vocabulary]` of tokens `[b, t]` (u32).
    ///
    /// # Errors
    /// When a token or position is outside what there is.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (b, t) = tokens.dims2()?;
        if t > self.config.positions {
            candle_core::bail!("{t} tokens are given, and the model has {} positions", self.config.positions);
        }
        match self.config.family {
            Family::Gpt2 => self.gpt2(tokens, b, t),
            Family::Llama | Family::Phi3 => self.llama(tokens, b, t),
        }
    }

    fn llama(&self, tokens: &Tensor, b: usize, t: usize) -> Result<Tensor> {
        let mut x = self.embedding("model.embed_tokens.weight", tokens, b, t)?;
        let (rope, mask) = (self.rope(t)?, self.mask(t)?);
        for block in 0..self.config.layers {
            let name = |layer: &str| format!("model.layers.{block}.{layer}.weight");
            let y = self.rms_norm(&x, &name("input_layernorm"))?;
            let [q, k, v] = match self.config.family {
                Family::Phi3 => self.split_qkv(&linear(&y, self.get(&name("self_attn.qkv_proj"))?)?)?,
                _ => {
                    let part = |layer: &str| linear(&y, self.get(&name(layer))?);
                    [part("self_attn.q_proj")?, part("self_attn.k_proj")?, part("self_attn.v_proj")?]
                }
            };
            let y = self.attention([q, k, v], Some(&rope), &mask)?;
            x = (x + linear(&y, self.get(&name("self_attn.o_proj"))?)?)?;
            let y = self.rms_norm(&x, &name("post_attention_layernorm"))?;
            let (gate, up) = match self.config.family {
                Family::Phi3 => {
                    let both = linear(&y, self.get(&name("mlp.gate_up_proj"))?)?;
                    let m = self.config.intermediate;
                    (both.narrow(D::Minus1, 0, m)?, both.narrow(D::Minus1, m, m)?)
                }
                _ => (linear(&y, self.get(&name("mlp.gate_proj"))?)?, linear(&y, self.get(&name("mlp.up_proj"))?)?),
            };
            x = (x + linear(&(gate.silu()? * up)?, self.get(&name("mlp.down_proj"))?)?)?;
        }
        let x = self.rms_norm(&x, "model.norm.weight")?;
        linear(&x, self.get(if self.config.tied { "model.embed_tokens.weight" } else { "lm_head.weight" })?)
    }

    fn gpt2(&self, tokens: &Tensor, b: usize, t: usize) -> Result<Tensor> {
        let positions = self.get("transformer.wpe.weight")?.narrow(0, 0, t)?;
        let mut x = self.embedding("transformer.wte.weight", tokens, b, t)?.broadcast_add(&positions)?;
        let mask = self.mask(t)?;
        for block in 0..self.config.layers {
            let name = |layer: &str| format!("transformer.h.{block}.{layer}");
            let y = self.layer_norm(&x, &name("ln_1"))?;
            let qkv = self.split_qkv(&self.conv1d(&y, &name("attn.c_attn"))?)?;
            let y = self.attention(qkv, None, &mask)?;
            x = (x + self.conv1d(&y, &name("attn.c_proj"))?)?;
            let y = self.conv1d(&self.layer_norm(&x, &name("ln_2"))?, &name("mlp.c_fc"))?.gelu()?;
            x = (x + self.conv1d(&y, &name("mlp.c_proj"))?)?;
        }
        linear(&self.layer_norm(&x, "transformer.ln_f")?, self.get("transformer.wte.weight")?)
    }

    fn embedding(&self, name: &str, tokens: &Tensor, b: usize, t: usize) -> Result<Tensor> {
        self.get(name)?.index_select(&tokens.flatten_all()?, 0)?.reshape((b, t, self.config.hidden))
    }

    /// Queries, keys and values from one matrix' outputs.
    fn split_qkv(&self, all: &Tensor) -> Result<[Tensor; 3]> {
        let (q, kv) = (self.config.heads * self.config.head_dim, self.config.kv_heads * self.config.head_dim);
        let part = |from: usize, len: usize| all.narrow(D::Minus1, from, len);
        Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?])
    }

    /// `[b, t, heads × head_dim]` from queries, keys and values.
    fn attention(&self, qkv: [Tensor; 3], rope: Option<&(Tensor, Tensor)>, mask: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let [q, k, v] = qkv;
        let (mut q, mut k, v) = (nn::heads(&q, c.heads)?, nn::heads(&k, c.kv_heads)?, nn::heads(&v, c.kv_heads)?);
        if let Some(rope) = rope {
            (q, k) = (rotated(&q, rope)?, rotated(&k, rope)?);
        }
        let (k, v) = (repeated(&k, c.heads / c.kv_heads)?, repeated(&v, c.heads / c.kv_heads)?);
        nn::attention(&q, &k, &v, mask)
    }

    fn rms_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        nn::rms_norm(x, self.get(name)?, self.config.epsilon)
    }

    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = (self.get(&format!("{name}.weight"))?, self.get(&format!("{name}.bias"))?);
        nn::layer_norm(x, weight, bias, self.config.epsilon)
    }

    /// A layer whose matrix is stored as inputs × outputs.
    fn conv1d(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let y = product(x, self.get(&format!("{name}.weight"))?)?;
        y.broadcast_add(self.get(&format!("{name}.bias"))?)
    }

    /// Cosines and sines `[t, head_dim / 2]` of the rotary positions.
    fn rope(&self, t: usize) -> Result<(Tensor, Tensor)> {
        let half = self.config.head_dim / 2;
        let angles: Vec<f32> = (0..t)
            .flat_map(|position| {
                (0..half).map(move |i| (position, i)).map(|(position, i)| {
                    (position as f64 * self.config.rope_theta.powf(-(i as f64) / half as f64)) as f32
                })
            })
            .collect();
        let angles = Tensor::from_vec(angles, (t, half), self.device())?;
        Ok((angles.cos()?, angles.sin()?))
    }

    /// `[t, t]`: 0 where a position is seen, −∞ where not.
    fn mask(&self, t: usize) -> Result<Tensor> {
        let window = self.config.window.unwrap_or(usize::MAX);
        let mask: Vec<f32> = (0..t)
            .flat_map(|i| (0..t).map(move |j| if j > i || i - j >= window { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        Tensor::from_vec(mask, (t, t), self.device())
    }

    fn device(&self) -> &Device {
        self.tensors.values().next().map_or(&Device::Cpu, Tensor::device)
    }

    /// Negative log-likelihood of each next token, `[b, t − 1]`, of tokens `[b, t]`.
    ///
    /// # Errors
    /// As [`Decoder::forward`].
    pub fn surprise(&self, tokens: &Tensor) -> Result<Tensor> {
        let (b, t) = tokens.dims2()?;
        let logits = self.forward(&tokens.narrow(1, 0, t - 1)?)?;
        let next = tokens.narrow(1, 1, t - 1)?.contiguous()?.unsqueeze(2)?;
        let log = candle_nn::ops::log_softmax(&logits, D::Minus1)?;
        log.gather(&next, D::Minus1)?.reshape((b, t - 1))?.neg()?.to_dtype(DType::F32)
    }
}

/// The first half of each head turned with the second one.
fn rotated(x: &Tensor, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (a.broadcast_mul(sin)? + b.broadcast_mul(cos)?)?;
    Tensor::cat(&[first, second], D::Minus1)
}

/// Each head of `[b, heads, t, d]` `times` times.
fn repeated(x: &Tensor, times: usize) -> Result<Tensor> {
    if times == 1 {
        return Ok(x.clone());
    }
    let (b, heads, t, d) = x.dims4()?;
    x.unsqueeze(2)?.broadcast_as((b, heads, times, t, d))?.reshape((b, heads * times, t, d))
}
