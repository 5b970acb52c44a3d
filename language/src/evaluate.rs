//! What says how good a model is: a score, of which more is better (Algorithm 1 keeps what does not lower it).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use training::progress::Progress;

use crate::error::{Error, Result};
use crate::lm::{Decoder, tokens};
use crate::model::Model;
use crate::rewrite::{Fill, rewrite};

/// A model with other values for some matrices.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// The model that it was.
    pub model: &'a Model,
    /// What is other in it, by name.
    pub changed: BTreeMap<String, Vec<f32>>,
}

impl Candidate<'_> {
    /// Writes it to a new directory.
    ///
    /// # Errors
    /// Those of [`rewrite`].
    pub fn write(&self, to: &Path) -> Result<()> {
        rewrite(self.model, to, &mut Changed(&self.changed))
    }

    /// Writes it into `folder`, and removes it when `score` has seen it.
    ///
    /// # Errors
    /// Those of writing and of `score`.
    pub fn written(&self, folder: &Path, score: impl FnOnce(&Path) -> Result<f64>) -> Result<f64> {
        let dir = folder.join(format!("candidate-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        self.write(&dir)?;
        let score = score(&dir);
        let _ = std::fs::remove_dir_all(&dir);
        score
    }
}

struct Changed<'a>(&'a BTreeMap<String, Vec<f32>>);

impl Fill for Changed<'_> {
    fn names(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    fn fill(&mut self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let part = self.0.get(name).and_then(|values| values.get(range));
        out.copy_from_slice(part.ok_or_else(|| Error::Text(format!("there are not enough values of {name}")))?);
        Ok(())
    }
}

/// Scores models.
pub trait Evaluator {
    /// A score, finite; more is better.
    ///
    /// # Errors
    /// [`Error::Evaluator`] when there is none; the search tries another candidate then.
    fn score(&mut self, candidate: &mut Candidate<'_>) -> Result<f64>;

    /// What it measures, in a few words that name its data.
    fn describe(&self) -> String;
}

/// A model in memory whose matrices are changed and put back.
struct Loaded {
    decoder: Decoder,
    original: BTreeMap<String, Tensor>,
    changed: BTreeSet<String>,
}

impl Loaded {
    fn new(decoder: Decoder) -> Self {
        Self { original: decoder.tensors().clone(), decoder, changed: BTreeSet::new() }
    }

    fn with(&mut self, changed: &BTreeMap<String, Vec<f32>>) -> Result<&Decoder> {
        for name in std::mem::take(&mut self.changed) {
            self.decoder.set(&name, self.original[&name].clone());
        }
        for (name, values) in changed {
            // GPT-2's own files have no prefix.
            let own = if self.original.contains_key(name) { name.clone() } else { format!("transformer.{name}") };
            let unknown = || Error::Text(format!("the model has no tensor {name}"));
            let shape = self.original.get(&own).ok_or_else(unknown)?.shape().clone();
            let tensor = Tensor::from_vec(values.clone(), shape, &Device::Cpu).map_err(training::Error::Tensor)?;
            self.decoder.set(&own, tensor);
            self.changed.insert(own);
        }
        Ok(&self.decoder)
    }
}

fn finite(score: f64, of: &str) -> Result<f64> {
    if score.is_finite() { Ok(score) } else { Err(Error::Evaluator(format!("{of} gave {score}, which is no score"))) }
}

/// The mean log-likelihood of a token of a text: minus the logarithm of the perplexity.
pub struct Likelihood {
    loaded: Loaded,
    tokens: Vec<u32>,
    length: usize,
    progress: Progress,
}

impl Likelihood {
    /// On windows of `length` of the tokens.
    pub fn new(decoder: Decoder, tokens: Vec<u32>, length: usize) -> Self {
        Self { loaded: Loaded::new(decoder), tokens, length, progress: Progress::silent() }
    }

    /// The same, stopped within a score when `progress` is told to.
    #[must_use]
    pub fn stopped_by(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }
}

impl Evaluator for Likelihood {
    fn score(&mut self, candidate: &mut Candidate<'_>) -> Result<f64> {
        let decoder = self.loaded.with(&candidate.changed)?;
        finite(-decoder.loss_while(&self.tokens, self.length, &self.progress)?, "the perplexity")
    }

    fn describe(&self) -> String {
        format!("mean log-likelihood of {} tokens in windows of {}", self.tokens.len(), self.length)
    }
}

/// A question with choices, as a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// What comes before the choice.
    pub context: String,
    /// The choices, each put behind the context as it is.
    pub choices: Vec<String>,
    /// Which one is right, from 0.
    pub answer: usize,
}

impl Question {
    /// What is wrong with it, if something is.
    pub fn wrong(&self) -> Option<&'static str> {
        let fits = self.choices.len() >= 2 && self.answer < self.choices.len();
        (!fits).then_some("it needs two choices or more, and the number of the right one from 0")
    }

    /// Reads lines of JSON.
    ///
    /// # Errors
    /// [`Error::Text`] names the line.
    pub fn read(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let all = lines.map(|(i, line)| {
            let wrong = |reason: String| Error::Text(format!("question of line {}: {reason}", i + 1));
            let question: Self = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
            match question.wrong() {
                None => Ok(question),
                Some(reason) => Err(wrong(reason.into())),
            }
        });
        let all = all.collect::<Result<Vec<_>>>()?;
        if all.is_empty() { Err(Error::Text("there are no questions".into())) } else { Ok(all) }
    }
}

/// The evaluator of questions on a model's directory.
///
/// # Errors
/// Those of reading the model and its tokenizer, and of [`MultipleChoice::new`].
pub fn multiple_choice(model: &Model, questions: &[Question]) -> Result<MultipleChoice> {
    let decoder = Decoder::load(model)?;
    let tokenizer = tokens::open(model.dir(), decoder.config().vocabulary)?;
    MultipleChoice::new(decoder, &tokenizer, questions)
}

/// The share of questions whose right choice has the highest log-likelihood for each of its tokens.
pub struct MultipleChoice {
    loaded: Loaded,
    questions: Vec<(Vec<u32>, Vec<Vec<u32>>, usize)>,
    progress: Progress,
}

impl MultipleChoice {
    /// Cuts questions into tokens.
    ///
    /// # Errors
    /// [`Error::Text`] when a context or choice has no token.
    pub fn new(decoder: Decoder, tokenizer: &tokenizers::Tokenizer, questions: &[Question]) -> Result<Self> {
        let cut = |text: &str| -> Result<Vec<u32>> {
            let cut = tokenizer.encode(text, false).map_err(|e| Error::Text(e.to_string()))?;
            let ids = cut.get_ids().to_vec();
            if ids.is_empty() { Err(Error::Text(format!("{text:?} has no token"))) } else { Ok(ids) }
        };
        let all = questions.iter().map(|q| {
            let choices = q.choices.iter().map(|choice| cut(choice)).collect::<Result<Vec<_>>>()?;
            Ok((cut(&q.context)?, choices, q.answer))
        });
        let questions = all.collect::<Result<_>>()?;
        Ok(Self { loaded: Loaded::new(decoder), questions, progress: Progress::silent() })
    }

    /// As [`Likelihood::stopped_by`].
    #[must_use]
    pub fn stopped_by(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }
}

impl Evaluator for MultipleChoice {
    fn score(&mut self, candidate: &mut Candidate<'_>) -> Result<f64> {
        let decoder = self.loaded.with(&candidate.changed)?;
        let mut right = 0;
        for (context, choices, answer) in &self.questions {
            self.progress.check()?;
            let mut best = (0, f64::NEG_INFINITY);
            for (i, choice) in choices.iter().enumerate() {
                let score = finite(decoder.log_likelihood(context, choice)? / choice.len() as f64, "a choice")?;
                if score > best.1 {
                    best = (i, score);
                }
            }
            right += usize::from(best.0 == *answer);
        }
        Ok(right as f64 / self.questions.len() as f64)
    }

    fn describe(&self) -> String {
        format!("share of right answers to {} questions", self.questions.len())
    }
}

/// A program that is given a model's directory as its last argument, and ends its standard output with a number.
#[derive(Debug)]
pub struct External {
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long it may take.
    pub limit: Duration,
    /// Where candidates are written to.
    pub folder: PathBuf,
}

impl External {
    fn run(&self, dir: &Path) -> Result<f64> {
        let failed = |reason: String| Error::Evaluator(format!("{}: {reason}", self.command.join(" ")));
        let (program, arguments) = self.command.split_first().ok_or_else(|| failed("there is no command".into()))?;
        let out = dir.with_extension("score");
        let file = std::fs::File::create(&out).map_err(Error::io(&out))?;
        let mut command = Command::new(program);
        command.args(arguments).arg(dir).stdin(Stdio::null()).stdout(file).stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|e| failed(e.to_string()))? {
                break status;
            }
            if begin.elapsed() > self.limit {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(format!("it took longer than {} s", self.limit.as_secs_f64())));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = std::fs::read_to_string(&out).map_err(Error::io(&out))?;
        let _ = std::fs::remove_file(&out);
        if !status.success() {
            return Err(failed(format!("it ended with {status}")));
        }
        let last = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let score = last.parse().map_err(|_| failed(format!("it ended with {last:?} and not with a number")))?;
        finite(score, &self.command.join(" "))
    }
}

impl Evaluator for External {
    fn score(&mut self, candidate: &mut Candidate<'_>) -> Result<f64> {
        candidate.written(&self.folder, |dir| self.run(dir))
    }

    fn describe(&self) -> String {
        self.command.join(" ")
    }
}

/// Log-likelihood of lines of text under a model's own tokenizer.
///
/// # Errors
/// Those of opening the model and its tokenizer; [`Error::Text`] when there are too few tokens.
pub fn likelihood(model: &Model, texts: &[String], length: usize) -> Result<Likelihood> {
    let decoder = Decoder::load(model)?;
    let tokenizer = tokens::open(model.dir(), decoder.config().vocabulary)?;
    let tokens = tokens::encode(&tokenizer, texts)?;
    let length = length.min(decoder.config().positions);
    if tokens.len() <= length {
        return Err(Error::Text(format!("the text has {} tokens; a window has {}", tokens.len(), length + 1)));
    }
    Ok(Likelihood::new(decoder, tokens, length))
}
