//! What a graph must take and give, checked when a generator is loaded and not at the first request.

use ort::session::Session;
use ort::value::{Outlet, TensorElementType, TensorRef};
use weights::manifest::TEXT;
use weights::{Layout, Manifest, ParamSpec};

use crate::error::{Error, Result, check_finite, check_length};
use crate::pool::SessionPool;

/// A tensor that a graph takes or gives; `None` is the batch dimension.
pub(crate) struct Slot<'a> {
    pub name: &'a str,
    pub shape: Vec<Option<usize>>,
    pub types: &'static [TensorElementType],
}

const FLOAT: &[TensorElementType] = &[TensorElementType::Float32];
const TIMESTEP: &[TensorElementType] = &[TensorElementType::Float32, TensorElementType::Int64];

impl<'a> Slot<'a> {
    /// f32 `[batch, shape…]`.
    pub fn batch(name: &'a str, shape: &[usize]) -> Self {
        let shape = std::iter::once(None).chain(shape.iter().copied().map(Some)).collect();
        Self { name, shape, types: FLOAT }
    }

    /// f32 `[shape…]`.
    pub fn fixed(name: &'a str, shape: &[usize]) -> Self {
        Self { name, shape: shape.iter().copied().map(Some).collect(), types: FLOAT }
    }

    /// f32 or i64 `[batch]`.
    pub fn timestep(name: &'a str) -> Self {
        Self { name, shape: vec![None], types: TIMESTEP }
    }

    fn describe(&self) -> String {
        let dims: Vec<String> =
            self.shape.iter().map(|d| d.map_or_else(|| "batch".to_owned(), |d| d.to_string())).collect();
        format!("{} [{}]", self.name, dims.join(", "))
    }
}

/// Most values of one tensor of a sample, and most steps of a schedule: a bundle may come from anywhere, and what it
/// says decides how much memory a request takes.
const MOST_VALUES: usize = 1 << 26;
const MOST_STEPS: usize = 100_000;

/// Checks the numbers of a manifest that sampling relies on.
///
/// # Errors
/// [`Error::Bundle`] names the first that cannot be used.
pub(crate) fn check_manifest(manifest: &Manifest) -> Result<()> {
    let (encoder, schedule) = (&manifest.encoder, &manifest.schedule);
    let known = match &manifest.extractor {
        None if manifest.text.is_some() => encoder.extractor == TEXT,
        None => encoder.extractor == "pixels",
        Some(used) => used.spec.name == encoder.extractor && encoder.extractor != "pixels",
    };
    if !known {
        return Err(Error::Bundle(format!(
            "its feature extractor is {:?}; it must be \"pixels\", or the one that the bundle has",
            encoder.extractor
        )));
    }
    let sizes: [(&str, &[usize]); 5] = [
        ("latent.shape", &manifest.latent.shape),
        ("encoder.embedding_dim", &[encoder.embedding_dim]),
        ("encoder.condition_dim", &[encoder.condition_dim]),
        ("encoder.input_shape", &encoder.input_shape),
        ("the encoder's features", &[encoder.classes, encoder.images_per_class, encoder.feature_dim]),
    ];
    for (name, dims) in sizes {
        let size = dims.iter().try_fold(1usize, |size, &d| size.checked_mul(d));
        if !size.is_some_and(|size| (1..=MOST_VALUES).contains(&size)) {
            return Err(Error::Bundle(format!("{name} is {dims:?}; its size must be from 1 to {MOST_VALUES} values")));
        }
    }
    let features = match &manifest.extractor {
        Some(used) => used.spec.dim,
        None => encoder.input_shape.iter().product::<usize>(),
    };
    if features != encoder.feature_dim {
        let (shape, dim) = (&encoder.input_shape, encoder.feature_dim);
        return Err(Error::Bundle(format!("examples of shape {shape:?} do not have feature_dim {dim}")));
    }
    if schedule.steps > MOST_STEPS {
        return Err(Error::Bundle(format!("schedule.steps is {}; it must be at most {MOST_STEPS}", schedule.steps)));
    }
    Ok(())
}

/// Checks names, types and shapes of a graph's inputs and outputs.
///
/// # Errors
/// [`Error::Bundle`] with the graph, what it has and what the manifest asks for.
pub(crate) fn check(pool: &SessionPool, inputs: &[Slot<'_>], outputs: &[Slot<'_>]) -> Result<()> {
    let lease = pool.lease()?;
    let Some(session) = lease.session() else { return Ok(()) };
    check_side(pool.name(), "input", session.inputs(), inputs)?;
    check_side(pool.name(), "output", session.outputs(), outputs)
}

fn check_side(graph: &str, side: &str, found: &[Outlet], wanted: &[Slot<'_>]) -> Result<()> {
    for slot in wanted {
        let Some(outlet) = found.iter().find(|o| o.name() == slot.name) else {
            return Err(Error::Bundle(format!("{graph} has no {side} {}", slot.describe())));
        };
        if !fits(outlet, slot, side) {
            let what = outlet.dtype();
            return Err(Error::Bundle(format!("{graph} has {side} {} as {what}, not {}", slot.name, slot.describe())));
        }
    }
    match found.iter().find(|o| wanted.iter().all(|slot| slot.name != o.name())) {
        Some(extra) if side == "input" => {
            Err(Error::Bundle(format!("{graph} has the input {}, which the format does not know", extra.name())))
        }
        _ => Ok(()),
    }
}

fn fits(outlet: &Outlet, slot: &Slot<'_>, side: &str) -> bool {
    let (Some(ty), Some(shape)) = (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape()) else { return false };
    // A graph may leave an output's shape open; its length is checked at each run.
    let open = side == "output" && shape.is_empty();
    let same = |(declared, wanted): (&i64, &Option<usize>)| match (usize::try_from(*declared), wanted) {
        (Ok(declared), Some(wanted)) => declared == *wanted,
        // A fixed batch could not take another number of samples.
        (Ok(_), None) => false,
        (Err(_), _) => true,
    };
    slot.types.contains(&ty) && (open || (shape.len() == slot.shape.len() && shape.iter().zip(&slot.shape).all(same)))
}

/// Element type of the input `name`.
pub(crate) fn input_type(session: &Session, name: &str) -> Option<TensorElementType> {
    session.inputs().iter().find(|o| o.name() == name).and_then(|o| o.dtype().tensor_type())
}

/// `data` as a tensor `[rows, shape…]`, without a copy.
pub(crate) fn batch_view<'a>(
    pool: &SessionPool,
    rows: usize,
    shape: &[usize],
    data: &'a [f32],
) -> Result<TensorRef<'a, f32>> {
    let shape: Vec<usize> = std::iter::once(rows).chain(shape.iter().copied()).collect();
    TensorRef::from_array_view((shape, data)).map_err(|e| pool.failed(e))
}

/// Those parameters of the network `theta` (`[d]` of `layout`) that `taken` chooses, with their names, without a copy.
pub(crate) fn parameters<'a>(
    pool: &SessionPool,
    layout: &'a Layout,
    theta: &'a [f32],
    taken: impl Fn(&ParamSpec) -> bool,
) -> Result<Vec<(&'a str, TensorRef<'a, f32>)>> {
    check_length("the weights", theta.len(), layout.parameters())?;
    check_finite("the weights", theta)?;
    let view = |p: &'a ParamSpec| {
        let view = TensorRef::from_array_view((p.shape.clone(), &theta[p.range()]));
        Ok((p.name.as_str(), view.map_err(|e| pool.failed(e))?))
    };
    layout.params.iter().filter(|p| taken(p)).map(view).collect()
}

/// The values of the output `name`, of which there must be `length`.
pub(crate) fn output<'s>(
    pool: &SessionPool,
    outputs: &'s ort::session::SessionOutputs<'_>,
    name: &str,
    length: usize,
) -> Result<&'s [f32]> {
    let value = outputs.get(name).ok_or_else(|| pool.failed(format!("it gave no output {name}")))?;
    let (shape, data) = value.try_extract_tensor::<f32>().map_err(|e| pool.failed(e))?;
    match data.len() == length {
        true => Ok(data),
        false => Err(pool.failed(format!("output {name} has shape {shape} where {length} values are needed"))),
    }
}
