//! Generated weights beside the zoo's (paper C.8, Figure 10): t-SNE, density of the values, accuracy.

use plotters::prelude::*;
use rand::Rng;
use serde::Serialize;
use training::random;

use super::plot::{Area, Drawn, FONT, colour};
use crate::error::{Error, Result};

/// Models of a task in the t-SNE.
pub const MODELS: usize = 60;
const PERPLEXITY: f32 = 20.0;
const EPOCHS: usize = 1000;
const BINS: usize = 80;
const PANEL: (u32, u32) = (620, 420);

/// A model in the figure.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Its task.
    pub task: String,
    /// Whether it was generated, and not trained.
    pub generated: bool,
    /// Where t-SNE puts it.
    pub tsne: [f32; 2],
}

/// The figure's numbers.
#[derive(Debug, Clone, Serialize)]
pub struct WeightsFigure {
    /// The models.
    pub points: Vec<Point>,
    /// Share of generated models whose nearest zoo model (L2, aligned) is one of the same task.
    pub nearest_of_own_task: f64,
    /// Share of tasks: what chance would give.
    pub chance: f64,
    /// Middles of the bins of the density.
    pub values: Vec<f64>,
    /// Density of the zoo's weights, per unit of value.
    pub density_zoo: Vec<f64>,
    /// Density of generated weights.
    pub density_generated: Vec<f64>,
}

/// A model to show: its task, whether it was generated, and its aligned weights.
pub struct Model {
    /// Index of its task.
    pub task: usize,
    /// Whether it was generated.
    pub generated: bool,
    /// Aligned weights, `[d]`.
    pub weights: Vec<f32>,
}

fn squared(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum()
}

/// Places of rows, `[n × 2]`.
fn tsne(rows: &[&[f32]], perplexity: f32, seed: u64) -> Vec<f32> {
    let mut rng = random::stream(seed, "t-SNE");
    let start: Vec<f32> = (0..2 * rows.len()).map(|_| rng.random_range(-1e-4..1e-4)).collect();
    let mut tsne = bhtsne::tSNE::<f32, &[f32], 2>::new(rows);
    tsne.perplexity(perplexity).epochs(EPOCHS).initial_embedding(start).exact(|a, b| squared(a, b));
    tsne.embedding()
}

impl WeightsFigure {
    /// From aligned models; nothing when there are too few for a t-SNE.
    pub fn new(models: &[Model], tasks: &[String], seed: u64) -> Option<Self> {
        let rows: Vec<&[f32]> = models.iter().map(|m| m.weights.as_slice()).collect();
        let of = |generated: bool| models.iter().filter(move |m| m.generated == generated);
        let perplexity = PERPLEXITY.min((rows.len().saturating_sub(1) / 3) as f32);
        if perplexity < 2.0 || of(true).next().is_none() || of(false).next().is_none() {
            return None;
        }
        // On one thread: sums in another order would give another picture each time.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().ok()?;
        let places = pool.install(|| tsne(&rows, perplexity, seed));
        let points = models.iter().zip(places.chunks_exact(2)).map(|(m, at)| Point {
            task: tasks[m.task].clone(),
            generated: m.generated,
            tsne: [at[0], at[1]],
        });
        let own = |m: &&Model| {
            let distance = |z: &&Model| squared(&z.weights, &m.weights);
            of(false).min_by(|a, b| distance(a).total_cmp(&distance(b))).is_some_and(|z| z.task == m.task)
        };
        let count = of(true).count() as f64;
        let shown: std::collections::BTreeSet<usize> = of(false).map(|m| m.task).collect();
        let (values, [density_zoo, density_generated]) = densities([false, true].map(|g| of(g).collect::<Vec<_>>()));
        Some(Self {
            points: points.collect(),
            nearest_of_own_task: of(true).filter(own).count() as f64 / count,
            chance: 1.0 / shown.len() as f64,
            values,
            density_zoo,
            density_generated,
        })
    }

    /// The figure as SVG: t-SNE and density.
    ///
    /// # Errors
    /// [`Error::Internal`] when it cannot be drawn.
    pub fn svg(&self, title: &str) -> Result<String> {
        let mut text = String::new();
        self.draw(&mut text, title).map_err(|e| Error::Internal(format!("the figure of weights: {e}")))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String, title: &str) -> Drawn<()> {
        let root = SVGBackend::with_string(text, (2 * PANEL.0, PANEL.1)).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(title, ("sans-serif", 18))?;
        let (left, right) = root.split_horizontally(PANEL.0);
        self.tsne(&left)?;
        self.density(&right)?;
        root.present()?;
        Ok(())
    }

    fn tsne(&self, area: &Area<'_>) -> Drawn<()> {
        let range = |i: usize| {
            let values = self.points.iter().map(|p| f64::from(p.tsne[i]));
            let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
            let margin = 0.05 * (high - low).max(1e-9);
            low - margin..high + margin
        };
        let mut chart =
            ChartBuilder::on(area).margin(8).x_label_area_size(24).build_cartesian_2d(range(0), range(1))?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_mesh().x_labels(0).axis_desc_style(FONT).x_desc("t-SNE: dots the zoo, rings generated").draw()?;
        let mut tasks: Vec<&str> = self.points.iter().map(|p| p.task.as_str()).collect();
        tasks.dedup();
        tasks.sort_unstable();
        tasks.dedup();
        for (i, task) in tasks.iter().enumerate() {
            let own = self.points.iter().filter(|p| p.task == *task);
            let dots = own.map(|p| {
                let style = if p.generated { colour(i).stroke_width(2) } else { colour(i).mix(0.35).filled() };
                Circle::new((f64::from(p.tsne[0]), f64::from(p.tsne[1])), if p.generated { 4 } else { 2 }, style)
            });
            let series = chart.draw_series(dots)?;
            series.label(*task).legend(move |(x, y)| Circle::new((x + 8, y), 4, colour(i).filled()));
        }
        chart.configure_series_labels().border_style(BLACK.mix(0.2)).background_style(WHITE.mix(0.8)).draw()?;
        Ok(())
    }

    fn density(&self, area: &Area<'_>) -> Drawn<()> {
        let highest = self.density_zoo.iter().chain(&self.density_generated).copied().fold(0.0, f64::max);
        let (first, last) = (self.values[0], self.values[self.values.len() - 1]);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(first..last, 0.0..highest * 1.05)?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).label_style(FONT).axis_desc_style(FONT);
        mesh.x_desc("weight").y_desc("density").draw()?;
        for (i, (name, density)) in
            [("zoo", &self.density_zoo), ("generated", &self.density_generated)].iter().enumerate()
        {
            let line: Vec<(f64, f64)> = self.values.iter().copied().zip(density.iter().copied()).collect();
            let series = chart.draw_series([PathElement::new(line, colour(1 - i).stroke_width(2))])?;
            series.label(*name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour(1 - i)));
        }
        chart.configure_series_labels().border_style(BLACK.mix(0.2)).background_style(WHITE.mix(0.8)).draw()?;
        Ok(())
    }
}

/// Middles of bins over the middle 99.8 % of all values, and the density of each group's weights there.
fn densities(groups: [Vec<&Model>; 2]) -> (Vec<f64>, [Vec<f64>; 2]) {
    let mut all: Vec<f32> = groups.iter().flatten().flat_map(|m| m.weights.iter().copied()).collect();
    all.sort_unstable_by(f32::total_cmp);
    let at = |share: f64| f64::from(all[((all.len() - 1) as f64 * share) as usize]);
    let (low, high) = (at(0.001), at(0.999));
    let width = ((high - low) / BINS as f64).max(f64::MIN_POSITIVE);
    let density = |group: &Vec<&Model>| {
        let mut bins = vec![0.0; BINS];
        let mut n = 0usize;
        for &value in group.iter().flat_map(|m| &m.weights) {
            n += 1;
            let place = (f64::from(value) - low) / width;
            if (0.0..BINS as f64).contains(&place) {
                bins[place as usize] += 1.0;
            }
        }
        bins.iter().map(|count| count / (n.max(1) as f64 * width)).collect()
    };
    let middles = (0..BINS).map(|i| low + (i as f64 + 0.5) * width).collect();
    (middles, [density(&groups[0]), density(&groups[1])])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two tasks far apart; what is generated for a task lies with it.
    fn models(swap: bool) -> Vec<Model> {
        let mut rng = random::stream(1, "test");
        let mut model = |task: usize, place: usize, generated: bool| {
            let weights = random::normal_vec(20, &mut rng).iter().map(|v| v + 10.0 * place as f32).collect();
            Model { task, generated, weights }
        };
        let mut all: Vec<Model> = (0..40).map(|i| model(i % 2, i % 2, false)).collect();
        all.extend((0..10).map(|i| model(i % 2, if swap { 1 - i % 2 } else { i % 2 }, true)));
        all
    }

    #[test]
    fn generated_models_lie_with_their_task() {
        let tasks = ["a".to_owned(), "b".to_owned()];
        let figure = WeightsFigure::new(&models(false), &tasks, 0).unwrap();
        assert_eq!((figure.nearest_of_own_task, figure.chance), (1.0, 0.5));
        assert_eq!(WeightsFigure::new(&models(true), &tasks, 0).unwrap().nearest_of_own_task, 0.0);
        // t-SNE keeps the two apart: every point is nearer to the middle of its own task.
        let middle = |task: &str| {
            let own: Vec<&Point> = figure.points.iter().filter(|p| p.task == task).collect();
            [0, 1].map(|i| own.iter().map(|p| p.tsne[i]).sum::<f32>() / own.len() as f32)
        };
        let middles = [middle("a"), middle("b")];
        for point in &figure.points {
            let [a, b] = middles.map(|m| squared(&m, &point.tsne));
            assert_eq!(a < b, point.task == "a", "{point:?}");
        }
        let width = figure.values[1] - figure.values[0];
        let mass: f64 = figure.density_zoo.iter().sum::<f64>() * width;
        assert!((0.98..=1.0).contains(&mass), "{mass}");
        assert_eq!(figure.points[3].tsne, WeightsFigure::new(&models(false), &tasks, 0).unwrap().points[3].tsne);
        assert!(figure.svg("t").unwrap().contains("</svg>"));
    }

    #[test]
    fn few_models_have_no_figure() {
        assert!(WeightsFigure::new(&models(false)[38..42], &["a".to_owned(), "b".to_owned()], 0).is_none());
        assert!(WeightsFigure::new(&models(false)[..30], &["a".to_owned(), "b".to_owned()], 0).is_none());
    }
}
