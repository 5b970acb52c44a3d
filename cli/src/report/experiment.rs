//! Runs an experiment: one zoo, a generator for each variant, seed and left-out source, all measured.

mod made;
mod shares;
mod targets;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use datasets::{Dataset, Task};
use inference::{ClosedForm, Embedding, Generator, Maker, Origin, RankBy, Runtime, SampleOptions, Support};
use training::progress::Progress;
use training::stages;
use training::stages::fit;
use training::stages::vectors::{self, Vectors};
use training::stages::zoo::Zoo;
use training::{Config, Part, Sources};

use super::cache::{Cache, Seconds};
use super::config::{DATA, Experiment, Variant};
use super::near::{self, AnsweringZoo};
use super::result::{Answers, Group, Outcome, Piece, Timing};
use super::weights_figure::WeightsFigure;
use crate::compare::{AVERAGED, Arm, Comparison, Reconstructions, SetReport, Settings, spread};
use crate::context::peak_rss_mib;
use crate::error::{Error, Result};
use crate::{extractor, publish};
use made::Made;
use shares::{first_sets, kept, set_of};
use targets::Target;

/// Reconstructed checkpoints of a group whose tasks are not those that are measured.
const RECONSTRUCTED: usize = 48;

/// What runs share.
pub struct Place<'a> {
    /// The folder of IDX sets.
    pub data: Option<&'a Path>,
    /// The directory of a text encoder.
    pub text_encoder: Option<&'a Path>,
    /// The output folder.
    pub out: &'a Path,
    /// ONNX Runtime.
    pub runtime: &'a Runtime,
    /// Progress.
    pub progress: &'a Progress,
}

/// Why the data of an experiment is not there, if so.
pub fn missing_data(experiment: &Experiment, data: Option<&Path>) -> Option<String> {
    let folders = experiment.folders();
    let names = folders.iter().map(|(_, folder)| *folder).collect::<Vec<_>>().join(", ");
    match data {
        _ if folders.is_empty() => None,
        None => Some(format!(
            "experiment {} needs the data {names}: give the folder that holds them with --data, or in \
             WEIGHTSMITH_DATA",
            experiment.name
        )),
        Some(dir) => {
            let (_, folder) = folders.iter().find(|(_, folder)| !dir.join(folder).exists())?;
            // A file has an ending.
            let what = if folder.contains('.') { "file" } else { "folder" };
            Some(format!(
                "experiment {} looks for the data {names} in {}, and there is no {what} {folder}",
                experiment.name,
                dir.display()
            ))
        }
    }
}

/// One generator to train and measure.
struct Member<'a> {
    variant: &'a Variant,
    seed: u64,
    left_out: Option<&'a str>,
}

/// An experiment under way.
struct Run<'a> {
    experiment: &'a Experiment,
    place: &'a Place<'a>,
    cache: Cache<'a>,
    sources: Sources,
    whole: Zoo,
    support: BTreeMap<String, Dataset>,
    seconds: Seconds,
    groups: Vec<Group>,
    weights: Option<WeightsFigure>,
}

/// Runs it, or what is missing of it.
///
/// # Errors
/// `data_missing`, `diverged`, and those of the stages.
pub fn run(experiment: &Experiment, place: &Place<'_>) -> Result<Outcome> {
    if let Some(text) = missing_data(experiment, place.data) {
        return Err(Error::input("data_missing", text));
    }
    let start = Instant::now();
    let sources = load(experiment, place)?;
    let loaded = start.elapsed().as_secs_f64();
    check_lineages(experiment, &sources)?;
    let cache = Cache::new(place.out, place.runtime, place.progress);
    let (whole, seconds) = cache.zoo(&experiment.generator, &sources)?;
    let support = sources.list().iter().map(|s| (s.name.clone(), s.dataset(Part::Validation))).collect();
    let seconds = vec![("data".to_owned(), loaded), ("zoo".to_owned(), seconds)];
    let mut run = Run { experiment, place, cache, sources, whole, support, seconds, groups: Vec::new(), weights: None };
    let parts = run.parts();
    for (i, part) in parts.iter().enumerate() {
        let of = part.left_out.map_or(String::new(), |source| format!(", without {source}"));
        let (name, variant, n) = (&experiment.name, &part.variant.name, parts.len());
        place.progress.note(&format!("{name}: generator {} of {n}: {variant}, seed {}{of}", i + 1, part.seed));
        run.part(part)?;
    }
    Ok(run.outcome())
}

fn load(experiment: &Experiment, place: &Place<'_>) -> Result<Sources> {
    let dir = place.data.map(|d| d.display().to_string()).unwrap_or_default();
    let config = &experiment.generator;
    let mut placed = config.clone();
    placed.zoo.start = config.zoo.start.as_ref().map(|start| start.replace(DATA, &dir));
    let sources = Sources::load_with(&placed, &mut |source| {
        let from = training::expand(&source.from.replace(DATA, &dir))?;
        Ok(datasets::load_source(&from)?)
    })?;
    match config.data.backbone {
        Some(_) => {
            let cache = place.out.join("cache/backbones");
            extractor::with_backbone(place.runtime, config, sources, place.progress, Some(&cache))
        }
        None => Ok(sources),
    }
}

/// Refuses zoos of one lineage before anything is trained.
fn check_lineages(experiment: &Experiment, sources: &Sources) -> Result<()> {
    let (seen, _) = sources.tasks(&experiment.generator)?;
    let per_task = experiment.generator.zoo.runs_per_task;
    for variant in &experiment.variants {
        let tasks = seen.iter().filter(|task| variant.learns(&task.source)).count() - usize::from(experiment.leave_out);
        if tasks * kept(per_task, variant.share) < 2 {
            let text = format!(
                "experiment {}: the zoo of variant {:?} has a single lineage; raise zoo.runs_per_task, so that a \
                 generator learns from at least 2 runs",
                experiment.name, variant.name
            );
            return Err(Error::input("config_invalid", text));
        }
    }
    Ok(())
}

impl<'a> Run<'a> {
    fn parts(&self) -> Vec<Member<'a>> {
        let left_out: Vec<Option<&str>> = match self.experiment.leave_out {
            true => self.experiment.generator.data.sources.iter().map(|s| Some(s.name.as_str())).collect(),
            false => vec![None],
        };
        let variants = self.experiment.variants.iter();
        let seeds = variants.flat_map(|variant| self.experiment.seeds.iter().map(move |&seed| (variant, seed)));
        let all =
            seeds.flat_map(|(variant, seed)| left_out.iter().map(move |&left_out| Member { variant, seed, left_out }));
        all.collect()
    }

    /// The runs that a generator learns from: a share of each task's, without those of a source.
    fn zoo(&self, part: &Member<'_>) -> Result<Zoo> {
        let per_task = self.experiment.generator.zoo.runs_per_task;
        let sets = first_sets(&self.sources.tasks(&self.experiment.generator)?.0, part.variant.sets);
        let wanted = |run: &stages::zoo::Run| {
            let source = run.task.source.as_str();
            part.left_out != Some(source) && part.variant.learns(source) && sets.contains(&set_of(&run.task))
        };
        // Runs of each architecture lie together, in rounds of one a task.
        let runs = |architecture| self.whole.runs.iter().filter(move |run| run.architecture == architecture).count();
        let sizes: Vec<usize> = (0..=self.whole.further.len()).map(runs).collect();
        let first = |architecture: usize| kept(per_task, part.variant.share) * (sizes[architecture] / per_task);
        let place = |i: usize, architecture: usize| i - sizes[..architecture].iter().sum::<usize>();
        let zoo = self.whole.subset(|i, run| place(i, run.architecture) < first(run.architecture) && wanted(run));
        zoo.ok_or_else(|| Error::Internal("no run is left of the zoo".into()))
    }

    fn spend<T>(&mut self, stage: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let value = work(self)?;
        self.spent(stage, start.elapsed().as_secs_f64());
        Ok(value)
    }

    fn spent(&mut self, stage: &str, seconds: f64) {
        match self.seconds.iter_mut().find(|(name, _)| name == stage) {
            Some((_, sum)) => *sum += seconds,
            None => self.seconds.push((stage.to_owned(), seconds)),
        }
    }

    fn part(&mut self, part: &Member<'_>) -> Result<()> {
        let zoo = self.zoo(part)?;
        let mut config = part.variant.generator.clone();
        config.seed = config.seed.wrapping_add(part.seed);
        let (bundle, seconds) = self.cache.generator(&config, &zoo, &self.sources)?;
        let single = part.variant.sampling.precision.is_single();
        let bundle = if single { bundle } else { training::precision::to_half(&bundle)? };
        seconds.iter().for_each(|(stage, s)| self.spent(stage, *s));
        let mut tar = Vec::new();
        bundle.write_tar(&mut tar)?;
        let generator = Generator::load(self.place.runtime, bundle)?;
        let embedded = publish::embed_runs(&generator, &zoo, &self.sources)?;
        let progress = self.place.progress;
        // The generator's own vectors, and the canonical form in which all variants are compared.
        let own = vectors::vectorise(&config, &zoo, progress)?;
        let base = Config { seed: config.seed, ..self.experiment.generator.clone() };
        let canonical = match base.vectors == config.vectors {
            true => own.clone(),
            false => vectors::vectorise(&base, &zoo, progress)?,
        };
        let bundle_bytes = tar.len();
        drop(tar);
        for target in targets::of(self.experiment, &zoo) {
            let (Some((own_zoo, checkpoints)), Some((whole, _))) = (target.only(&zoo)?, target.only(&self.whole)?)
            else {
                continue;
            };
            let vectors = |vectors: &Vectors| target.vectors(vectors, &zoo, &checkpoints);
            let own = vectors(&own);
            let of_it = zoo.runs.iter().zip(&embedded).filter(|(run, _)| target.index == Some(run.architecture));
            let made = Made {
                part,
                config: &config,
                base: &base,
                label: target.label.clone(),
                reference: vectors::mean(&own.aligned, own_zoo.parameters()),
                canonical: vectors(&canonical),
                zoo: own_zoo,
                whole,
                bundle_bytes,
                generator: generator.with_architecture(&target.architecture.name())?,
                embedded: of_it.map(|(_, embedding)| embedding.clone()).collect(),
                everything: if target.any_number { Some(&embedded) } else { None },
                own,
            };
            self.sets(&made, &target)?;
        }
        Ok(())
    }

    /// Measures one generator for one architecture, or number of classes, on all its sets of tasks.
    fn sets(&mut self, made: &Made<'_>, target: &Target) -> Result<()> {
        match made.part.left_out {
            Some(source) => {
                let (seen, _) = self.sources.tasks(&self.experiment.generator)?;
                let of_it = seen.iter().position(|task| task.source == source);
                let of_it = of_it.ok_or_else(|| Error::Internal(format!("no task of {source}")))?;
                self.set(made, "left out", &seen, &[of_it])?;
            }
            None => {
                for (name, tasks) in target.tasks(self.experiment, &self.sources)? {
                    // A generator of some sources is measured on theirs.
                    let own = |task: &Task| name == "left out" || made.part.variant.learns(&task.source);
                    let tasks: Vec<Task> = tasks.into_iter().filter(own).collect();
                    let targets: Vec<usize> = (0..tasks.len()).collect();
                    if !tasks.is_empty() {
                        self.set(made, name, &tasks, &targets)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Measures one generator on one set of tasks.
    fn set(&mut self, made: &Made<'_>, name: &str, tasks: &[Task], targets: &[usize]) -> Result<()> {
        let drawn = self.spend("generate", |run| run.generate(made, tasks, targets))?;
        let reconstructions = self.spend("generate", |run| run.reconstruct(made, tasks, targets))?;
        let (answered, answers) = self.spend("answer", |run| run.answers(made, tasks, targets, &drawn.generated))?;
        let e = self.experiment;
        let settings = Settings {
            arms: e.arms.clone(),
            samples: e.samples,
            epochs: e.epochs.clone(),
            batch: e.fine_tuning.batch,
            lr: e.fine_tuning.lr,
            seed: made.part.seed,
            details: true,
        };
        let (report, timing) = self.spend("compare", |run| {
            let comparison = Comparison {
                config: made.base,
                sources: &run.sources,
                zoo: &made.zoo,
                vectors: &made.canonical,
                whole: &made.whole,
                tasks,
                targets,
                generated: &drawn.generated,
                predicted: &drawn.predicted,
                near: &drawn.near,
                reconstructions,
                made: answered,
                settings: &settings,
                progress: run.place.progress,
            };
            let timing = e.timing.then(|| run.time(made, &comparison)).transpose()?;
            let tune = |t: usize, models| run.tune(made, &run.support_of(made, t, &tasks[t])?, models);
            let tunes = made.part.variant.sampling.tune > 0;
            Ok((comparison.run(if tunes { Some(&tune) } else { None })?, timing))
        })?;
        if e.weights_figure && self.weights.is_none() {
            self.weights = made.figure(tasks, targets, &drawn.generated)?;
        }
        self.keep(made, &format!("{}{name}", made.label), (report, timing, answers));
        Ok(())
    }

    fn keep(&mut self, made: &Made<'_>, set: &str, measured: (SetReport, Option<Timing>, Option<Answers>)) {
        let (report, timing, answers) = measured;
        let piece = Piece {
            seed: made.part.seed,
            left_out: made.part.left_out.map(str::to_owned),
            digest: made.generator.digest().to_owned(),
            bundle_bytes: made.bundle_bytes,
            zoo_runs: made.zoo.runs.len(),
            report,
            timing,
            answers,
        };
        let variant = &made.part.variant.name;
        match self.groups.iter_mut().find(|g| g.variant == *variant && g.set == set) {
            Some(group) => group.pieces.push(piece),
            None => self.groups.push(Group { variant: variant.clone(), set: set.to_owned(), pieces: vec![piece] }),
        }
    }

    /// Generated weights and nearest runs by task; empty for tasks that neither they nor the shuffled condition need.
    fn generate(&mut self, made: &Made<'_>, tasks: &[Task], targets: &[usize]) -> Result<Drawn> {
        let n = tasks.len();
        let mut drawn =
            Drawn { generated: vec![Vec::new(); n], predicted: vec![Vec::new(); n], near: vec![Vec::new(); n] };
        let stage = self.place.progress.stage("generate", tasks.len(), 0);
        for (t, task) in tasks.iter().enumerate() {
            stage.advance(1)?;
            if !targets.contains(&t) && !targets.contains(&((t + 1) % tasks.len())) {
                continue;
            }
            let (embedding, weights) = self.sample(made, task, t, self.experiment.samples)?;
            let near = near::runs(&embedding.dataset, &made.embedded, AVERAGED);
            drawn.near[t] = near.into_iter().map(|(run, _)| run).collect();
            drawn.predicted[t] = made.generator.predict(&weights, &embedding)?.unwrap_or_default();
            drawn.generated[t] = made.own(weights)?;
        }
        stage.finish();
        Ok(drawn)
    }

    /// What one model of each target costs: generated one after the other, and trained.
    fn time(&self, made: &Made<'_>, comparison: &Comparison<'_>) -> Result<Timing> {
        let start = Instant::now();
        for &t in comparison.targets {
            self.sample(made, &comparison.tasks[t], t, 1)?;
        }
        let generated_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        comparison.trained(comparison.targets)?;
        Ok(Timing {
            tasks: comparison.targets.len(),
            generated_seconds,
            trained_seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// Embedding of the `t`th task and networks generated for it.
    fn sample(&self, made: &Made<'_>, task: &Task, t: usize, count: usize) -> Result<(Embedding, Vec<Vec<f32>>)> {
        let (data, seed) = self.request(made, t, task)?;
        let embedding = made.generator.embed(&made.generator.features(data, &task.classes, seed)?)?;
        let options = SampleOptions { count, ..self.sampling(made, seed) };
        let sampling = &made.part.variant.sampling;
        let mut latents = made.generator.sample(&embedding, &options, &mut |_, _| true)?;
        if sampling.refine == 0 && sampling.tune == 0 && !sampling.recalibrate {
            let weights = made.generator.decode(&latents)?;
            return Ok((embedding, weights));
        }
        let support = self.support_of(made, t, task)?;
        if sampling.refine > 0 {
            let mut proceed = || self.place.progress.check().is_ok();
            latents = made.generator.refine(&latents, &support, &sampling.refinement(), &mut proceed)?;
        }
        let mut weights = made.generator.decode(&latents)?;
        if sampling.recalibrate {
            weights = made.recalibrated(&weights, &support, self.sources.frozen())?;
        }
        Ok((embedding, self.tune(made, &support, weights)?))
    }

    /// Fine-tunes networks on support images, as the variant does what it generates.
    fn tune(&self, made: &Made<'_>, support: &Dataset, networks: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>> {
        let architecture = &made.generator.architecture().config;
        let (steps, lr) = (made.part.variant.sampling.tune, self.experiment.fine_tuning.lr);
        Ok(fit::adapt(architecture, support, networks, steps, lr)?)
    }

    /// The support images of the `t`th task, as networks take them.
    fn support_of(&self, made: &Made<'_>, t: usize, task: &Task) -> Result<Dataset> {
        let (data, seed) = self.request(made, t, task)?;
        Ok(made.generator.gather_support(data, &task.classes, seed)?.whole().data)
    }

    /// Validation images of a task's source, and the seed of its request: which of them are the support, and the noise.
    fn request(&self, made: &Made<'_>, t: usize, task: &Task) -> Result<(&Dataset, u64)> {
        let data = self.support.get(&task.source);
        let data = data.ok_or_else(|| Error::Internal(format!("no data for task {task}")))?;
        Ok((data, (made.part.seed << 32) + t as u64))
    }

    fn sampling(&self, made: &Made<'_>, seed: u64) -> SampleOptions {
        let sampling = &made.part.variant.sampling;
        SampleOptions {
            count: self.experiment.samples,
            seed,
            sampler: sampling.sampler,
            steps: Some(sampling.steps),
            eta: Some(sampling.eta),
            guidance: sampling.guidance as f32,
            latent_noise: sampling.latent_noise as f32,
            quality: sampling.quality.map(|q| q as f32),
            ..SampleOptions::default()
        }
    }

    /// Closed forms of the support that the generator has, and what the service would answer; for linear heads.
    fn answers(
        &self,
        made: &Made<'_>,
        tasks: &[Task],
        targets: &[usize],
        generated: &[Vec<Vec<f32>>],
    ) -> Result<(Models, Option<Answers>)> {
        let arms = &self.experiment.arms;
        let mut models = Models::new();
        if !made.generator.is_head() {
            return Ok((models, None));
        }
        let mut zoo = made.zoo();
        let mut answers = Answers::default();
        for &t in targets {
            self.place.progress.check()?;
            let task = &tasks[t];
            let (data, seed) = self.request(made, t, task)?;
            let support = made.generator.gather_support(data, &task.classes, seed)?;
            let part = support.whole();
            let generated = if support.folds() > 0 { generated[t].as_slice() } else { &[] };
            for (form, theta) in made.generator.closed_forms(&part.data, generated)? {
                models.entry(arm_of(form)).or_default().push((t, theta));
            }
            if arms.contains(&Arm::Answer) {
                let first = answer(made, &mut zoo, &support, &self.sampling(made, seed), &mut answers)?;
                models.entry(Arm::Answer).or_default().push((t, first));
            }
        }
        Ok((models, (!answers.distances.is_empty()).then_some(answers)))
    }

    /// The last checkpoints of held-out and of learned runs through the VAE and back: of the targets' tasks where
    /// there are such, else of any.
    fn reconstruct(&mut self, made: &Made<'_>, tasks: &[Task], targets: &[usize]) -> Result<Reconstructions> {
        if !self.experiment.arms.contains(&Arm::Reconstruction) {
            return Ok(Reconstructions::default());
        }
        let wanted: Vec<&Task> = targets.iter().map(|&t| &tasks[t]).collect();
        let last = made.zoo.last_checkpoints();
        let d = made.zoo.parameters();
        let of = |checkpoints: &[usize]| -> Result<Vec<(Task, Vec<f32>)>> {
            let is_last = |c: &&usize| last[made.zoo.checkpoints[**c].run] == **c;
            let all: Vec<usize> = checkpoints.iter().filter(is_last).copied().collect();
            let own = all.iter().filter(|&&c| wanted.contains(&made.zoo.task(c))).copied().collect::<Vec<_>>();
            let few = self.limited(&made.zoo, &own);
            let few = if few.is_empty() { spread(&all, RECONSTRUCTED) } else { few };
            let rows = few.iter().map(|&c| made.own.aligned[c * d..][..d].to_vec());
            made.through(few.iter().map(|&c| made.zoo.task(c).clone()), rows.collect())
        };
        match made.part.left_out {
            None => Ok(Reconstructions { held_out: of(&made.own.held_out)?, train: of(&made.own.train)? }),
            // The VAE saw no checkpoint of this source.
            Some(source) => {
                let whole = &made.whole;
                let last = whole.last_checkpoints();
                let own: Vec<usize> = last.into_iter().filter(|&c| whole.task(c).source == source).collect();
                let few = self.limited(whole, &own);
                let rows = few.iter().map(|&c| made.aligned(whole.weights(c))).collect::<Result<_>>()?;
                let held_out = made.through(few.iter().map(|&c| whole.task(c).clone()), rows)?;
                Ok(Reconstructions { held_out, train: Vec::new() })
            }
        }
    }

    /// No more checkpoints of a task than samples.
    fn limited(&self, zoo: &Zoo, checkpoints: &[usize]) -> Vec<usize> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let few = checkpoints.iter().copied().filter(|&c| {
            let count = counts.entry(zoo.task(c).to_string()).or_default();
            *count += 1;
            *count <= self.experiment.samples
        });
        few.collect()
    }

    fn outcome(self) -> Outcome {
        Outcome {
            experiment: self.experiment.clone(),
            zoo: self.whole.digest.clone(),
            zoo_accuracy: self.whole.mean_accuracy(),
            zoo_runs: self.whole.runs.len(),
            zoo_checkpoints: self.whole.checkpoints.len(),
            architecture: self.whole.architectures().map(weights::Architecture::name).collect::<Vec<_>>().join(", "),
            parameters: self.whole.architectures().map(|a| a.layout().parameters()).max().unwrap_or(0),
            generated: self.whole.part.as_ref().map(|part| part.layout().parameters()),
            seconds: self.seconds,
            peak_rss_mib: peak_rss_mib(),
            groups: self.groups,
            weights: self.weights,
        }
    }
}

/// The arm of a closed form.
fn arm_of(form: ClosedForm) -> Arm {
    match form {
        ClosedForm::Ridge => Arm::ClosedFormRidge,
        ClosedForm::Centroid => Arm::ClosedFormCentroid,
        ClosedForm::Blend => Arm::ClosedFormBlend,
        ClosedForm::Adapted => Arm::Adapted,
    }
}

/// Models of arms, by the task of each.
type Models = BTreeMap<Arm, Vec<(usize, Vec<f32>)>>;

/// What the service would hand out for a support: the first of the candidates that it ranks.
fn answer(
    made: &Made<'_>,
    zoo: &mut AnsweringZoo<'_>,
    support: &Support,
    options: &SampleOptions,
    answers: &mut Answers,
) -> Result<Vec<f32>> {
    let embedding = made.generator.embed(&support.whole().features)?;
    let distance = zoo.distance(&embedding.dataset);
    answers.distances.extend(distance);
    let familiarity = made.generator.familiarity(&embedding);
    let near = familiarity.as_ref().map(|familiarity| familiarity.near);
    answers.class_distances.extend(familiarity.map(|familiarity| familiarity.distances));
    let maker = Maker { generator: &made.generator, options, origins: &Origin::ALL, distance, near, place: zoo };
    let ranked = maker.rank(support, &embedding, None, RankBy::LeaveOneOut)?;
    let first = ranked.candidates.into_iter().next();
    let first = first.ok_or_else(|| Error::Internal("there are no candidates".into()))?;
    let name = first.method.map_or(first.origin.as_str(), ClosedForm::as_str);
    *answers.origins.entry(name.to_owned()).or_default() += 1;
    Ok(first.theta)
}

/// What was generated, by task; empty for tasks that need none.
struct Drawn {
    generated: Vec<Vec<Vec<f32>>>,
    /// Accuracies that the generator's predictor expects; empty without one.
    predicted: Vec<Vec<f64>>,
    /// The nearest runs.
    near: Vec<Vec<usize>>,
}
