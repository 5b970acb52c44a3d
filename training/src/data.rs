//! The labelled data of a configuration, split once, and the batches drawn from it.

mod tasks;

use datasets::{Dataset, Split, Task};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use weights::manifest::{ExtractorSpec, ExtractorUse};

use crate::config::{Config, Role, SourceConfig};
use crate::error::{Error, Result};
use crate::frozen::Frozen;
use crate::random;

/// Which part of the examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Models and generators train on these.
    Train,
    /// Support images of requests.
    Validation,
    /// Accuracies are measured on these only.
    Test,
}

/// A source with its split.
#[derive(Debug)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// All examples as the networks see them.
    pub data: Dataset,
    /// The same examples as the dataset encoder sees them, where that differs.
    features: Option<Dataset>,
    /// The same examples after the frozen half of the networks, where a part of them is trained.
    begun: Option<Dataset>,
    by_class: [Vec<Vec<usize>>; 3],
}

/// All sources of a configuration.
#[derive(Debug)]
pub struct Sources {
    list: Vec<Source>,
    extractor: Option<Extracted>,
    frozen: Option<Frozen>,
}

/// The extractor that the data went through.
#[derive(Debug, Clone)]
pub struct Extracted {
    /// What it takes and gives, and whether the networks see features.
    pub used: ExtractorUse,
    /// Its graph.
    pub onnx: Vec<u8>,
    /// Shape of the images before it.
    pub images: Vec<usize>,
}

/// A feature extractor, as training needs it; it is run elsewhere.
pub trait Extract {
    /// What it takes and gives.
    fn spec(&self) -> &ExtractorSpec;
    /// Its ONNX graph, which the bundle carries.
    fn onnx(&self) -> &[u8];
    /// A dataset of features `[dim]` with the labels and in the order of the images.
    ///
    /// # Errors
    /// A sentence, when it fails.
    fn extract(&self, images: &Dataset) -> std::result::Result<Dataset, String>;
}

/// Indices of one task's examples of one part, per class in the task's order.
#[derive(Debug, Clone)]
pub struct TaskData<'a> {
    source: &'a Source,
    classes: Vec<&'a [usize]>,
    /// What is drawn.
    data: &'a Dataset,
    frozen: Option<&'a Frozen>,
}

impl Source {
    /// All examples of one part, with the classes of the source.
    pub fn dataset(&self, part: Part) -> Dataset {
        let mut indices: Vec<usize> = self.by_class[part as usize].iter().flatten().copied().collect();
        indices.sort_unstable();
        let mut data = self.data.take(&indices);
        data.name = format!("{}-{part}", self.name);
        data
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

impl Sources {
    /// Loads and splits all sources; equal seeds give equal splits.
    ///
    /// # Errors
    /// When a source cannot be read, an environment variable is not set, or sources differ in shape.
    pub fn load(config: &Config) -> Result<Self> {
        Self::load_with(config, &mut |source| Ok(datasets::load_source(&expand(&source.from)?)?))
    }

    /// As [`Sources::load`], with data from `read`: for sources that are not files, such as those of a registry.
    ///
    /// # Errors
    /// As [`Sources::load`], and those of `read`.
    pub fn load_with(config: &Config, read: &mut dyn FnMut(&SourceConfig) -> Result<Dataset>) -> Result<Self> {
        let sources = config.data.sources.iter();
        let list = sources.map(|source| prepare(config, source, read(source)?)).collect::<Result<Vec<_>>>()?;
        if let Some(other) = list.iter().find(|s| s.data.shape != list[0].data.shape) {
            return Err(Error::Config(format!(
                "source {} has examples of shape {:?}, {} of {:?}; set `resize` so that all are equal",
                other.name, other.data.shape, list[0].name, list[0].data.shape
            )));
        }
        let mut sources = Self { list, extractor: None, frozen: None };
        sources.freeze(config)?;
        Ok(sources)
    }

    /// Runs the frozen half of the networks on all examples, where the configuration trains a part of them.
    fn freeze(&mut self, config: &Config) -> Result<()> {
        if config.zoo.start.is_none() {
            return Ok(());
        }
        let (seen, _) = self.tasks(config)?;
        let classes = seen.first().map_or(0, |task| task.classes.len());
        let architectures = config.build_architectures(self.input_shape(), classes)?;
        let architecture = architectures.first().ok_or_else(|| Error::Config("there is no architecture".into()))?;
        let Some(frozen) = Frozen::load(config, architecture)? else { return Ok(()) };
        for source in &mut self.list {
            source.begun = Some(frozen.begun(&source.data)?);
        }
        self.frozen = Some(frozen);
        Ok(())
    }

    /// The networks' frozen rest, where a part of them is trained.
    pub fn frozen(&self) -> Option<&Frozen> {
        self.frozen.as_ref()
    }

    /// The sources with the features of the configuration's extractor in place of pixels, or beside them.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration names another one, the data are no images, or it fails.
    pub fn extracted(mut self, config: &Config, extractor: &dyn Extract) -> Result<Self> {
        let spec = extractor.spec();
        if config.extractor() != Some(&spec.name) {
            let named = config.extractor().unwrap_or("none");
            return Err(Error::Config(format!("the extractor is {}, the configuration names {named}", spec.name)));
        }
        let networks = config.data.extractor.is_some() || config.data.backbone.is_some();
        let used = ExtractorUse { spec: spec.clone(), networks };
        let images = self.input_shape().to_vec();
        for source in &mut self.list {
            let features = extractor.extract(&source.data).map_err(|e| {
                Error::Config(format!("source {}: the extractor {} fails: {e}", source.name, spec.name))
            })?;
            match used.networks {
                true => source.data = features,
                false => source.features = Some(features),
            }
        }
        self.extractor = Some(Extracted { used, onnx: extractor.onnx().to_vec(), images });
        Ok(self)
    }

    /// The extractor that the data went through.
    pub fn extractor(&self) -> Option<&Extracted> {
        self.extractor.as_ref()
    }

    /// Refuses data that did not go through the configuration's extractor.
    pub(crate) fn check_extractor(&self, config: &Config) -> Result<()> {
        match (config.extractor(), &self.extractor) {
            (Some(name), None) => {
                Err(Error::Config(format!("the configuration needs the features of the extractor {name}")))
            }
            _ => Ok(()),
        }
    }

    /// Values of one example as the dataset encoder sees it.
    pub fn feature_dim(&self) -> usize {
        let first = &self.list[0];
        first.features.as_ref().unwrap_or(&first.data).dim()
    }

    /// The sources.
    pub fn list(&self) -> &[Source] {
        &self.list
    }

    /// Shape of one example.
    pub fn input_shape(&self) -> &[usize] {
        &self.list[0].data.shape
    }

    /// A task's examples of one part.
    ///
    /// # Errors
    /// When the source or a class does not exist.
    pub fn task(&self, task: &Task, part: Part) -> Result<TaskData<'_>> {
        let source = self
            .list
            .iter()
            .find(|s| s.name == task.source)
            .ok_or_else(|| Error::Config(format!("task {task}: there is no source of that name")))?;
        let by_class = &source.by_class[part as usize];
        let classes = task
            .classes
            .iter()
            .map(|&c| by_class.get(c as usize).map(Vec::as_slice))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::Config(format!("task {task}: the source has {} classes", by_class.len())))?;
        let data = source.begun.as_ref().unwrap_or(&source.data);
        Ok(TaskData { source, classes, data, frozen: self.frozen.as_ref() })
    }

    /// The sources of one role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Source> {
        self.list.iter().filter(move |source| source.role == role)
    }
}

fn prepare(config: &Config, source: &SourceConfig, mut data: Dataset) -> Result<Source> {
    if let Some([height, width]) = source.resize
        && data.shape[1..] != [height, width]
    {
        data = data.resize(height, width)?;
    }
    if let Some(channels) = source.channels.filter(|&channels| data.shape.len() == 3 && data.shape[0] != channels) {
        data = data.with_channels(channels)?;
    }
    data = without_twins(&data);
    let limit = source.limit_per_class.unwrap_or(config.data.limit_per_class);
    if limit > 0 {
        let all: Vec<usize> = (0..data.len()).collect();
        let mut keep = Vec::new();
        let mut rng = random::stream(config.seed, &format!("limit {}", source.name));
        for mut class in data.class_indices(&all) {
            class.shuffle(&mut rng);
            class.truncate(limit);
            keep.extend(class);
        }
        keep.sort_unstable();
        data = data.take(&keep);
    }
    data.name.clone_from(&source.name);
    let Split { train, validation, test } =
        datasets::split(&data, config.seed, config.data.validation, config.data.test)?;
    let by_class = [train, validation, test].map(|part| data.class_indices(&part));
    Ok(Source { name: source.name.clone(), role: source.role, data, features: None, begun: None, by_class })
}

/// Drops examples whose values equal an earlier one's: a twin could otherwise lie in train and in test.
fn without_twins(data: &Dataset) -> Dataset {
    let mut seen = std::collections::HashSet::new();
    let mut row = vec![0f32; data.dim()];
    let keep: Vec<usize> = (0..data.len())
        .filter(|&i| {
            data.write_features(i, &mut row);
            let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
            seen.insert(weights::digest::sha256(&bytes))
        })
        .collect();
    data.take(&keep)
}

/// Replaces `${NAME}` by the environment's value.
///
/// # Errors
/// [`Error::Config`] when it is not set, or a brace is missing.
pub fn expand(text: &str) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let tail = &rest[start + 2..];
        let end = tail.find('}').ok_or_else(|| Error::Config(format!("{text}: a `${{` has no `}}`")))?;
        let name = &tail[..end];
        let value = std::env::var(name).map_err(|_| {
            Error::Config(format!("{text}: set the environment variable {name} to the folder that holds the data"))
        })?;
        out.push_str(&rest[..start]);
        out.push_str(&value);
        rest = &tail[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

impl<'a> TaskData<'a> {
    /// What tells it from other tasks of the same part.
    pub(crate) fn name(&self) -> String {
        let first = |class: &&[usize]| class.first().copied();
        format!("{} {:?}", self.source.name, self.classes.iter().map(first).collect::<Vec<_>>())
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// Examples of the smallest class.
    pub fn per_class(&self) -> usize {
        self.classes.iter().map(|c| c.len()).min().unwrap_or(0)
    }

    /// The same examples as the dataset encoder sees them.
    #[must_use]
    pub fn for_encoder(self) -> Self {
        Self { data: self.source.features.as_ref().unwrap_or(&self.source.data), ..self }
    }

    /// Name of its source.
    pub(crate) fn source(&self) -> &str {
        &self.source.name
    }

    /// The networks' frozen rest, where a part of them is trained: examples are then what its first half makes of them.
    pub fn frozen(&self) -> Option<&'a Frozen> {
        self.frozen
    }

    /// Features of one example.
    pub fn dim(&self) -> usize {
        self.data.dim()
    }

    /// Appends the features of `n` examples of each class, drawn without replacement where there are enough,
    /// class-major, to `out`.
    pub fn draw(&self, n: usize, rng: &mut ChaCha8Rng, out: &mut Vec<f32>) {
        for class in &self.classes {
            for index in rand::seq::index::sample(rng, class.len(), n.min(class.len())) {
                self.push(class[index], out);
            }
            for _ in class.len()..n {
                self.push(class[rng.random_range(0..class.len())], out);
            }
        }
    }

    /// The first `n` examples of each class, class-major: features `[classes · n · dim]`.
    pub fn first(&self, n: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.classes.len() * n * self.dim());
        for class in &self.classes {
            for &index in &class[..n.min(class.len())] {
                self.push(index, &mut out);
            }
        }
        out
    }

    /// Index lists per class, for epochs over all examples.
    pub(crate) fn index_lists(&self) -> Vec<Vec<usize>> {
        self.classes.iter().map(|c| c.to_vec()).collect()
    }

    /// Appends one example's features.
    pub(crate) fn push(&self, index: usize, out: &mut Vec<f32>) {
        let start = out.len();
        out.resize(start + self.dim(), 0.0);
        self.data.write_features(index, &mut out[start..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(left_out: &str) -> (Config, Sources) {
        let text = format!(
            "name = \"t\"\n[data]\nsources = [{{ name = \"a\", from = \"digits\" }}, \
             {{ name = \"b\", from = \"digits\", role = \"{left_out}\" }}]\nlimit_per_class = 20\n\
             backbone = {{ kind = \"pca\", dim = 5 }}\n\
             [tasks]\nkind = \"class_sets\"\nclasses = 3\nseen = 40\norders = 2\n[architecture]\nkind = \"head\"\n\
             [zoo]\nfit = \"ridge\"\n[denoiser]\nkind = \"mlp\"\nwidth = 8\nblocks = 1\n"
        );
        let config = Config::parse(&text).unwrap();
        // The second source has images of its own: the digits inverted.
        let sources = Sources::load_with(&config, &mut |source| {
            let mut data = datasets::load_source(&source.from)?;
            if source.name == "b" {
                let values = data.gather(&(0..data.len()).collect::<Vec<_>>());
                data.data = datasets::Data::F32(values.into_iter().map(|v| 1.0 - v).collect());
            }
            Ok(data)
        });
        (config, sources.unwrap())
    }

    #[test]
    fn a_source_may_have_a_limit_of_its_own() {
        let (mut config, _) = sources("left_out");
        let per_class = |config: &Config| {
            let sources = Sources::load(config).unwrap();
            sources.list().iter().map(|s| s.data.len() / s.data.class_names.len()).collect::<Vec<_>>()
        };
        let of_all = serde_json::to_string(&config.data.sources).unwrap();
        assert_eq!(per_class(&config), [20, 20]);
        config.data.sources[1].limit_per_class = Some(8);
        assert_eq!(per_class(&config), [20, 8]);
        // What was made before the key was there keeps its identity.
        assert!(!of_all.contains("limit_per_class"));
    }

    #[test]
    fn roles_decide_where_tasks_and_backbone_come_from() {
        let silent = crate::progress::Progress::silent();
        let backbone = |(config, sources): &(Config, Sources)| crate::backbone::fit(config, sources, &silent).unwrap();
        let (whole, left, only) = (sources("zoo"), sources("left_out"), sources("backbone"));
        let names = |tasks: &[Task]| tasks.iter().map(|t| t.source.clone()).collect::<std::collections::BTreeSet<_>>();
        let (seen, unseen) = left.1.tasks(&left.0).unwrap();
        assert_eq!((names(&seen), names(&unseen)), (["a".to_owned()].into(), ["a".to_owned()].into()));
        let out = left.1.left_out(&left.0);
        assert_eq!((names(&out), out.len()), (["b".to_owned()].into(), 120));
        assert_eq!(names(&whole.1.tasks(&whole.0).unwrap().0).len(), 2);
        assert!(whole.1.left_out(&whole.0).is_empty() && only.1.left_out(&only.0).is_empty());
        // The images of what is left out change nothing; those of the others do.
        let (a, b, c) = (backbone(&left), backbone(&whole), backbone(&only));
        assert!(a.onnx != b.onnx && a.onnx != c.onnx && b.onnx != c.onnx);
        let (config, mut alone) = sources("left_out");
        alone.list.truncate(1);
        assert_eq!(backbone(&(config, alone)).onnx, a.onnx);
    }
}
