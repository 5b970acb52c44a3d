//! Vectorising (paper A.2): how networks become rows of equal length, and the exact way back.
//!
//! Every network is cut into *pieces*, and a piece is one row, padded with zeros. Model-wise a network is one piece;
//! layer-wise each layer (its weight, then its bias and the like) is cut into chunks of its own; uniform, all layers are
//! concatenated and then cut. The pieces of all architectures of a zoo stand in one table, and the index of a piece in
//! it says what a row is: it is part of the denoiser's condition and of the VAE's.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, check_length};
use crate::layout::Layout;

/// Most pieces of a zoo's table: each is one entry of the index that joins the condition.
pub const MAX_PIECES: usize = 4096;

/// How networks become vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "snake_case")]
pub enum VectoriseMode {
    /// One vector a network, padded to the zoo's longest.
    #[default]
    ModelWise,
    /// Each layer padded to a multiple of the chunk, then cut.
    LayerWise,
    /// All layers one after the other, padded to a multiple of the chunk, then cut.
    Uniform,
}

impl VectoriseMode {
    fn name(self) -> &'static str {
        match self {
            Self::ModelWise => "model_wise",
            Self::LayerWise => "layer_wise",
            Self::Uniform => "uniform",
        }
    }
}

/// A range of one architecture's flat vector that is one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Which architecture, as an index into the zoo's.
    pub architecture: usize,
    /// The layer that it is cut from; all of them but where vectors are cut layer by layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Index of its first value in the network's flat vector.
    pub offset: usize,
    /// Values; the rest of the row is padding.
    pub len: usize,
}

impl Piece {
    /// Range of its values in the network's flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }
}

/// Linear heads of several numbers of classes as rows of one length: each is the head of the most classes, whose further
/// class rows are padding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRows {
    /// Features; a class row is one weight for each, and a bias.
    pub features: usize,
    /// Number of classes of each architecture.
    pub classes: Vec<usize>,
}

/// Values of a network that lie together in one of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which of the network's rows.
    pub row: usize,
    /// Index of its first value in the row.
    pub place: usize,
    /// Range of its values in the network's flat vector.
    pub range: Range<usize>,
}

/// Vectorising of a zoo: the mode, the length of a row and the table of pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vectorise {
    /// Mode.
    pub mode: VectoriseMode,
    /// Length of each row after padding: d_max, or the chunk.
    pub length: usize,
    /// The pieces of all architectures, architecture by architecture and in the order of the flat vector; empty where
    /// each network is one row and there is one architecture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
    /// Where the architectures are linear heads that differ in the number of classes: how they lie in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<ClassRows>,
}

impl Vectorise {
    /// Model-wise rows of one architecture, for networks with these numbers of parameters.
    pub fn model_wise(parameters: &[usize]) -> Self {
        let length = parameters.iter().copied().max().unwrap_or(0);
        Self { mode: VectoriseMode::ModelWise, length, pieces: Vec::new(), rows: None }
    }

    /// Rows of linear heads on `features` features whose architectures have these numbers of classes, of at most `most`.
    ///
    /// # Errors
    /// [`Error::Vectorise`] when a number is below 2 or above `most`, or there is none.
    pub fn class_rows(features: usize, classes: Vec<usize>, most: usize) -> Result<Self> {
        let length = features.checked_add(1).and_then(|row| row.checked_mul(most)).filter(|_| features > 0);
        let Some(length) = length else {
            return Err(Error::Vectorise(format!("there are no heads of {most} classes on {features} features")));
        };
        let rows = Some(ClassRows { features, classes });
        let vectorise = Self { mode: VectoriseMode::ModelWise, length, pieces: Vec::new(), rows };
        vectorise.check_class_rows()?;
        Ok(vectorise)
    }

    /// The most classes of a head, where architectures differ in the number of classes.
    pub fn most_classes(&self) -> Option<usize> {
        self.rows.as_ref().map(|rows| self.length / (rows.features + 1))
    }

    /// Of each class row whether a network of the architecture has it, 1 or 0, `[most classes]`; empty where networks do
    /// not differ in the number of classes.
    pub fn presence(&self, architecture: usize) -> Vec<f32> {
        let own = self.rows.as_ref().and_then(|rows| rows.classes.get(architecture)).copied().unwrap_or_default();
        (0..self.most_classes().unwrap_or_default()).map(|class| f32::from(u8::from(class < own))).collect()
    }

    /// Of each value of a row whether a network of the architecture has it, 1 or 0, `[length]`; none where networks do not
    /// differ in the number of classes.
    pub fn mask(&self, architecture: usize) -> Option<Vec<f32>> {
        let rows = self.rows.as_ref()?;
        let classes = rows.classes.get(architecture)?;
        self.cut(architecture, &vec![1.0; classes * (rows.features + 1)], 0.0).ok()
    }

    fn check_class_rows(&self) -> Result<()> {
        let Some(rows) = &self.rows else { return Ok(()) };
        let row = rows.features.saturating_add(1);
        let most = self.length / row;
        let fits = !rows.classes.is_empty() && rows.classes.iter().all(|k| (2..=most).contains(k));
        let whole = self.mode == VectoriseMode::ModelWise && self.pieces.is_empty();
        match whole && rows.features > 0 && self.length == most * row && fits {
            true => Ok(()),
            false => Err(Error::Vectorise(format!(
                "heads of {:?} classes on {} features do not lie in rows of {} values: each has from 2 to {most} classes",
                rows.classes, rows.features, self.length
            ))),
        }
    }

    /// The rows of a zoo of these architectures. `chunk` is the length of a row where vectors are cut.
    ///
    /// # Errors
    /// [`Error::Vectorise`] when there is a chunk where none belongs, none where one does, or there are too many pieces.
    pub fn new(mode: VectoriseMode, chunk: Option<usize>, layouts: &[Layout]) -> Result<Self> {
        let refuse = |text: String| Err(Error::Vectorise(text));
        let length = match (mode, chunk) {
            (VectoriseMode::ModelWise, None) => layouts.iter().map(Layout::parameters).max().unwrap_or(0),
            (VectoriseMode::ModelWise, Some(_)) => {
                return refuse("model_wise cuts no chunks: leave chunk out, or choose layer_wise or uniform".into());
            }
            (_, Some(chunk)) if chunk > 0 => chunk,
            _ => return refuse(format!("{} needs a chunk, the values of one row: at least 1", mode.name())),
        };
        if length == 0 {
            return refuse("there is no network with a parameter".into());
        }
        // Counted first: the table of a network of millions in chunks of one must not be built.
        let count: usize =
            layouts.iter().map(|l| spans(mode, l).map(|s| s.len().div_ceil(length)).sum::<usize>()).sum();
        if count > MAX_PIECES {
            let text = format!("a chunk of {length} cuts the networks into {count} pieces; the limit is {MAX_PIECES}");
            return refuse(format!("{text}: choose a larger chunk"));
        }
        let mut pieces = Vec::with_capacity(count);
        for (architecture, layout) in layouts.iter().enumerate() {
            for span in spans(mode, layout) {
                for offset in span.range.clone().step_by(length) {
                    let len = length.min(span.range.end - offset);
                    pieces.push(Piece { architecture, layer: span.layer.clone(), offset, len });
                }
            }
        }
        if mode == VectoriseMode::ModelWise && layouts.len() == 1 {
            pieces.clear();
        }
        Ok(Self { mode, length, pieces, rows: None })
    }

    /// Entries of the index that says which piece a row is; 0 where all rows are of one kind.
    pub fn index_dim(&self) -> usize {
        if self.pieces.len() > 1 { self.pieces.len() } else { 0 }
    }

    /// Number of kinds of rows, at least 1: those that statistics are kept of.
    pub fn kinds(&self) -> usize {
        self.pieces.len().max(1)
    }

    /// The pieces of an architecture, as indices into the table; there is always at least one.
    pub fn pieces_of(&self, architecture: usize) -> Range<usize> {
        if self.pieces.is_empty() {
            return 0..1;
        }
        let start = self.pieces.partition_point(|p| p.architecture < architecture);
        start..self.pieces.partition_point(|p| p.architecture <= architecture)
    }

    /// Where the values of a network of an architecture, of `parameters` values, lie in its rows: in the order of the flat
    /// vector, of which they are all.
    pub fn segments(&self, architecture: usize, parameters: usize) -> Vec<Segment> {
        if let Some(rows) = &self.rows {
            // All weights of the head, then all biases, each at the beginning of those of the largest head.
            let weights = parameters / (rows.features + 1) * rows.features;
            let biases = self.length / (rows.features + 1) * rows.features;
            let segment = |place, range| Segment { row: 0, place, range };
            return vec![segment(0, 0..weights), segment(biases, weights..parameters)];
        }
        if self.pieces.is_empty() {
            return vec![Segment { row: 0, place: 0, range: 0..parameters }];
        }
        let pieces = self.pieces[self.pieces_of(architecture)].iter().enumerate();
        pieces.map(|(row, piece)| Segment { row, place: 0, range: piece.range() }).collect()
    }

    /// Checks that the pieces of each architecture, of these numbers of parameters, are all of it and none twice.
    ///
    /// # Errors
    /// [`Error::Vectorise`] names the first that does not fit.
    pub fn check(&self, parameters: &[usize]) -> Result<()> {
        let refuse = |text: String| Err(Error::Vectorise(text));
        if self.pieces.len() > MAX_PIECES || !self.pieces.is_sorted_by_key(|p| p.architecture) {
            return refuse(format!("the table of pieces is not in order, or has more than {MAX_PIECES}"));
        }
        self.check_class_rows()?;
        if let Some(rows) = &self.rows {
            let of = rows.classes.iter().map(|classes| classes * (rows.features + 1));
            if !of.eq(parameters.iter().copied()) {
                return refuse("the class rows are not those of the architectures".into());
            }
        } else if self.pieces.is_empty() && parameters.len() > 1 {
            return refuse("several architectures need a table of pieces".into());
        }
        if let Some(piece) = self.pieces.iter().find(|p| p.architecture >= parameters.len()) {
            return refuse(format!("a piece is of architecture {}, and there is none", piece.architecture));
        }
        for (architecture, &d) in parameters.iter().enumerate() {
            let mut end = 0;
            for Segment { place, range, .. } in self.segments(architecture, d) {
                if range.start != end || range.is_empty() || place + range.len() > self.length || range.end > d {
                    let text = format!("piece {}..{} of architecture {architecture}", range.start, range.end);
                    return refuse(format!("{text} does not follow on {end}, or is no row of {}", self.length));
                }
                end = range.end;
            }
            if end != d {
                return refuse(format!("the pieces of architecture {architecture} hold {end} of its {d} parameters"));
            }
        }
        Ok(())
    }

    /// The rows `[pieces × length]` of a network `theta` (`[d]`), padded with `padding`.
    ///
    /// # Errors
    /// [`crate::Error::Length`] when `theta` is not what the pieces are cut from.
    pub fn cut(&self, architecture: usize, theta: &[f32], padding: f32) -> Result<Vec<f32>> {
        let segments = self.segments(architecture, theta.len());
        check_length("the weight vector", theta.len(), segments.last().map_or(0, |s| s.range.end))?;
        let mut rows = vec![padding; (segments.last().map_or(0, |s| s.row) + 1) * self.length];
        for Segment { row, place, range } in segments {
            let end = place + range.len();
            if end > self.length {
                check_length("the weight vector", end, self.length)?;
            }
            rows[row * self.length + place..row * self.length + end].copy_from_slice(&theta[range]);
        }
        Ok(rows)
    }

    /// The network (`[parameters]`) of all its rows (`[pieces × length]`).
    ///
    /// # Errors
    /// [`crate::Error::Length`] when the rows are not those of a network of so many parameters.
    pub fn join(&self, architecture: usize, rows: &[f32], parameters: usize) -> Result<Vec<f32>> {
        self.join_as(architecture, rows, parameters, |_, v| v)
    }

    /// As [`Self::join`], of what `value` makes of each place in the rows and the value there.
    pub(crate) fn join_as(
        &self,
        architecture: usize,
        rows: &[f32],
        parameters: usize,
        value: impl Fn(usize, f32) -> f32,
    ) -> Result<Vec<f32>> {
        let segments = self.segments(architecture, parameters);
        let count = segments.last().map_or(0, |s| s.row) + 1;
        check_length("the rows of a network", rows.len(), count * self.length)?;
        check_length("the pieces of a network", segments.last().map_or(0, |s| s.range.end), parameters)?;
        let mut theta = Vec::with_capacity(parameters);
        for Segment { row, place, range } in segments {
            if place + range.len() > self.length {
                let what = "the padded vector".to_owned();
                return Err(Error::Length { what, found: self.length, expected: place + range.len() });
            }
            let first = row * self.length + place;
            let values = &rows[first..first + range.len()];
            theta.extend(values.iter().enumerate().map(|(i, &v)| value(first + i, v)));
        }
        Ok(theta)
    }
}

/// A part of a flat vector that is cut for itself.
struct Span {
    layer: Option<String>,
    range: Range<usize>,
}

impl Span {
    fn len(&self) -> usize {
        self.range.len()
    }
}

/// The parts of a layout that are cut: its layers, or the whole.
fn spans(mode: VectoriseMode, layout: &Layout) -> impl Iterator<Item = Span> {
    let mut spans: Vec<Span> = Vec::new();
    if mode != VectoriseMode::LayerWise {
        spans.push(Span { layer: None, range: 0..layout.parameters() });
        return spans.into_iter();
    }
    for param in &layout.params {
        let layer = param.name.rsplit_once('.').map_or("", |(layer, _)| layer);
        match spans.last_mut().filter(|span| span.layer.as_deref() == Some(layer)) {
            Some(span) => span.range.end = param.range().end,
            None => spans.push(Span { layer: Some(layer.to_owned()), range: param.range() }),
        }
    }
    spans.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::{Activation, Architecture};
    use proptest::prelude::*;

    fn mlp(inputs: usize, hidden: usize) -> Layout {
        Architecture::Mlp { inputs, hidden: vec![hidden], classes: 3, activation: Activation::Relu }.layout()
    }

    proptest! {
        #[test]
        fn cut_then_join_is_exact(
            sizes in proptest::collection::vec((1usize..6, 1usize..5), 1..4),
            mode in prop_oneof![
                Just(VectoriseMode::ModelWise), Just(VectoriseMode::LayerWise), Just(VectoriseMode::Uniform)
            ],
            chunk in 1usize..30,
            seed in any::<u32>(),
        ) {
            let layouts: Vec<Layout> = sizes.iter().map(|&(i, h)| mlp(i, h)).collect();
            let chunk = (mode != VectoriseMode::ModelWise).then_some(chunk);
            let vectorise = Vectorise::new(mode, chunk, &layouts).unwrap();
            let parameters: Vec<usize> = layouts.iter().map(Layout::parameters).collect();
            vectorise.check(&parameters).unwrap();
            let mut indices = Vec::new();
            for (a, layout) in layouts.iter().enumerate() {
                let theta: Vec<f32> = (0..layout.parameters()).map(|i| 1.0 + (i as u32 ^ seed) as f32).collect();
                let rows = vectorise.cut(a, &theta, 0.0).unwrap();
                prop_assert_eq!(rows.len(), vectorise.pieces_of(a).len() * vectorise.length);
                // Nothing but the values and padding.
                prop_assert_eq!(rows.iter().filter(|v| **v != 0.0).count(), theta.len());
                prop_assert_eq!(vectorise.join(a, &rows, layout.parameters()).unwrap(), theta);
                indices.extend(vectorise.pieces_of(a));
            }
            prop_assert_eq!(indices, (0..vectorise.kinds()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn layers_are_cut_each_for_itself() {
        // 2·4 + 4 values, then 4·3 + 3.
        let table = |mode| Vectorise::new(mode, Some(10), &[mlp(2, 4)]).unwrap().pieces;
        let pieces = table(VectoriseMode::LayerWise);
        let ranges: Vec<_> = pieces.iter().map(|p| (p.layer.as_deref().unwrap(), p.range())).collect();
        assert_eq!(ranges, [("layers.0", 0..10), ("layers.0", 10..12), ("layers.1", 12..22), ("layers.1", 22..27)]);
        let ranges: Vec<_> = table(VectoriseMode::Uniform).iter().map(Piece::range).collect();
        assert_eq!(ranges, [0..10, 10..20, 20..27]);
    }

    #[test]
    fn one_architecture_model_wise_has_no_table() {
        let one = Vectorise::new(VectoriseMode::ModelWise, None, &[mlp(2, 4)]).unwrap();
        assert_eq!(one, Vectorise::model_wise(&[27]));
        assert_eq!((one.index_dim(), one.kinds()), (0, 1));
        let two = Vectorise::new(VectoriseMode::ModelWise, None, &[mlp(2, 4), mlp(1, 1)]).unwrap();
        assert_eq!((two.index_dim(), two.length, two.pieces_of(1)), (2, 27, 1..2));
    }

    #[test]
    fn heads_of_fewer_classes_lie_in_the_rows_of_the_largest() {
        let rows = Vectorise::class_rows(2, vec![2, 4], 4).unwrap();
        assert_eq!((rows.length, rows.kinds(), rows.index_dim(), rows.most_classes()), (12, 1, 0, Some(4)));
        let theta = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let cut = rows.cut(0, &theta, 0.0).unwrap();
        assert_eq!(cut, [1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 0.0, 0.0]);
        assert_eq!(rows.join(0, &cut, 6).unwrap(), theta);
        assert_eq!(rows.presence(0), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(rows.mask(0).unwrap(), cut.iter().map(|v| f32::from(u8::from(*v > 0.0))).collect::<Vec<_>>());
        let whole: Vec<f32> = (0..12).map(|i| i as f32).collect();
        assert_eq!(rows.cut(1, &whole, 0.0).unwrap(), whole);
        rows.check(&[6, 12]).unwrap();
        assert!(rows.check(&[6, 9]).is_err() && rows.check(&[6]).is_err());
        assert!(Vectorise::class_rows(2, vec![2, 5], 4).is_err() && Vectorise::class_rows(2, vec![1], 4).is_err());
        assert!(Vectorise::class_rows(0, vec![2], 4).is_err() && Vectorise::class_rows(2, vec![], 4).is_err());
        assert_eq!(Vectorise::model_wise(&[3]).presence(0), Vec::<f32>::new());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Vectorise::model_wise(&[3]).cut(0, &[0.0; 4], 0.0).is_err());
        assert!(Vectorise::model_wise(&[3]).join(0, &[0.0; 3], 4).is_err());
        let error = |mode, chunk| Vectorise::new(mode, chunk, &[mlp(2, 4)]).unwrap_err().to_string();
        assert!(error(VectoriseMode::ModelWise, Some(4)).contains("leave chunk out"));
        assert!(error(VectoriseMode::Uniform, None).contains("needs a chunk"));
        assert!(error(VectoriseMode::LayerWise, Some(0)).contains("at least 1"));
        let big = Architecture::Head { features: 100_000, classes: 10 }.layout();
        let error = Vectorise::new(VectoriseMode::Uniform, Some(1), &[big]).unwrap_err().to_string();
        assert!(error.contains("1000010 pieces"), "{error}");
        let good = Vectorise::new(VectoriseMode::Uniform, Some(10), &[mlp(2, 4)]).unwrap();
        assert!(good.check(&[28]).is_err() && good.check(&[27, 3]).is_err() && good.check(&[]).is_err());
        assert!(good.cut(0, &[0.0; 26], 0.0).is_err());
        let mut holed = good.clone();
        holed.pieces.remove(1);
        assert!(holed.check(&[27]).is_err());
        let mut wide = good;
        wide.length = 9;
        assert!(wide.check(&[27]).is_err());
    }
}
