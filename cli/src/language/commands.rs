//! What the commands do.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ::language::evaluate::Candidate;
use ::language::generator::Generator;
use ::language::lm::{tokens, train as fit};
use ::language::model::Model;
use ::language::rewrite::rewrite;
use ::language::search::{Proposal, SearchConfig, search as algorithm_1};
use ::language::soup::soup as mix;
use ::language::spectra::spectra;
use training::stages::layers::LayersConfig;

use super::{Evaluate, Generate, Learn, Search, Soup, Train, absent, evaluators, lines};
use crate::context::{peak_rss_mib, prepare, progress, say};
use crate::error::{Error, Result};

/// One text of so many is kept back to measure on.
const HELD_OUT: usize = 20;

pub fn train(args: &Train) -> Result<()> {
    absent(&args.out)?;
    prepare(&args.out)?;
    let (mut learned, mut held_out) = (Vec::new(), Vec::new());
    for (i, line) in lines(&args.text)?.into_iter().enumerate() {
        if i % HELD_OUT == HELD_OUT - 1 { held_out.push(line) } else { learned.push(line) }
    }
    let tokenizer = tokens::learn(&learned, args.vocabulary)?;
    let vocabulary = tokenizer.get_vocab_size(true);
    let config = fit::small(args.family.into(), vocabulary, args.width, args.layers, args.heads, args.length)?;
    let (train, test) = (tokens::encode(&tokenizer, &learned)?, tokens::encode(&tokenizer, &held_out)?);
    let settings =
        fit::TrainConfig { steps: args.steps, batch: args.batch, length: args.length, lr: args.lr, seed: args.seed };
    let decoder = fit::train(&config, &train, &settings, &progress()?)?;
    decoder.save(&args.out, &tokenizer)?;
    let parameters: usize = config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    say(&format!("{}: {parameters} parameters, {} tokens to learn from", args.out.display(), train.len()));
    if test.len() > args.length {
        let (own, unigram) =
            (decoder.loss(&test, args.length)?.exp(), tokens::unigram_perplexity(&train, &test, vocabulary));
        say(&format!("perplexity on {} tokens held out: {own:.2}; of token frequencies: {unigram:.2}", test.len()));
    }
    Ok(())
}

pub fn evaluate(args: &Evaluate) -> Result<()> {
    let model = Model::open(&args.model)?;
    let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
    let mut evaluator = evaluators::open(&args.score, &model, folder.path())?;
    let score = evaluator.score(&mut Candidate { model: &model, changed: BTreeMap::new() })?;
    say(&format!("{score:.6} ({})", evaluator.describe()));
    if !args.score.text.is_empty() {
        say(&format!("perplexity {:.3}", (-score).exp()));
    }
    Ok(())
}

/// Settings of a file, or the defaults.
fn settings(path: Option<&Path>) -> Result<LayersConfig> {
    let Some(path) = path else {
        return Ok(LayersConfig::default());
    };
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    toml::from_str(&text).map_err(|e| Error::input("config_invalid", format!("{}: {e}", path.display())))
}

pub fn learn(args: &Learn) -> Result<()> {
    prepare(&args.out)?;
    let (model, progress, config) = (Model::open(&args.model)?, progress()?, settings(args.config.as_deref())?);
    let names = if args.matrix.is_empty() {
        let layers = spectra(&model, args.top, &progress)?;
        layers.into_iter().filter(|layer| layer.selected).map(|layer| layer.matrix.name).collect()
    } else {
        args.matrix.clone()
    };
    let generator = Generator::learn(&model, &names, &config, &progress)?;
    generator.save(&args.out)?;
    for (kind, moments) in generator.layers().kinds() {
        say(&format!("{kind}: deviation {:.5}, kurtosis {:.1}", moments.std, moments.kurtosis));
    }
    let count = generator.names().count();
    say(&format!("{}: {count} matrices, {} parameters", args.out.display(), generator.parameters()));
    Ok(())
}

pub fn generate(args: &Generate) -> Result<()> {
    absent(&args.out)?;
    let start = Instant::now();
    let model = Model::open(&args.model)?;
    let generator = Generator::open(&args.generator)?;
    generator.fits(&model)?;
    let parameters = generator.parameters();
    rewrite(&model, &args.out, &mut generator.sample(args.seed)?)?;
    let seconds = start.elapsed().as_secs_f64();
    let (rate, memory) = (parameters as f64 / seconds / 1e6, peak_rss_mib());
    let out = args.out.display();
    say(&format!("{out}: {parameters} parameters generated in {seconds:.1} s, {rate:.1} M a second, {memory:.0} MiB"));
    Ok(())
}

pub fn search(args: &Search) -> Result<()> {
    absent(&args.out)?;
    prepare(&args.out)?;
    let model = Model::open(&args.model)?;
    let generator = Generator::open(&args.generator)?;
    let course = args.course.clone().unwrap_or_else(|| PathBuf::from(format!("{}.course.json", args.out.display())));
    prepare(&course)?;
    let folder = tempfile::tempdir().map_err(Error::io(std::env::temp_dir()))?;
    let mut evaluator = evaluators::open(&args.score, &model, folder.path())?;
    let proposal = if args.noise { Proposal::Noise } else { Proposal::Generated };
    let (candidates, shares, retries) = (args.candidates, args.shares.clone(), args.retries);
    let config = SearchConfig { candidates, proposal, shares, seed: args.seed, retries };
    let (course, kept) = algorithm_1(&model, &generator, evaluator.as_mut(), (&config, &course), &progress()?)?;
    for step in &course.steps {
        let kept = step.kept.map_or("stays".to_owned(), |number| format!("candidate {number}"));
        say(&format!("{}: {kept}, score {:.6}", step.matrix, step.after));
    }
    Candidate { model: &model, changed: kept }.write(&args.out)?;
    let (before, after) = (course.initial, course.score());
    say(&format!("{}: score {before:.6} before, {after:.6} after ({})", args.out.display(), course.evaluator));
    Ok(())
}

pub fn soup(args: &Soup) -> Result<()> {
    absent(&args.out)?;
    let open = |text: &String| -> Result<(Model, f64)> {
        let (dir, weight) = match text.rsplit_once('=') {
            Some((dir, weight)) => {
                let number = weight.parse().map_err(|_| Error::input("usage", format!("{weight} is no weight")));
                (dir, number?)
            }
            None => (text.as_str(), 1.0),
        };
        Ok((Model::open(Path::new(dir))?, weight))
    };
    let models = args.models.iter().map(open).collect::<Result<Vec<_>>>()?;
    mix(&models, &args.out)?;
    say(&format!("{}: the mean of {} models", args.out.display(), models.len()));
    Ok(())
}
