//! BERT's encoder: hidden states of every token, differentiable with respect to what is added to its projections.
//!
//! candle-transformers' own has no gradients (its norms are operations without); the tests compare with it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use weights::manifest::Pooling;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::{attention, heads, layer_norm, linear};

type Tensors = candle_core::Result<Tensor>;

/// What of `config.json` the forward pass needs.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Width.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Positions at most.
    pub positions: usize,
    /// Types of tokens: of the first and of the second text.
    pub types: usize,
    /// Added to variances.
    pub epsilon: f64,
}

impl BertConfig {
    /// From `config.json`.
    ///
    /// # Errors
    /// A sentence that says which key is missing or which value is not supported, and what is.
    pub fn from_json(config: &Value) -> std::result::Result<Self, String> {
        let kind = config["model_type"].as_str().unwrap_or_default();
        if kind != "bert" {
            return Err(format!("its model_type is {kind:?}; text encoders of the type bert are run"));
        }
        for (key, known) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
            let value = config[key].as_str().unwrap_or(known);
            if value != known {
                return Err(format!("its {key} is {value}; {known} is run"));
            }
        }
        let size = |key: &str| -> std::result::Result<usize, String> {
            let value = config[key].as_u64().filter(|v| *v > 0).and_then(|v| usize::try_from(v).ok());
            value.ok_or_else(|| format!("its configuration needs {key}, a number above 0"))
        };
        let config = Self {
            vocabulary: size("vocab_size")?,
            hidden: size("hidden_size")?,
            intermediate: size("intermediate_size")?,
            layers: size("num_hidden_layers")?,
            heads: size("num_attention_heads")?,
            positions: size("max_position_embeddings")?,
            types: size("type_vocab_size")?,
            epsilon: config["layer_norm_eps"].as_f64().unwrap_or(1e-12),
        };
        if !config.hidden.is_multiple_of(config.heads) {
            return Err(format!("{} heads do not fit a width of {}", config.heads, config.hidden));
        }
        Ok(config)
    }

    /// Names and shapes of the layer between the encoder and a classifier.
    pub fn pooler(&self) -> [(String, Vec<usize>); 2] {
        let h = self.hidden;
        [("pooler.dense.weight".to_owned(), vec![h, h]), ("pooler.dense.bias".to_owned(), vec![h])]
    }

    /// Names and shapes of its tensors.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, m) = (self.hidden, self.intermediate);
        let mut all = vec![
            ("embeddings.word_embeddings.weight".to_owned(), vec![self.vocabulary, h]),
            ("embeddings.position_embeddings.weight".to_owned(), vec![self.positions, h]),
            ("embeddings.token_type_embeddings.weight".to_owned(), vec![self.types, h]),
        ];
        let mut norm = |name: &str| {
            all.push((format!("{name}.weight"), vec![h]));
            all.push((format!("{name}.bias"), vec![h]));
        };
        norm("embeddings.LayerNorm");
        (0..self.layers).for_each(|i| norm(&format!("encoder.layer.{i}.attention.output.LayerNorm")));
        (0..self.layers).for_each(|i| norm(&format!("encoder.layer.{i}.output.LayerNorm")));
        for i in 0..self.layers {
            let projections = ["query", "key", "value"].map(|p| (format!("attention.self.{p}"), h, h));
            let others = [("attention.output.dense", h, h), ("intermediate.dense", h, m), ("output.dense", m, h)];
            let others = others.map(|(name, inputs, outputs)| (name.to_owned(), inputs, outputs));
            for (name, inputs, outputs) in projections.into_iter().chain(others) {
                all.push((format!("encoder.layer.{i}.{name}.weight"), vec![outputs, inputs]));
                all.push((format!("encoder.layer.{i}.{name}.bias"), vec![outputs]));
            }
        }
        all
    }
}

/// What is added to projections: for a module's name and its input `[b, t, inputs]`, a further output, or nothing.
pub type Added<'a> = dyn Fn(&str, &Tensor) -> candle_core::Result<Option<Tensor>> + 'a;

/// Texts as tokens, all of one length.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Tokens `[b, t]`.
    pub tokens: Tensor,
    /// Which text each is of, `[b, t]`.
    pub types: Tensor,
    /// 1 where there is a token and 0 where it is filled up, `[b, t]`, f32.
    pub mask: Tensor,
}

impl Batch {
    /// Some of the texts.
    ///
    /// # Errors
    /// When an index is outside.
    pub fn select(&self, rows: &Tensor) -> candle_core::Result<Self> {
        let of = |x: &Tensor| x.index_select(rows, 0);
        Ok(Self { tokens: of(&self.tokens)?, types: of(&self.types)?, mask: of(&self.mask)? })
    }

    /// What is added to scores of attention, `[b, 1, 1, t]`.
    fn scores(&self) -> Tensors {
        let (b, t) = self.mask.dims2()?;
        self.mask.affine(1e9, -1e9)?.reshape((b, 1, 1, t))
    }
}

/// The encoder.
#[derive(Debug, Clone)]
pub struct Bert {
    config: BertConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Bert {
    /// An encoder with the tensors that [`BertConfig::tensors`] names.
    pub fn new(config: BertConfig, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { config, tensors }
    }

    /// Reads a model's directory; names may begin with `bert.`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is no BERT, or a tensor is missing or of another shape.
    pub fn load(model: &Model) -> Result<Self> {
        let config = BertConfig::from_json(model.config()).map_err(|reason| Error::model(model.dir(), reason))?;
        // Before a name is made for each tensor of each layer.
        let (layers, tensors) = (config.layers, model.entries().len());
        if layers > tensors {
            return Err(Error::model(
                model.dir(),
                format!("its configuration has {layers} layers, its files {tensors} tensors"),
            ));
        }
        let prefix = if model.entries().keys().any(|name| name.starts_with("bert.")) { "bert." } else { "" };
        let mut wanted = config.tensors();
        // Not every encoder has one: only classifiers need it.
        if model.entries().contains_key(&format!("{prefix}pooler.dense.weight")) {
            wanted.extend(config.pooler());
        }
        let tensors = model.tensors_as(wanted, |name| format!("{prefix}{name}"))?;
        Ok(Self::new(config, tensors))
    }

    /// Its configuration.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    fn get(&self, name: &str) -> candle_core::Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| candle_core::Error::Msg(format!("the encoder has no tensor {name}")))
    }

    /// Embeddings of tokens, `[b, t, hidden]`: what the first block gets.
    ///
    /// # Errors
    /// When a token or position is outside what there is.
    pub fn embed(&self, batch: &Batch) -> Tensors {
        let (b, t) = batch.tokens.dims2()?;
        if t > self.config.positions {
            candle_core::bail!("{t} tokens are given, and the encoder has {} positions", self.config.positions);
        }
        let of = |name: &str, ids: &Tensor| -> Tensors {
            let table = self.get(&format!("embeddings.{name}_embeddings.weight"))?;
            table.index_select(&ids.flatten_all()?, 0)?.reshape((b, t, self.config.hidden))
        };
        let positions = self.get("embeddings.position_embeddings.weight")?.narrow(0, 0, t)?;
        let x = (of("word", &batch.tokens)? + of("token_type", &batch.types)?)?.broadcast_add(&positions)?;
        self.norm(&x, "embeddings.LayerNorm")
    }

    /// Hidden states `[b, t, hidden]` behind the blocks `from..to`, of what block `from` gets.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub fn blocks(&self, x: &Tensor, batch: &Batch, blocks: std::ops::Range<usize>, added: &Added<'_>) -> Tensors {
        let mask = batch.scores()?;
        let mut x = x.clone();
        for i in blocks {
            let name = |part: &str| format!("encoder.layer.{i}.{part}");
            let part = |which: &str| {
                heads(&self.module(&x, &name(&format!("attention.self.{which}")), added)?, self.config.heads)
            };
            let y = attention(&part("query")?, &part("key")?, &part("value")?, &mask)?;
            let y = self.module(&y, &name("attention.output.dense"), added)?;
            x = self.norm(&(x + y)?, &name("attention.output.LayerNorm"))?;
            let y = self.module(&x, &name("intermediate.dense"), added)?.gelu_erf()?;
            let y = self.module(&y, &name("output.dense"), added)?;
            x = self.norm(&(x + y)?, &name("output.LayerNorm"))?;
        }
        Ok(x)
    }

    /// One of the last hidden states of each text, or their mean over its tokens, `[b, hidden]`.
    ///
    /// # Errors
    /// As [`Bert::embed`].
    pub fn pooled(&self, batch: &Batch, pooling: Pooling) -> Tensors {
        let x = self.blocks(&self.embed(batch)?, batch, 0..self.config.layers, &|_, _| Ok(None))?;
        match pooling {
            Pooling::Mean => mean(&x, batch),
            Pooling::First => x.narrow(1, 0, 1)?.squeeze(1),
            Pooling::Last => {
                let (b, t) = batch.mask.dims2()?;
                let lengths = batch.mask.sum(1)?.to_vec1::<f32>()?;
                let at = |(row, n): (usize, &f32)| (row * t + (*n as usize).max(1) - 1) as u32;
                let index: Vec<u32> = lengths.iter().enumerate().map(at).collect();
                x.reshape((b * t, self.config.hidden))?.index_select(&Tensor::new(index, &Device::Cpu)?, 0)
            }
        }
    }

    /// What a classifier sees of hidden states `[b, hidden]` of the first token: tanh of a linear layer.
    ///
    /// # Errors
    /// When the encoder has none.
    pub fn pooler(&self, first: &Tensor) -> Tensors {
        let y = first.matmul(&self.get("pooler.dense.weight")?.t()?)?;
        y.broadcast_add(self.get("pooler.dense.bias")?)?.tanh()
    }

    /// The linear layers of the blocks: block, name, outputs, inputs.
    pub fn modules(&self) -> Vec<(usize, String, usize, usize)> {
        let matrices =
            self.config.tensors().into_iter().filter(|(name, shape)| shape.len() == 2 && name.starts_with("encoder."));
        let module = |(name, shape): (String, Vec<usize>)| {
            let block = training::stages::layers::kind(&name).1?;
            Some((block, name.strip_suffix(".weight")?.to_owned(), shape[0], shape[1]))
        };
        matrices.filter_map(module).collect()
    }

    fn module(&self, x: &Tensor, name: &str, added: &Added<'_>) -> Tensors {
        let y = linear(x, self.get(&format!("{name}.weight"))?)?;
        let y = y.broadcast_add(self.get(&format!("{name}.bias"))?)?;
        match added(name, x)? {
            Some(further) => y + further,
            None => Ok(y),
        }
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensors {
        let (weight, bias) = (self.get(&format!("{name}.weight"))?, self.get(&format!("{name}.bias"))?);
        layer_norm(x, weight, bias, self.config.epsilon)
    }
}

/// Mean over the tokens that there are of `[b, t, hidden]`.
fn mean(x: &Tensor, batch: &Batch) -> Tensors {
    let mask = batch.mask.unsqueeze(2)?;
    x.broadcast_mul(&mask)?.sum(1)?.broadcast_div(&batch.mask.sum_keepdim(1)?)
}

/// The tokenizer that cuts texts to `length` tokens, and fills none up.
///
/// # Errors
/// [`Error::Text`] when it adds more tokens than that itself.
pub fn cutting(mut tokenizer: tokenizers::Tokenizer, length: usize) -> Result<tokenizers::Tokenizer> {
    let failed = |e: tokenizers::Error| Error::Text(format!("texts cannot be cut to {length} tokens: {e}"));
    let truncation = tokenizers::TruncationParams { max_length: length, ..Default::default() };
    tokenizer.with_padding(None).with_truncation(Some(truncation)).map_err(failed)?;
    Ok(tokenizer)
}

/// Texts, or pairs of texts, as tokens of at most `length`, filled up to the longest.
///
/// # Errors
/// [`Error::Text`] when a text cannot be cut, or there is none.
pub fn batch(tokenizer: &tokenizers::Tokenizer, texts: &[(&str, Option<&str>)], length: usize) -> Result<Batch> {
    let failed = |e: tokenizers::Error| Error::Text(format!("a text cannot be cut into tokens: {e}"));
    // A copy of a vocabulary takes longer than a text does.
    let tokenizer = match tokenizer.get_truncation().is_some_and(|t| t.max_length == length) {
        true => Cow::Borrowed(tokenizer),
        false => Cow::Owned(cutting(tokenizer.clone(), length)?),
    };
    let inputs: Vec<tokenizers::EncodeInput<'_>> = texts
        .iter()
        .map(|(first, second)| match second {
            Some(second) => (*first, *second).into(),
            None => (*first).into(),
        })
        .collect();
    let encodings = tokenizer.encode_batch(inputs, true).map_err(failed)?;
    let longest = encodings.iter().map(|e| e.get_ids().len()).max().filter(|n| *n > 0);
    let longest = longest.ok_or_else(|| Error::Text("there is no text with a token".into()))?;
    let filled = |of: fn(&tokenizers::Encoding) -> &[u32]| -> Vec<u32> {
        let row = |e: &tokenizers::Encoding| of(e).iter().copied().chain(std::iter::repeat(0)).take(longest).collect();
        encodings.iter().flat_map(|e| -> Vec<u32> { row(e) }).collect()
    };
    let tensor = |values: Vec<u32>| Tensor::from_vec(values, (encodings.len(), longest), &Device::Cpu);
    let all = || -> candle_core::Result<Batch> {
        Ok(Batch {
            tokens: tensor(filled(tokenizers::Encoding::get_ids))?,
            types: tensor(filled(tokenizers::Encoding::get_type_ids))?,
            mask: tensor(filled(tokenizers::Encoding::get_attention_mask))?.to_dtype(DType::F32)?,
        })
    };
    Ok(all().map_err(training::Error::Tensor)?)
}
