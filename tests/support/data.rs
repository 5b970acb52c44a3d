//! Labelled data as requests carry it.

use std::io::{Cursor, Read, Write};
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use datasets::{Data, Dataset};
use serde_json::{Value, json};

/// The real handwritten digits.
pub fn digits() -> &'static Dataset {
    static DIGITS: OnceLock<Dataset> = OnceLock::new();
    DIGITS.get_or_init(|| datasets::load_source("digits").unwrap())
}

/// The images of these digits from the `from`th to before the `to`th of each, the classes in this order.
pub fn some_digits(classes: &[u32], from: usize, to: usize) -> Dataset {
    let chosen = digits().select_classes(classes).unwrap();
    let all: Vec<usize> = (0..chosen.len()).collect();
    let indices: Vec<usize> = chosen.class_indices(&all).iter().flat_map(|class| class[from..to].to_vec()).collect();
    chosen.take(&indices)
}

/// A safetensors file of one tensor `w` of two values.
pub fn safetensors(values: [f32; 2]) -> Vec<u8> {
    let header = json!({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).to_string();
    let padded = header.len().next_multiple_of(8);
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(8 + padded, b' ');
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// An npz in base64.
pub fn npz(dataset: &Dataset) -> String {
    base64(&datasets::npz::to_npz(dataset).unwrap())
}

fn png_file(side: u32, pixels: Vec<u8>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = image::GrayImage::from_raw(side, side, pixels).unwrap();
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn png_files(dataset: &Dataset) -> Vec<(String, Vec<u8>)> {
    let Data::U8(pixels) = &dataset.data else { panic!("images of bytes are needed") };
    let side = dataset.shape[1];
    let files = pixels.chunks_exact(side * side).zip(&dataset.labels);
    let name = |label: &u32| dataset.class_names[*label as usize].clone();
    files.map(|(pixels, label)| (name(label), png_file(side as u32, pixels.to_vec()))).collect()
}

/// The list `images` of a request.
pub fn images(dataset: &Dataset) -> Value {
    png_files(dataset).iter().map(|(class, file)| json!({"class": class, "data": base64(file)})).collect()
}

/// One grey image of a request.
pub fn grey(class: &str, side: u32, value: u8) -> Value {
    json!({"class": class, "data": base64(&png_file(side, vec![value; (side * side) as usize]))})
}

/// A zip of `CLASS/N.png`.
pub fn zip(dataset: &Dataset) -> Vec<u8> {
    let files = png_files(dataset);
    let named = files.iter().enumerate().map(|(n, (class, file))| (format!("{class}/{n:04}.png"), file.as_slice()));
    archive(named)
}

fn archive<'a>(files: impl Iterator<Item = (String, &'a [u8])>) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// An npz of feature vectors whose row 1 holds a NaN.
pub fn npz_with_nan(dim: usize, rows: usize, classes: &[&str]) -> Vec<u8> {
    const MARK: f32 = 0.123_456_79;
    let mut values = vec![0.5; dim * rows];
    values[dim + 3] = MARK;
    let names = classes.iter().map(|name| (*name).to_owned()).collect();
    let labels = (0..rows as u32).map(|row| row % classes.len() as u32).collect();
    let data = Dataset::new("features", vec![dim], names, Data::F32(values), labels).unwrap();
    // The writer would not write a NaN, and an archive has checksums: its entries are written anew.
    let npz = datasets::npz::to_npz(&data).unwrap();
    let mut files = zip::ZipArchive::new(Cursor::new(npz)).unwrap();
    let mut entries = Vec::new();
    let mut changed = 0;
    for index in 0..files.len() {
        let mut entry = files.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if let Some(at) = bytes.windows(4).position(|word| word == MARK.to_le_bytes()) {
            bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            changed += 1;
        }
        entries.push((entry.name().unwrap().into_owned(), bytes));
    }
    assert_eq!(changed, 1);
    archive(entries.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())))
}
