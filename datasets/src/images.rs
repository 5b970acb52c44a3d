//! Images (PNG, JPEG, and by feature others) gathered into one dataset: decoded within limits, all of one size.

use std::io::Cursor;

use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use crate::{Data, Dataset, Error, Limits, Result};

/// Formats that are decoded, for messages.
pub(crate) const FORMATS: &str = "PNG, JPEG and what the build adds";

/// What decoded images are brought to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Target {
    /// 1 or 3 channels; `None`: one when all images are grey, else three.
    pub(crate) channels: Option<usize>,
    /// Height and width; `None`: as they are, all of one size.
    pub(crate) size: Option<(u32, u32)>,
}

/// Decodes images one by one and makes a dataset of them.
pub(crate) struct Collector<'a> {
    limits: &'a Limits,
    size: Option<(u32, u32)>,
    images: Vec<Decoded>,
    labels: Vec<u32>,
    decoded_bytes: u64,
    channels: Option<usize>,
}

/// Interleaved pixels, one or three bytes each.
pub(crate) struct Decoded {
    grey: bool,
    height: u32,
    width: u32,
    pixels: Vec<u8>,
}

impl Decoded {
    /// Decodes an image and brings it to the target's size and channels.
    pub(crate) fn new(name: &str, bytes: &[u8], target: &Target, limits: &Limits) -> Result<Self> {
        let mut image = decode(name, bytes, limits)?;
        if let Some((height, width)) = target.size
            && (image.height(), image.width()) != (height, width)
        {
            image = image.resize_exact(width, height, FilterType::Triangle);
        }
        let grey = target.channels.map_or(!image.color().has_color(), |channels| channels == 1);
        let (height, width) = (image.height(), image.width());
        let pixels = if grey { image.into_luma8().into_raw() } else { image.into_rgb8().into_raw() };
        Ok(Self { grey, height, width, pixels })
    }

    /// Bytes of its pixels.
    pub(crate) fn len(&self) -> u64 {
        self.pixels.len() as u64
    }
}

impl<'a> Collector<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { limits, size: None, images: Vec::new(), labels: Vec::new(), decoded_bytes: 0, channels: None }
    }

    /// The number of channels that the dataset is to have.
    pub(crate) fn channels(mut self, channels: Option<usize>) -> Self {
        self.channels = channels;
        self
    }

    /// Decodes one image; `name` is what errors call it.
    pub(crate) fn push(&mut self, name: &str, label: u32, bytes: &[u8]) -> Result<()> {
        if self.images.len() >= self.limits.max_examples {
            return Err(Error::limit("images", self.images.len() + 1, self.limits.max_examples));
        }
        let target = Target { channels: self.channels, size: None };
        self.push_decoded(name, label, Decoded::new(name, bytes, &target, self.limits)?)
    }

    /// Adds an image that was decoded before.
    pub(crate) fn push_decoded(&mut self, name: &str, label: u32, image: Decoded) -> Result<()> {
        let size = (image.height, image.width);
        let expected = *self.size.get_or_insert(size);
        if size != expected {
            let text = |(h, w): (u32, u32)| format!("{h}x{w}");
            return Err(Error::ImageSizeMismatch {
                name: name.to_owned(),
                expected: text(expected),
                found: text(size),
            });
        }
        self.decoded_bytes = self.decoded_bytes.saturating_add(image.len());
        if self.decoded_bytes > self.limits.max_decompressed_bytes {
            return Err(Error::limit(
                "bytes of decoded images",
                self.decoded_bytes,
                self.limits.max_decompressed_bytes,
            ));
        }
        self.images.push(image);
        self.labels.push(label);
        Ok(())
    }

    /// One channel when every image is grey, else three (grey ones repeated).
    ///
    /// Errors: fewer than two classes, a class without an image.
    pub(crate) fn finish(self, name: &str, class_names: Vec<String>) -> Result<Dataset> {
        if class_names.len() < 2 {
            return Err(Error::TooFewClasses(class_names.len()));
        }
        let Some((height, width)) = self.size else {
            return Err(Error::ClassWithoutImages(class_names[0].clone()));
        };
        let area = height as usize * width as usize;
        let grey = self.images.iter().all(|image| image.grey);
        let channels = self.channels.unwrap_or(if grey { 1 } else { 3 });
        let values = self.images.len().saturating_mul(channels).saturating_mul(area);
        if values > self.limits.max_values {
            return Err(Error::limit("values of all images", values, self.limits.max_values));
        }
        let mut pixels = Vec::with_capacity(values);
        // Each image is given up once it is copied: the pixels are not held twice.
        for image in self.images {
            let stride = if image.grey { 1 } else { 3 };
            for channel in 0..channels {
                let first = channel.min(stride - 1);
                pixels.extend(image.pixels.iter().skip(first).step_by(stride));
            }
        }
        let shape = vec![channels, height as usize, width as usize];
        let dataset = Dataset::new(name, shape, class_names, Data::U8(pixels), self.labels)?;
        dataset.require_every_class()?;
        Ok(dataset)
    }
}

fn decode(name: &str, bytes: &[u8], limits: &Limits) -> Result<DynamicImage> {
    let invalid = |reason: String| Error::ImageInvalid { name: name.to_owned(), reason };
    let format =
        image::guess_format(bytes).map_err(|_| invalid("its first bytes are those of no such format".into()))?;
    if !is_read(format) {
        return Err(invalid(format!("it is {format:?}")));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(decoder_limits(limits));
    let decoder = reader.into_decoder().map_err(|e| invalid(e.to_string()))?;
    // Checked on the header: a small file that claims a huge size costs nothing.
    let (width, height) = decoder.dimensions();
    let area = u64::from(width) * u64::from(height);
    if area > limits.max_pixels_per_image as u64 {
        return Err(Error::limit(format!("pixels of {name} ({height}x{width})"), area, limits.max_pixels_per_image));
    }
    if area == 0 {
        return Err(invalid("it has no pixels".into()));
    }
    DynamicImage::from_decoder(decoder).map_err(|e| invalid(e.to_string()))
}

/// Whether this build decodes a format.
fn is_read(format: ImageFormat) -> bool {
    match format {
        ImageFormat::Png | ImageFormat::Jpeg => true,
        ImageFormat::WebP => cfg!(feature = "webp"),
        ImageFormat::Bmp => cfg!(feature = "bmp"),
        ImageFormat::Gif => cfg!(feature = "gif"),
        ImageFormat::Tiff => cfg!(feature = "tiff"),
        _ => false,
    }
}

/// Up to 8 bytes a pixel (16-bit RGBA), twice for the decoder's own buffers, and a little for its tables.
fn decoder_limits(limits: &Limits) -> image::Limits {
    let mut decoder = image::Limits::default();
    decoder.max_alloc = Some((limits.max_pixels_per_image as u64).saturating_mul(16).saturating_add(1 << 20));
    decoder
}

#[cfg(test)]
pub(crate) mod tests {
    use image::codecs::jpeg::JpegEncoder;
    use image::{GrayImage, ImageEncoder, RgbImage};

    use super::*;

    /// A grey PNG whose pixels are all `value`.
    pub(crate) fn grey_png(height: u32, width: u32, value: u8) -> Vec<u8> {
        png(GrayImage::from_pixel(width, height, image::Luma([value])).into())
    }

    pub(crate) fn grey_jpeg(height: u32, width: u32, value: u8) -> Vec<u8> {
        let mut jpeg = Vec::new();
        let image = GrayImage::from_pixel(width, height, image::Luma([value]));
        let grey = image::ExtendedColorType::L8;
        JpegEncoder::new(&mut jpeg).write_image(&image, width, height, grey).unwrap();
        jpeg
    }

    pub(crate) fn rgb_png(height: u32, width: u32, value: [u8; 3]) -> Vec<u8> {
        png(RgbImage::from_pixel(width, height, image::Rgb(value)).into())
    }

    fn png(image: DynamicImage) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, ImageFormat::Png).unwrap();
        out.into_inner()
    }

    /// A 1x1 grey PNG whose header is rewritten (with a right checksum) to claim `height` x `width`.
    pub(crate) fn lying_png(height: u32, width: u32) -> Vec<u8> {
        let mut bytes = grey_png(1, 1, 7);
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        bytes
    }

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|c| format!("c{c}")).collect()
    }

    #[test]
    fn grey_stays_one_channel_and_mixed_becomes_three() {
        let limits = Limits::default();
        let mut grey = Collector::new(&limits);
        grey.push("a", 0, &grey_png(2, 3, 10)).unwrap();
        grey.push("b", 1, &grey_png(2, 3, 20)).unwrap();
        let grey = grey.finish("t", names(2)).unwrap();
        assert_eq!(grey.shape, [1, 2, 3]);
        assert_eq!(grey.data, Data::U8([[10; 6], [20; 6]].concat()));

        let mut mixed = Collector::new(&limits);
        mixed.push("a", 0, &rgb_png(1, 2, [1, 2, 3])).unwrap();
        mixed.push("b", 1, &grey_png(1, 2, 9)).unwrap();
        let mixed = mixed.finish("t", names(2)).unwrap();
        assert_eq!(mixed.shape, [3, 1, 2]);
        assert_eq!(mixed.data, Data::U8(vec![1, 1, 2, 2, 3, 3, 9, 9, 9, 9, 9, 9]));
    }

    #[test]
    fn jpeg_is_read() {
        let jpeg = grey_jpeg(8, 16, 128);
        let limits = Limits::default();
        let mut set = Collector::new(&limits);
        set.push("a", 0, &jpeg).unwrap();
        set.push("b", 1, &jpeg).unwrap();
        let set = set.finish("t", names(2)).unwrap();
        assert_eq!(set.shape, [1, 8, 16]);
        let Data::U8(pixels) = set.data else { panic!("u8 expected") };
        assert!(pixels.iter().all(|p| p.abs_diff(128) <= 2));
    }

    #[test]
    fn bad_images_are_refused_by_name() {
        let limits = Limits { max_pixels_per_image: 100, max_examples: 2, ..Limits::default() };
        let mut set = Collector::new(&limits);
        let mut code = |name: &str, bytes: &[u8]| {
            let error = set.push(name, 0, bytes).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            error.code()
        };
        assert_eq!(code("text.png", b"hello"), "image_invalid");
        assert_eq!(code("gif.png", b"GIF89a\x01\0\x01\0"), "image_invalid");
        assert_eq!(code("cut.png", &grey_png(8, 8, 1)[..50]), "image_invalid");
        assert_eq!(code("big.png", &grey_png(11, 10, 1)), "limit_exceeded");
        assert_eq!(code("huge.png", &lying_png(4_000_000_000, 4_000_000_000)), "image_invalid");
        assert_eq!(code("large.png", &lying_png(40_000, 50_000)), "limit_exceeded");
        set.push("ok", 0, &grey_png(4, 5, 1)).unwrap();
        let error = set.push("other.png", 1, &grey_png(5, 4, 1)).unwrap_err();
        assert_eq!(error.code(), "image_size_mismatch");
        assert!(error.to_string().contains("5x4") && error.to_string().contains("4x5"), "{error}");
        set.push("ok", 0, &grey_png(4, 5, 1)).unwrap();
        assert_eq!(set.push("third", 1, &grey_png(4, 5, 1)).unwrap_err().code(), "limit_exceeded");
        assert_eq!(set.finish("t", names(2)).unwrap_err().code(), "class_without_images");
    }

    #[test]
    fn decoded_bytes_are_bounded() {
        let limits = Limits { max_decompressed_bytes: 150, ..Limits::default() };
        let mut set = Collector::new(&limits);
        set.push("a", 0, &grey_png(10, 10, 0)).unwrap();
        assert_eq!(set.push("b", 1, &grey_png(10, 10, 0)).unwrap_err().code(), "limit_exceeded");
    }
}
