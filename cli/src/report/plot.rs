//! An experiment's plots: every accuracy by arm, and novelty against accuracy.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::result::{Column, Outcome};
use crate::compare::{Arm, mean_std};
use crate::error::{Error, Result};

/// Points of a series that are drawn, evenly chosen.
const POINTS: usize = 400;
const WIDTH: u32 = 1240;
const LEFT: u32 = 760;
/// Height of the curves of fine-tuning.
const CURVES: u32 = 380;
const ROW: u32 = 26;
pub const FONT: (&str, i32) = ("sans-serif", 13);

/// A row of the left plot and a series of the right one.
struct Series {
    label: String,
    /// (epochs of fine-tuning, mean accuracy in %).
    curve: Vec<(f64, f64)>,
    colour: RGBColor,
    accuracies: Vec<f64>,
    /// Of a further set of tasks, whose arms have the colours of the first.
    further: bool,
    /// (novelty, accuracy) of each model that has both.
    scatter: Vec<(f64, f64)>,
}

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// The plots as one SVG.
///
/// # Errors
/// [`Error::Internal`] when they cannot be drawn.
pub fn svg(outcome: &Outcome) -> Result<String> {
    let series = series(outcome);
    let mut text = String::new();
    let height = (series.len() as u32 * ROW + 110).max(420);
    draw(&mut text, outcome, &series, height).map_err(|e| Error::Internal(format!("the plots: {e}")))?;
    Ok(text)
}

/// The colour of the `i`th series.
pub fn colour(i: usize) -> RGBColor {
    const COLOURS: [(u8, u8, u8); 13] = [
        (213, 62, 79),
        (50, 136, 189),
        (94, 79, 162),
        (120, 120, 120),
        (244, 155, 66),
        (60, 160, 100),
        (150, 110, 50),
        (200, 90, 180),
        (40, 40, 40),
        (0, 150, 160),
        (90, 60, 220),
        (170, 190, 20),
        (110, 50, 30),
    ];
    let (r, g, b) = COLOURS[i % COLOURS.len()];
    RGBColor(r, g, b)
}

/// Arms where there is one variant, else the generated arm of each.
fn series(outcome: &Outcome) -> Vec<Series> {
    let many = outcome.experiment.variants.len() > 1;
    let mut all = Vec::new();
    for (g, group) in outcome.groups.iter().enumerate() {
        for column in group.columns(outcome.of_sources()) {
            let arm = Arm::ALL.iter().position(|a| *a == column.arm).unwrap_or(0);
            let first = many && g == 0 && column.arm == Arm::Zoo;
            if many && column.arm != Arm::Generated && !first {
                continue;
            }
            let (label, colour) = match (many, outcome.groups.len()) {
                (true, _) if first => ("zoo".to_owned(), colour(1)),
                (true, _) => (group.variant.clone(), colour(if g == 0 { 0 } else { g + 1 })),
                (false, 1) => (column.label(), colour(arm)),
                (false, _) => (format!("{}, {}", column.label(), group.set), colour(arm)),
            };
            let curve = outcome.experiment.epochs.iter().enumerate();
            let curve = curve.map(|(i, &epoch)| (epoch as f64, 100.0 * mean_std(column.at(i, None)).0)).collect();
            all.push(one(label, colour, !many && g > 0, curve, &column));
        }
    }
    all
}

fn one(label: String, colour: RGBColor, further: bool, curve: Vec<(f64, f64)>, column: &Column) -> Series {
    let scatter = column.rows.iter().filter_map(|r| Some((r.novelty?, 100.0 * r.accuracy[0])));
    Series {
        label,
        curve,
        colour,
        further,
        accuracies: column.at(0, None).into_iter().map(|a| 100.0 * a).collect(),
        scatter: few(scatter.collect()),
    }
}

fn few<T>(values: Vec<T>) -> Vec<T> {
    let every = values.len().div_ceil(POINTS).max(1);
    values.into_iter().step_by(every).collect()
}

/// What drawing gives.
pub type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn draw(text: &mut String, outcome: &Outcome, series: &[Series], height: u32) -> Drawn<()> {
    let curves = outcome.experiment.epochs.len() > 1;
    let below = if curves { CURVES } else { 0 };
    let root = SVGBackend::with_string(text, (WIDTH, height + below)).into_drawing_area();
    root.fill(&WHITE)?;
    let quick = if outcome.experiment.quick { " (quick run)" } else { "" };
    let title = format!("{}{quick}", outcome.experiment.title);
    let root = root.titled(&title, ("sans-serif", 18))?;
    let root = match curves {
        true => {
            let (above, below) = root.split_vertically(height - 30);
            fine_tuning(&below, series)?;
            above
        }
        false => root,
    };
    let (left, right) = root.split_horizontally(LEFT);
    let epoch = outcome.experiment.epochs[0];
    distributions(&left, series, epoch)?;
    scatter(&right, series, epoch)?;
    root.present()?;
    Ok(())
}

/// Mean accuracy while fine-tuning.
fn fine_tuning(area: &Area<'_>, series: &[Series]) -> Drawn<()> {
    let last = series.iter().flat_map(|s| &s.curve).map(|p| p.0).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..last * 1.35, 0.0..100.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).label_style(FONT).axis_desc_style(FONT);
    mesh.x_desc("epochs of fine-tuning").y_desc("mean test accuracy, %").draw()?;
    for one in series {
        let width = if one.further { 1 } else { 2 };
        let line = chart.draw_series([PathElement::new(one.curve.clone(), one.colour.stroke_width(width))])?;
        let colour = one.colour;
        let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(width));
        line.label(one.label.as_str()).legend(legend);
        chart.draw_series(one.curve.iter().map(|&p| Circle::new(p, 3, one.colour.filled())))?;
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperRight).label_font(FONT).background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}

/// One row a series: each model a point, the mean a line.
fn distributions(area: &Area<'_>, series: &[Series], epoch: usize) -> Drawn<()> {
    let rows = series.len().max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(200)
        .build_cartesian_2d(0.0..100.0, 0.0..rows)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(0)
        .x_labels(11)
        .label_style(FONT)
        .axis_desc_style(FONT);
    mesh.x_desc(format!("test accuracy after {epoch} epochs, %")).draw()?;
    for (i, one) in series.iter().enumerate() {
        let middle = rows - i as f64 - 0.5;
        let points = few(one.accuracies.clone());
        // A golden-ratio sequence spreads the points over the row.
        let jitter = |k: usize| 0.56 * ((k as f64 * 0.618_034).fract() - 0.5);
        chart.draw_series(
            points
                .iter()
                .enumerate()
                .map(|(k, &x)| Circle::new((x, middle + jitter(k)), 2, one.colour.mix(0.45).filled())),
        )?;
        let (mean, _) = mean_std(one.accuracies.iter().copied());
        let line = vec![(mean, middle - 0.4), (mean, middle + 0.4)];
        chart.draw_series([PathElement::new(line, BLACK.stroke_width(2))])?;
        label(area, &chart, (0.0, middle), &format!("{} {mean:.1}", one.label), one.colour)?;
    }
    Ok(())
}

/// Text left of a point.
fn label(area: &Area<'_>, chart: &Chart<'_, '_>, at: (f64, f64), text: &str, colour: RGBColor) -> Drawn<()> {
    let (x, y) = chart.plotting_area().map_coordinate(&at);
    let (left, top) = area.get_base_pixel();
    let style = TextStyle::from(FONT.into_font()).color(&colour).pos(Pos::new(HPos::Right, VPos::Center));
    area.draw(&Text::new(text.to_owned(), (x - left - 8, y - top), style))?;
    Ok(())
}

/// Novelty against accuracy.
fn scatter(area: &Area<'_>, series: &[Series], epoch: usize) -> Drawn<()> {
    let largest = series.iter().flat_map(|s| &s.scatter).map(|p| p.0).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..largest * 1.05, 0.0..100.0)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).label_style(FONT).axis_desc_style(FONT);
    mesh.x_desc("novelty: distance to the zoo / the zoo's own (colours as left)")
        .y_desc(format!("accuracy after {epoch} epochs, %"))
        .draw()?;
    for one in series {
        // Rings for what the left plot shows further down: the same arms on further tasks.
        let style = if one.further { one.colour.mix(0.7).stroke_width(1) } else { one.colour.mix(0.5).filled() };
        chart.draw_series(one.scatter.iter().map(|&p| Circle::new(p, 2, style)))?;
    }
    Ok(())
}
