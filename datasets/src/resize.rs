//! Bilinear resizing of image datasets.

use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Luma, Primitive};

use crate::{Data, Dataset, Error, Modality, Result};

impl Dataset {
    /// All images resized to `height` x `width`, channel by channel, with the triangle filter (bilinear; when it
    /// shrinks, averaged over the area so that nothing is skipped).
    ///
    /// Errors: `not_images` for feature vectors, `dataset_invalid` when a side is 0 or above 65,535.
    pub fn resize(&self, height: usize, width: usize) -> Result<Self> {
        if self.modality() != Modality::Image {
            return Err(Error::NotImages(self.name.clone()));
        }
        let side = |n: usize| u16::try_from(n).ok().filter(|&n| n > 0).map(u32::from);
        let (Some(h), Some(w)) = (side(height), side(width)) else {
            return Err(Error::DatasetInvalid(format!(
                "cannot resize to {height}x{width}; each side must be 1 to 65535 pixels"
            )));
        };
        let from = (self.shape[1], self.shape[2]);
        let data = match &self.data {
            Data::U8(pixels) => Data::U8(resize_planes(pixels, from, (h, w))),
            // The filter's weights sum to one only up to rounding.
            Data::F32(pixels) => {
                Data::F32(resize_planes(pixels, from, (h, w)).into_iter().map(|v| v.clamp(0.0, 1.0)).collect())
            }
        };
        let shape = vec![self.shape[0], height, width];
        Self::new(self.name.clone(), shape, self.class_names.clone(), data, self.labels.clone())
    }

    /// The largest middle part of each image that has the proportions of `height` x `width`, not resized.
    ///
    /// Errors: `not_images` for feature vectors, `dataset_invalid` when a side is 0.
    pub fn center_crop(&self, height: usize, width: usize) -> Result<Self> {
        if self.modality() != Modality::Image {
            return Err(Error::NotImages(self.name.clone()));
        }
        if height == 0 || width == 0 {
            return Err(Error::DatasetInvalid(format!("cannot crop to {height}x{width}; each side must be above 0")));
        }
        let (channels, from) = (self.shape[0], (self.shape[1], self.shape[2]));
        // A whole image high or a whole image wide, whichever fits.
        let wide = (from.0 * width / height).clamp(1, from.1);
        let high = (from.1 * height / width).clamp(1, from.0);
        let to = if wide < from.1 { (from.0, wide) } else { (high, from.1) };
        if to == from {
            return Ok(self.clone());
        }
        let data = match &self.data {
            Data::U8(pixels) => Data::U8(crop_planes(pixels, from, to)),
            Data::F32(pixels) => Data::F32(crop_planes(pixels, from, to)),
        };
        let shape = vec![channels, to.0, to.1];
        Self::new(self.name.clone(), shape, self.class_names.clone(), data, self.labels.clone())
    }
}

fn crop_planes<T: Copy>(pixels: &[T], from: (usize, usize), to: (usize, usize)) -> Vec<T> {
    let (top, left) = ((from.0 - to.0) / 2, (from.1 - to.1) / 2);
    (pixels.chunks_exact(from.0 * from.1))
        .flat_map(|plane| plane.chunks_exact(from.1).skip(top).take(to.0))
        .flat_map(|row| row[left..left + to.1].iter().copied())
        .collect()
}

fn resize_planes<T: Primitive + 'static>(pixels: &[T], from: (usize, usize), to: (u32, u32)) -> Vec<T> {
    let (height, width) = (from.0 as u32, from.1 as u32);
    (pixels.chunks_exact(from.0 * from.1))
        .filter_map(|plane| ImageBuffer::<Luma<T>, _>::from_raw(width, height, plane.to_vec()))
        .flat_map(|plane| resize(&plane, to.1, to.0, FilterType::Triangle).into_raw())
        .collect()
}
