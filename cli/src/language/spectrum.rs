//! `weightsmith spectrum`: which layers of a model have more than noise (paper 3.5, A.3).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use ::language::model::Model;
use ::language::spectra::{Layer, spectra};
use plotters::prelude::*;

use crate::context::{progress, say, write_whole};
use crate::error::{Error, Result};
use crate::report::plot::{Drawn, FONT, colour};

const WIDTH: u32 = 1100;
const PANEL: u32 = 300;

/// What to look at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weightsmith spectrum ./tiny-llama --svg spectrum.svg")]
pub struct Args {
    /// A model's directory: config.json and safetensors, in one file or shards.
    model: PathBuf,
    /// The share of each group's matrices that is selected, those of the highest SNR; at least one.
    #[arg(long, default_value_t = 0.25)]
    top: f64,
    /// Draw the spectra, in units of each one's edge, to this file.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Write all singular values and figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// `model_invalid` and those of writing.
pub fn run(args: &Args) -> Result<()> {
    let model = Model::open(&args.model)?;
    let layers = spectra(&model, args.top, &progress()?)?;
    if let Some(path) = &args.json {
        let mut text = serde_json::to_vec_pretty(&layers).map_err(|e| Error::Internal(e.to_string()))?;
        text.push(b'\n');
        write_whole(path, &text)?;
    }
    if let Some(path) = &args.svg {
        let text = svg(&layers).map_err(|e| Error::Internal(format!("the spectra: {e}")))?;
        write_whole(path, text.as_bytes())?;
    }
    say(table(&layers).trim_end());
    Ok(())
}

/// The layers of each group, those of the highest SNR first.
fn groups(layers: &[Layer]) -> BTreeMap<&str, Vec<&Layer>> {
    let mut groups: BTreeMap<&str, Vec<&Layer>> = BTreeMap::new();
    layers.iter().for_each(|layer| groups.entry(&layer.matrix.group).or_default().push(layer));
    let snr = |layer: &Layer| layer.spectrum.snr.unwrap_or(f64::INFINITY);
    groups.values_mut().for_each(|group| group.sort_by(|a, b| snr(b).total_cmp(&snr(a))));
    groups
}

fn table(layers: &[Layer]) -> String {
    let width = layers.iter().map(|l| l.matrix.name.len()).max().unwrap_or(0);
    let mut text = format!(
        "  {:width$} {:>13} {:>10} {:>10} {:>10} {:>8} {:>8}\n",
        "matrix", "shape", "largest", "edge", "sigma", "signals", "SNR"
    );
    for layer in groups(layers).into_values().flatten() {
        let (matrix, spectrum) = (&layer.matrix, &layer.spectrum);
        let shape = format!("{}x{}", matrix.rows, matrix.cols);
        let largest = spectrum.singular_values.values.first().copied().unwrap_or(0.0);
        let snr = spectrum.snr.map_or("-".to_owned(), |snr| format!("{snr:.4}"));
        let (mark, name) = (if layer.selected { '*' } else { ' ' }, &matrix.name);
        let (edge, sigma, signals) = (spectrum.edge, spectrum.sigma, spectrum.signals);
        let _ = writeln!(
            text,
            "{mark} {name:width$} {shape:>13} {largest:>10.4} {edge:>10.4} {sigma:>10.5} {signals:>8.1} {snr:>8}"
        );
    }
    let selected = layers.iter().filter(|l| l.selected);
    let values: usize = selected.clone().map(|l| l.matrix.rows * l.matrix.cols).sum();
    let estimated = layers.iter().filter(|l| l.spectrum.singular_values.estimated).count();
    let _ = writeln!(
        text,
        "* selected: {} of {} matrices, {values} parameters; {estimated} spectra are estimated",
        selected.count(),
        layers.len()
    );
    text
}

/// A panel a group: singular values over their edge, by their rank; what is selected is drawn strong.
fn svg(layers: &[Layer]) -> Drawn<String> {
    let groups = groups(layers);
    let rows = groups.len().div_ceil(2) as u32;
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, (WIDTH, rows.max(1) * PANEL)).into_drawing_area();
    root.fill(&WHITE)?;
    for (panel, (name, group)) in root.split_evenly((rows.max(1) as usize, 2)).iter().zip(groups) {
        let over = |layer: &Layer| -> Vec<(f64, f64)> {
            let (spectrum, mut rank) = (&layer.spectrum, 0.0);
            let all = spectrum.singular_values.values.iter().zip(&spectrum.singular_values.counts);
            all.map(|(value, count)| {
                rank += count;
                (rank / spectrum.rows.min(spectrum.cols) as f64, (value / spectrum.edge.max(1e-12)).max(1e-3))
            })
            .collect()
        };
        let lines: Vec<(bool, Vec<(f64, f64)>)> = group.iter().map(|layer| (layer.selected, over(layer))).collect();
        let largest = lines.iter().flat_map(|(_, line)| line).map(|p| p.1).fold(2.0, f64::max);
        let mut chart = ChartBuilder::on(panel)
            .caption(name, FONT)
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..1.0, (0.02..largest * 1.2).log_scale())?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).label_style(FONT).axis_desc_style(FONT);
        mesh.x_desc("rank / all").y_desc("singular value / edge").draw()?;
        for (i, (selected, line)) in lines.into_iter().enumerate() {
            let style = if selected { colour(i).stroke_width(2) } else { colour(i).mix(0.35).stroke_width(1) };
            chart.draw_series([PathElement::new(line, style)])?;
        }
        chart.draw_series([PathElement::new(vec![(0.0, 1.0), (1.0, 1.0)], BLACK.stroke_width(1))])?;
    }
    root.present()?;
    drop(root);
    Ok(text)
}
