//! Texts as tokens: a tokenizer of a model's directory, or one trained on texts.

use std::path::Path;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use tokenizers::{Tokenizer, TokenizerBuilder};

use crate::error::{Error, Result};

/// Name of the tokenizer's file.
pub const FILE: &str = "tokenizer.json";
const END: &str = "<|endoftext|>";

/// Reads the tokenizer of a model with `vocabulary` tokens.
///
/// # Errors
/// [`Error::Model`] when there is none, it cannot be read, or it has tokens that the model does not.
pub fn open(dir: &Path, vocabulary: usize) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_file(dir.join(FILE)).map_err(|e| Error::model(dir, format!("{FILE}: {e}")))?;
    let largest = tokenizer.get_vocab(true).into_values().max().unwrap_or(0) as usize;
    if largest >= vocabulary {
        let text = format!("{FILE} does not fit: it has a token {largest}, and the model has {vocabulary} tokens");
        return Err(Error::model(dir, text));
    }
    Ok(tokenizer)
}

/// Learns byte pairs of `texts`: a byte-level BPE as GPT-2's, of at most `vocabulary` tokens.
///
/// # Errors
/// [`Error::Text`] when there are fewer than 257 tokens to have, or nothing to learn from.
pub fn learn(texts: &[String], vocabulary: usize) -> Result<Tokenizer> {
    if vocabulary < 257 || texts.iter().all(|text| text.trim().is_empty()) {
        return Err(Error::Text(format!("a tokenizer needs texts and at least 257 tokens, not {vocabulary}")));
    }
    let failed = |e: tokenizers::Error| Error::Text(format!("a tokenizer cannot be learned: {e}"));
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocabulary)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END, true)])
        .build();
    let mut tokenizer =
        TokenizerBuilder::<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>::new()
            .with_model(BPE::default())
            .with_normalizer(None::<NormalizerWrapper>)
            .with_pre_tokenizer(Some(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true))))
            .with_post_processor(Some(PostProcessorWrapper::ByteLevel(ByteLevel::default())))
            .with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::default())))
            .build()
            .map_err(failed)?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(failed)?;
    let json = tokenizer.to_string(false).map_err(failed)?;
    json.parse().map_err(failed)
}

/// Texts one after the other, an end-of-text token behind each where the tokenizer has one.
///
/// # Errors
/// [`Error::Text`] when a text cannot be cut.
pub fn encode(tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<u32>> {
    let end = ["<|endoftext|>", "</s>", "<|end_of_text|>"].iter().find_map(|name| tokenizer.token_to_id(name));
    let failed = |e: tokenizers::Error| Error::Text(format!("a text cannot be cut into tokens: {e}"));
    let mut all = Vec::new();
    for part in texts.chunks(1024) {
        let inputs: Vec<&str> = part.iter().map(String::as_str).collect();
        for encoding in tokenizer.encode_batch(inputs, false).map_err(failed)? {
            all.extend_from_slice(encoding.get_ids());
            all.extend(end);
        }
    }
    Ok(all)
}

/// Windows of `length` tokens, one behind the other; what is left at the end is not used.
pub fn windows(tokens: &[u32], length: usize) -> Vec<&[u32]> {
    tokens.chunks_exact(length.max(2)).collect()
}

/// `n` windows of `length` tokens at random places.
pub fn draw(tokens: &[u32], length: usize, n: usize, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let last = tokens.len().saturating_sub(length);
    let mut all = Vec::with_capacity(n * length);
    for _ in 0..n {
        let start = rng.random_range(0..=last);
        all.extend_from_slice(&tokens[start..(start + length).min(tokens.len())]);
    }
    all
}

/// Perplexity of `test` under the frequencies of tokens in `train` (with one added to each of `vocabulary`): what a
/// model without any context has.
pub fn unigram_perplexity(train: &[u32], test: &[u32], vocabulary: usize) -> f64 {
    let mut counts = vec![1f64; vocabulary];
    train.iter().for_each(|&token| counts[token as usize] += 1.0);
    let total: f64 = counts.iter().sum();
    let loss: f64 = test.iter().map(|&token| -(counts[token as usize] / total).ln()).sum();
    (loss / test.len().max(1) as f64).exp()
}
