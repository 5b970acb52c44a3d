//! The work of a generation: from labelled data to files of weights. Everything that can fail comes before anything is
//! stored.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use datasets::{Dataset, Limits};
use inference::{Embedding, Evaluation, Generator, Maker, Provenance, Ranked, SampleOptions, Support, to_safetensors};
use language::text::Descriptions;
use registry::{Caller, CheckpointId, DatasetId};

use super::Timings;
use super::candidates::{self, Candidate, Origin, Plan};
use super::retrieve::{Asked, Retriever};
use crate::error::{Error, Result};
use crate::inline::{Content, DatasetInput, LABELLED, Source, TEXT_ALONE, labels};
use crate::limits::Cancel;
use crate::state::AppState;
use crate::texts;

/// Labelled data of a request, read as far as the registry has it.
pub(crate) struct Input {
    field: &'static str,
    data: Given,
    id: Option<DatasetId>,
    digest: Option<String>,
    classes: Option<Vec<String>>,
    pub(crate) seed: u64,
}

enum Given {
    Registered(Arc<Dataset>),
    Inline(Content),
    Text(Arc<str>),
}

impl Input {
    /// Fetches a registered dataset, or takes what came with the request.
    pub(crate) async fn fetch(
        state: &AppState,
        caller: &Caller,
        field: &'static str,
        input: DatasetInput,
    ) -> Result<Self> {
        let (data, id, digest) = match input.source {
            Source::Inline(Content::Text(text)) => {
                let text = texts::checked(&text).map_err(|error| error.in_field(format!("{field}.text")))?;
                (Given::Text(Arc::from(text)), None, None)
            }
            Source::Inline(content) => (Given::Inline(content), None, None),
            Source::Registered(id) => {
                let row = registry::datasets::get(state.registry(), caller, id.into())
                    .await
                    .map_err(|error| Error::from(error).in_field(format!("{field}.id")))?;
                if row.modality == texts::MODALITY && (input.classes.is_some() || input.seed.is_some()) {
                    let part = if input.classes.is_some() { "classes" } else { "seed" };
                    return Err(Error::ValueInvalid(TEXT_ALONE.into()).in_field(format!("{field}.{part}")));
                }
                let given = match row.modality.as_str() {
                    texts::MODALITY => Given::Text(state.text(&row).await?),
                    _ => Given::Registered(state.dataset(&row).await?),
                };
                (given, Some(row.id), Some(row.digest))
            }
        };
        Ok(Self { field, data, id, digest, classes: input.classes, seed: input.seed.unwrap_or_default() })
    }

    /// Its id, when it is registered.
    pub(super) fn id(&self) -> Option<DatasetId> {
        self.id
    }

    /// The text, of a dataset that is one.
    pub(super) fn text(&self) -> Result<&str> {
        match &self.data {
            Given::Text(text) => Ok(text),
            Given::Registered(data) => Err(texts::mismatch(&data.modality().to_string(), texts::MODALITY)),
            Given::Inline(_) => Err(texts::mismatch(LABELLED, texts::MODALITY)),
        }
    }

    /// The data, and the labels of the classes in the order asked for (`default`, when nothing is asked for).
    pub(super) fn read(&self, default: Option<&[String]>, limits: &Limits) -> Result<(Arc<Dataset>, Vec<u32>)> {
        let classes = self.classes.as_deref().or(default);
        let data = match &self.data {
            Given::Registered(data) => data.clone(),
            Given::Inline(content) => Arc::new(content.read(&format!("{}.", self.field), classes, limits)?),
            Given::Text(_) => return Err(texts::mismatch(texts::MODALITY, LABELLED).in_field(self.field)),
        };
        let labels = match classes {
            Some(classes) => labels(&data, classes)
                .map_err(|error| Error::from(error).in_field(format!("{}.classes", self.field)))?,
            None => (0..).take(data.classes()).collect(),
        };
        Ok((data, labels))
    }
}

/// A generation to do.
pub(crate) struct Job {
    pub(crate) generator: Arc<Generator>,
    /// Whether the request names the networks' architecture.
    pub(crate) named: bool,
    /// `name@version`.
    pub(crate) generator_name: String,
    pub(crate) dataset: Input,
    pub(crate) evaluates: bool,
    pub(crate) evaluation: Option<Input>,
    pub(super) plan: Plan,
    pub(super) validation: Option<Input>,
    /// Where checkpoints are retrieved, and distances found.
    pub(super) retriever: Retriever,
    /// What embeds texts, of a generator that takes one.
    pub(super) texts: Option<Arc<Descriptions>>,
    pub(crate) options: SampleOptions,
    pub(crate) limits: Limits,
}

/// What a generation made.
pub(crate) struct Made {
    pub(crate) dataset_id: Option<DatasetId>,
    pub(crate) dataset_digest: String,
    /// Name of the networks' architecture.
    pub(crate) architecture: String,
    pub(crate) classes: Vec<String>,
    /// How far the dataset is from the zoo's, in units of their own spread, where that is known.
    pub(crate) distance: Option<f64>,
    /// How far each class is from the zoo's, where that is known.
    pub(crate) class_distances: Option<Vec<f64>>,
    /// The best first, or in the order of the noise.
    pub(crate) samples: Vec<Candidate>,
    /// One for each sample.
    pub(crate) files: Vec<Bytes>,
    /// One for each sample, or none at all.
    pub(crate) evaluations: Vec<Evaluation>,
    pub(crate) evaluation_digest: Option<String>,
    pub(crate) validation_digest: Option<String>,
    pub(crate) warnings: Vec<String>,
    pub(crate) timings: Timings,
}

/// Of a dataset whose classes are unlike the zoo's, where the answer is what was generated.
const FAR: &str = "the dataset's classes are far from those of the generator's zoo (class_distances): \
                   what is generated may be no better than chance; ask for `refine`, which fits it to the examples, or \
                   fine-tune it";

impl Job {
    /// Does all of it; blocks.
    ///
    /// `report` learns of each sampling step: those done, and all of them.
    pub(crate) fn run(mut self, cancel: &Cancel, report: &dyn Fn(usize, usize)) -> Result<Made> {
        if let Some(encoder) = self.texts.take() {
            return self.run_described(&encoder, cancel, report);
        }
        let mut clock = Clock::start();
        let mut timings = Timings::default();
        let (data, labels) = self.dataset.read(None, &self.limits)?;
        let classes: Vec<String> = names(&data, &labels);
        // Refused first where it is no dataset for this generator at all.
        let support = in_dataset(self.generator.gather_support(&data, &labels, self.dataset.seed))?;
        self.choose(labels.len())?;
        let generator = self.generator.clone();
        let evaluation = match self.evaluates {
            true => Some(self.evaluation_data(&data, &labels, &classes)?),
            false => None,
        };
        let validation = match &self.validation {
            Some(input) => Some(self.like(&data, &classes, input)?),
            None => None,
        };
        let dataset_digest = self.dataset.digest.clone().unwrap_or_else(|| data.digest());
        timings.parse_ms = clock.lap();
        let embedding = generator.embed(&support.whole().features)?;
        timings.encode_ms = clock.lap();
        self.require_retrieved(&embedding.dataset)?;
        let distance = self.retriever.distance(&embedding.dataset)?;
        let familiarity = generator.familiarity(&embedding);
        let near = familiarity.as_ref().map(|familiarity| familiarity.near);
        let ranked = self.candidates(&support, (&embedding, distance, near), validation.as_ref(), cancel, report)?;
        timings.sample_ms = ranked.timings.sample_ms;
        let rest = clock.lap() - ranked.timings.sample_ms - ranked.timings.decode_ms;
        timings.rank_ms = self.plan.rank_by.map(|_| rest.max(0.0));
        let mut warnings = ranked.warnings;
        let samples = ranked.candidates;
        let generated = samples.first().is_some_and(|first| first.origin == Origin::Generated);
        if generated && self.options.refine.is_none() && near == Some(false) {
            warnings.push(FAR.into());
        }
        let files = samples
            .iter()
            .map(|sample| self.file(sample, &dataset_digest, &classes).map(Bytes::from))
            .collect::<inference::Result<_>>()?;
        timings.decode_ms = ranked.timings.decode_ms + clock.lap();
        let evaluations = evaluate(&generator, &samples, evaluation.as_ref(), cancel)?;
        timings.evaluate_ms = clock.lap();
        Ok(Made {
            dataset_id: self.dataset.id,
            dataset_digest,
            architecture: generator.architecture().name.clone(),
            classes,
            distance,
            class_distances: familiarity.map(|familiarity| familiarity.distances),
            samples,
            files,
            evaluations,
            evaluation_digest: evaluation.map(|data| data.digest()),
            validation_digest: validation.map(|data| data.digest()),
            warnings,
            timings,
        })
    }

    /// Of a generator for any number of classes, the head of the dataset's number is what is made.
    fn choose(&mut self, classes: usize) -> Result<()> {
        if !self.generator.any_number() {
            return Ok(());
        }
        if self.named && self.generator.classes() != classes {
            let (needs, expected) = ("the architecture that is asked for", self.generator.classes());
            let mismatch = inference::Error::ClassesMismatch { found: classes, needs, expected };
            return Err(Error::from(mismatch).in_field("architecture"));
        }
        self.generator = Arc::new(in_dataset(self.generator.for_classes(classes))?);
        self.retriever.of_heads(&self.generator);
        Ok(())
    }

    /// Refuses, before any work, to retrieve where the client asks for it and there is nothing.
    fn require_retrieved(&mut self, embedding: &[f32]) -> Result<()> {
        if !(self.plan.explicit && self.plan.has(Origin::Retrieved)) {
            return Ok(());
        }
        match self.retriever.nearest(embedding)?.is_empty() {
            false => Ok(()),
            true => Err(nothing_to_retrieve(&self.retriever.version())),
        }
    }

    /// The samples: the best candidates, or what is generated in the order of the noise.
    fn candidates(
        &mut self,
        support: &Support,
        (embedding, distance, near): (&Embedding, Option<f64>, Option<bool>),
        validation: Option<&Dataset>,
        cancel: &Cancel,
        report: &dyn Fn(usize, usize),
    ) -> Result<Ranked<CheckpointId>> {
        let Some(rank_by) = self.plan.rank_by else {
            let generated = self.generator.generate_on(
                embedding,
                &self.options,
                Some(&support.whole().data),
                &mut |step, steps| {
                    report(step, steps);
                    !cancel.is_set()
                },
            )?;
            let candidates = candidates::generated(generated.weights);
            return Ok(Ranked { candidates, warnings: Vec::new(), timings: generated.timings });
        };
        let maker = Maker {
            generator: &self.generator,
            options: &self.options,
            origins: &self.plan.origins,
            distance,
            near,
            place: Asked { retriever: &mut self.retriever, cancel, report },
        };
        let mut ranked = maker.rank(support, embedding, validation, rank_by)?;
        let (found, asked) = (ranked.candidates.len(), self.options.count);
        if found < asked {
            ranked.warnings.push(format!("there are only {found} candidates where {asked} samples were asked for"));
        }
        ranked.candidates.truncate(asked);
        Ok(ranked)
    }

    /// The weights of a sample as safetensors.
    pub(super) fn file(&self, sample: &Candidate, dataset: &str, classes: &[String]) -> inference::Result<Vec<u8>> {
        let mut instead = vec![("origin", sample.origin.as_str().to_owned())];
        instead.extend(sample.method.map(|method| ("method", method.as_str().to_owned())));
        instead.extend(sample.checkpoint.map(|id| ("checkpoint", id.to_string())));
        let provenance = Provenance {
            generator_name: &self.generator_name,
            dataset,
            classes,
            options: &self.options,
            index: sample.draw.unwrap_or_default(),
            instead: sample.draw.is_none().then_some(&instead[..]),
        };
        to_safetensors(&self.generator, &sample.theta, &provenance)
    }

    /// The data to evaluate on, with class k the head's row k.
    fn evaluation_data(&self, data: &Dataset, labels: &[u32], classes: &[String]) -> Result<Dataset> {
        let Some(input) = &self.evaluation else {
            let taken = self.generator.manifest().encoder.images_per_class;
            // The examples themselves: an extractor's features of them are not comparable.
            let support = in_dataset(self.generator.support(data, labels, self.dataset.seed))?;
            return held_out(data, labels, &data.gather(&support), taken).map_err(|error| error.in_field("evaluate"));
        };
        self.like(data, classes, input)
    }

    /// Labelled data with the classes of the dataset, class k the head's row k.
    fn like(&self, data: &Dataset, classes: &[String], input: &Input) -> Result<Dataset> {
        let (found, labels) = input.read(Some(classes), &self.limits)?;
        check_like(data, classes, &found, &labels).map_err(|error| Error::from(error).in_field(input.field))?;
        let chosen = found.select_classes(&labels).map_err(|error| Error::from(error).in_field(input.field))?;
        chosen.require_every_class().map_err(|error| Error::from(error).in_field(input.field))?;
        Ok(chosen)
    }
}

/// Why nothing can be retrieved for a client that asked for it.
pub(super) fn nothing_to_retrieve(version: &str) -> Error {
    let rule = format!(
        "there is no checkpoint to retrieve: the zoo of {version} is not registered with its embeddings, or is not yours \
         to see; publish the generator with its zoo, or leave `retrieved` out"
    );
    Error::ValueInvalid(rule).in_field("candidates")
}

/// Says that an error is about the dataset, when it is.
fn in_dataset<T>(result: inference::Result<T>) -> Result<T> {
    use inference::Error as E;
    result.map_err(|error| match error {
        E::ModalityMismatch { .. }
        | E::ShapeMismatch { .. }
        | E::ClassesMismatch { .. }
        | E::ClassesOutside { .. }
        | E::Dataset(_) => Error::from(error).in_field("dataset"),
        other => other.into(),
    })
}

fn names(data: &Dataset, labels: &[u32]) -> Vec<String> {
    labels.iter().filter_map(|label| data.class_names.get(*label as usize).cloned()).collect()
}

fn check_like(data: &Dataset, classes: &[String], evaluation: &Dataset, labels: &[u32]) -> inference::Result<()> {
    if evaluation.shape != data.shape {
        return Err(inference::Error::ShapeMismatch {
            found: evaluation.shape.clone(),
            needs: "evaluation on this dataset",
            expected: data.shape.clone(),
        });
    }
    if labels.len() != classes.len() {
        return Err(inference::Error::ClassesMismatch {
            found: labels.len(),
            needs: "evaluation on this dataset",
            expected: classes.len(),
        });
    }
    Ok(())
}

/// The examples of the chosen classes that are not among those the encoder took (`[classes, taken, dim]`), nor equal
/// to one of them.
fn held_out(data: &Dataset, labels: &[u32], features: &[f32], taken: usize) -> Result<Dataset> {
    let chosen = data.select_classes(labels)?;
    let dim = chosen.dim();
    let bytes = |row: &[f32]| row.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let rows = features.chunks_exact(dim).enumerate();
    let seen: HashSet<(usize, Vec<u8>)> = rows.map(|(at, row)| (at / taken.max(1), bytes(row))).collect();
    let mut row = vec![0.0; dim];
    let mut counts = vec![(0, 0); chosen.classes()];
    let mut kept = Vec::new();
    for (index, label) in chosen.labels.iter().map(|label| *label as usize).enumerate() {
        chosen.write_features(index, &mut row);
        counts[label].0 += 1;
        if !seen.contains(&(label, bytes(&row))) {
            counts[label].1 += 1;
            kept.push(index);
        }
    }
    match counts.iter().position(|(_, left)| *left == 0) {
        Some(at) => Err(Error::EvaluationMissing { taken, class: chosen.class_names[at].clone(), have: counts[at].0 }),
        None => Ok(chosen.take(&kept)),
    }
}

fn evaluate(
    generator: &Generator,
    samples: &[Candidate],
    data: Option<&Dataset>,
    cancel: &Cancel,
) -> Result<Vec<Evaluation>> {
    let Some(data) = data else {
        return Ok(Vec::new());
    };
    let data = generator.network_data(data)?;
    let each = samples.iter().map(|sample| {
        cancel.check()?;
        Ok(generator.evaluate(&sample.theta, &data)?)
    });
    each.collect()
}

/// Milliseconds from lap to lap.
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn lap(&mut self) -> f64 {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now)).as_secs_f64() * 1e3
    }
}

#[cfg(test)]
mod tests {
    use datasets::Data;

    use super::*;

    fn data() -> Dataset {
        // Class 0: 0, 1, 2; class 1: 0, 5.
        let names = vec!["a".to_owned(), "b".to_owned()];
        Dataset::new("t", vec![1], names, Data::F32(vec![0.0, 0.0, 1.0, 5.0, 2.0]), vec![0, 1, 0, 1, 0]).unwrap()
    }

    #[test]
    fn held_out_examples_are_new_to_the_encoder() {
        let rest = held_out(&data(), &[1, 0], &[5.0, 1.0], 1).unwrap();
        assert_eq!(rest.class_names, ["b", "a"]);
        // b keeps its 0, which the encoder did not see; a keeps 0 and 2.
        assert_eq!((rest.labels.as_slice(), rest.data.clone()), (&[1, 0, 1][..], Data::F32(vec![0.0, 0.0, 2.0])));
    }

    #[test]
    fn nothing_left_is_an_error() {
        let error = held_out(&data(), &[0, 1], &[0.0, 1.0, 0.0, 5.0], 2).unwrap_err();
        assert_eq!((error.code(), error.status().as_u16()), ("evaluation_missing", 422));
        assert!(error.to_string().contains("takes 2") && error.to_string().contains("\"b\" has 2"), "{error}");
    }
}
