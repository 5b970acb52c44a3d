//! Examples as pictures: one PNG, or a grid with a row for each class.

use std::io::Cursor;

use image::imageops::{FilterType, overlay, resize};
use image::{DynamicImage, ImageFormat, RgbImage};

use crate::{Dataset, Error, Modality, Result};

/// Longest side of a grid, in pixels.
pub const MAX_GRID_SIDE: u32 = 2048;
/// Pixels between two images of a grid.
const GAP: u32 = 1;

/// One example as a PNG, grey or RGB as the dataset is.
///
/// Errors: `not_images`, `sample_invalid` when there is no such example.
pub fn example_png(dataset: &Dataset, index: usize) -> Result<Vec<u8>> {
    let image = rgb(dataset, index)?;
    let image = DynamicImage::ImageRgb8(image);
    png(if dataset.shape[0] == 1 { image.into_luma8().into() } else { image })
}

/// The first `per_class` examples of each class, a row each, as a PNG whose longer side has at most `side` pixels.
/// Classes for which there is no row of one pixel are left out at the end.
///
/// Errors: `not_images`; `sample_invalid` for no example a class or a side outside 8 to [`MAX_GRID_SIDE`].
pub fn grid(dataset: &Dataset, per_class: usize, side: u32) -> Result<Vec<u8>> {
    if per_class == 0 || per_class > 64 {
        return Err(Error::SampleInvalid(format!("examples a class are {per_class}; ask for 1 to 64")));
    }
    if !(8..=MAX_GRID_SIDE).contains(&side) {
        return Err(Error::SampleInvalid(format!("the size is {side}; ask for 8 to {MAX_GRID_SIDE} pixels")));
    }
    require_images(dataset)?;
    let rows = dataset.classes().min((side / (1 + GAP)) as usize);
    let columns = per_class.min((side / (1 + GAP)) as usize);
    let (height, width) = cell(dataset, rows as u32, columns as u32, side);
    let mut picture = RgbImage::from_pixel(
        columns as u32 * (width + GAP) - GAP,
        rows as u32 * (height + GAP) - GAP,
        image::Rgb([255, 255, 255]),
    );
    let all: Vec<usize> = (0..dataset.len()).collect();
    for (row, class) in dataset.class_indices(&all).iter().take(rows).enumerate() {
        for (column, &index) in class.iter().take(columns).enumerate() {
            let small = resize(&rgb(dataset, index)?, width, height, FilterType::Triangle);
            let (x, y) = (column as u32 * (width + GAP), row as u32 * (height + GAP));
            overlay(&mut picture, &small, i64::from(x), i64::from(y));
        }
    }
    png(DynamicImage::ImageRgb8(picture))
}

/// Height and width of one image so that the grid fits, in the images' proportions; never enlarged beyond 8 times.
fn cell(dataset: &Dataset, rows: u32, columns: u32, side: u32) -> (u32, u32) {
    let (height, width) = (dataset.shape[1] as f64, dataset.shape[2] as f64);
    let room = |count: u32| (f64::from(side + GAP) / f64::from(count) - f64::from(GAP)).max(1.0);
    let scale = (room(rows) / height).min(room(columns) / width).min(8.0);
    let pixels = |length: f64, room: f64| ((length * scale).floor().max(1.0) as u32).min(room.floor() as u32).max(1);
    (pixels(height, room(rows)), pixels(width, room(columns)))
}

fn require_images(dataset: &Dataset) -> Result<()> {
    match dataset.modality() {
        Modality::Image => Ok(()),
        Modality::Features => Err(Error::NotImages(dataset.name.clone())),
    }
}

fn rgb(dataset: &Dataset, index: usize) -> Result<RgbImage> {
    require_images(dataset)?;
    if index >= dataset.len() {
        return Err(Error::SampleInvalid(format!("there is no example {index}; there are {}", dataset.len())));
    }
    let mut values = vec![0f32; dataset.dim()];
    dataset.write_features(index, &mut values);
    let (height, width) = (dataset.shape[1], dataset.shape[2]);
    let area = height * width;
    let channels = dataset.shape[0];
    Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
        let at = y as usize * width + x as usize;
        image::Rgb([0, 1, 2].map(|channel: usize| {
            let value = values[channel.min(channels - 1) * area + at];
            (value * 255.0).round().clamp(0.0, 255.0) as u8
        }))
    }))
}

fn png(image: DynamicImage) -> Result<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    image
        .write_to(&mut out, ImageFormat::Png)
        .map_err(|e| Error::SampleInvalid(format!("the picture cannot be written ({e}); ask for a smaller one")))?;
    Ok(out.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Data;

    fn colours() -> Dataset {
        let pixels = [[10u8, 20, 30, 40], [50, 60, 70, 80], [90, 100, 110, 120]].concat();
        let data = Data::U8([pixels.clone(), pixels].concat());
        Dataset::new("c", vec![3, 2, 2], vec!["a".into(), "b".into()], data, vec![0, 1]).unwrap()
    }

    #[test]
    fn an_example_comes_back_exactly() {
        let png = example_png(&colours(), 1).unwrap();
        let image = image::load_from_memory(&png).unwrap().into_rgb8();
        assert_eq!((image.width(), image.height()), (2, 2));
        assert_eq!(image.get_pixel(1, 0).0, [20, 60, 100]);
        let digits = crate::digits::load().unwrap();
        let grey = image::load_from_memory(&example_png(&digits, 0).unwrap()).unwrap();
        assert_eq!(grey.color(), image::ColorType::L8);
        assert_eq!(example_png(&colours(), 2).unwrap_err().code(), "sample_invalid");
    }

    #[test]
    fn a_grid_has_a_row_a_class_and_stays_within_its_size() {
        let digits = crate::digits::load().unwrap();
        for (per_class, side) in [(1, 8), (5, 100), (8, 256), (64, 2048)] {
            let image = image::load_from_memory(&grid(&digits, per_class, side).unwrap()).unwrap();
            assert!(image.width() <= side && image.height() <= side, "{per_class} {side}: {:?}", image.color());
        }
        let image = image::load_from_memory(&grid(&colours(), 1, 32).unwrap()).unwrap();
        assert!(image.height() > image.width(), "two rows, one column");
        assert_eq!(grid(&digits, 0, 100).unwrap_err().code(), "sample_invalid");
        assert_eq!(grid(&digits, 1, 5000).unwrap_err().code(), "sample_invalid");
        let features = Dataset::new("f", vec![1], vec!["a".into(), "b".into()], Data::F32(vec![0.0, 1.0]), vec![0, 1]);
        assert_eq!(grid(&features.unwrap(), 1, 100).unwrap_err().code(), "not_images");
    }
}
