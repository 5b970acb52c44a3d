//! The built-in handwritten digits: 1,797 grey images of 8×8 pixels, ten classes.

use crate::{Data, Dataset, Result};

/// Loads the UCI "Optical Recognition of Handwritten Digits" test set that the `smartcore` crate carries.
///
/// Shape `[1, 8, 8]`; the original values 0..=16 are scaled to 0..=255; class names "0" to "9".
pub fn load() -> Result<Dataset> {
    let raw = smartcore::dataset::digits::load_dataset();
    let pixels = raw.data.iter().map(|&v| (v.clamp(0.0, 16.0) * (255.0 / 16.0)).round() as u8).collect();
    let labels = raw.target.iter().map(|&v| v as u32).collect();
    let names = (0..10).map(|d| d.to_string()).collect();
    Dataset::new("digits", vec![1, 8, 8], names, Data::U8(pixels), labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_all_there() {
        let digits = load().unwrap();
        assert_eq!((digits.len(), digits.dim(), digits.classes()), (1797, 64, 10));
        let all: Vec<usize> = (0..digits.len()).collect();
        let counts: Vec<usize> = digits.class_indices(&all).iter().map(Vec::len).collect();
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        let Data::U8(pixels) = &digits.data else { panic!("u8 expected") };
        assert_eq!(pixels.iter().max(), Some(&255));
        // first row of the first image (a zero): 0 0 5 13 9 1 0 0
        assert_eq!(pixels[..8], [0, 0, 80, 207, 143, 16, 0, 0]);
        digits.require_every_class().unwrap();
    }
}
