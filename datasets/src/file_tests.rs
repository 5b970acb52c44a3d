use std::io::{Cursor, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::images::tests::{grey_png, rgb_png};

fn zip(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn pair() -> (Vec<u8>, Vec<u8>) {
    let pixels: Vec<u8> = (0..24).collect();
    (idx::write_images(4, &[1, 2, 3], &pixels).unwrap(), idx::write_labels(&[0, 1, 1, 0]).unwrap())
}

fn parse(bytes: &[u8], format: Format, options: &ReadOptions) -> Result<Dataset> {
    read(Cursor::new(bytes), format, options, &Limits::default())
}

fn plain(bytes: &[u8], format: Format) -> Result<Dataset> {
    parse(bytes, format, &ReadOptions::default())
}

#[test]
fn images_and_labels_of_idx_come_one_after_the_other() {
    let (images, labels) = pair();
    let data = plain(&[images.clone(), labels.clone()].concat(), Format::Idx).unwrap();
    assert_eq!((data.shape.clone(), data.labels.clone()), (vec![1, 2, 3], vec![0, 1, 1, 0]));
    let packed = [gz(&images), gz(&labels)].concat();
    assert_eq!(plain(&packed, Format::Idx).unwrap(), data);
    assert_eq!(plain(&gz(&[images.clone(), labels.clone()].concat()), Format::Idx).unwrap(), data);
    let code = |parts: &[&[u8]]| plain(&parts.concat(), Format::Idx).unwrap_err().code();
    assert_eq!(code(&[&labels, &images]), "idx_invalid");
    assert_eq!(code(&[&images]), "idx_invalid");
    assert_eq!(code(&[&images, &labels, &[0]]), "idx_invalid");
    assert_eq!(code(&[&images, &labels[..labels.len() - 1]]), "idx_header_mismatch");
    assert_eq!(code(&[&images, &idx::write_labels(&[0, 1, 1]).unwrap()]), "dataset_mismatch");
    assert_eq!(code(&[&images, &idx::write_labels(&[0, 2, 2, 0]).unwrap()]), "class_without_images");
    let lying = [0u8, 0, 8, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9];
    assert_eq!(code(&[&lying]), "limit_exceeded");
}

#[test]
fn images_are_brought_to_one_shape() {
    let bytes = zip(&[("a/1.png", grey_png(4, 4, 100)), ("b/1.png", rgb_png(2, 8, [100, 100, 100]))]);
    assert_eq!(plain(&bytes, Format::Zip).unwrap_err().code(), "image_size_mismatch");
    let options = ReadOptions { channels: Some(1), size: Some([3, 5]), labels: None };
    let data = parse(&bytes, Format::Zip, &options).unwrap();
    assert_eq!((data.shape, data.data), (vec![1, 3, 5], Data::U8(vec![100; 30])));
    let colour = ReadOptions { channels: Some(3), size: Some([2, 2]), labels: None };
    assert_eq!(parse(&bytes, Format::Zip, &colour).unwrap().data, Data::U8(vec![100; 24]));
    let (images, labels) = pair();
    let idx = parse(&[images, labels].concat(), Format::Idx, &colour).unwrap();
    assert_eq!(idx.shape, [3, 2, 2]);
    for wrong in [
        ReadOptions { channels: Some(2), ..ReadOptions::default() },
        ReadOptions { size: Some([0, 4]), ..ReadOptions::default() },
    ] {
        assert_eq!(parse(&bytes, Format::Zip, &wrong).unwrap_err().code(), "dataset_invalid");
    }
}

#[test]
fn channels_convert_both_ways() {
    let data = Data::U8([[255u8; 2], [0; 2], [0; 2], [0; 2], [255; 2], [0; 2]].concat());
    let rgb = Dataset::new("c", vec![3, 1, 2], vec!["a".into(), "b".into()], data, vec![0, 1]).unwrap();
    let grey = rgb.clone().with_channels(1).unwrap();
    assert_eq!(grey.data, Data::U8(vec![54, 54, 182, 182]));
    assert_eq!(grey.with_channels(3).unwrap().data, Data::U8([[54u8; 6], [182; 6]].concat()));
    assert_eq!(rgb.with_channels(2).unwrap_err().code(), "dataset_invalid");
}

#[test]
fn labels_may_come_apart_from_the_archive() {
    let bytes = zip(&[("x/1.png", grey_png(2, 2, 1)), ("x/2.png", grey_png(2, 2, 2))]);
    let labels = Some(b"path,label\nx/1.png,b\nx/2.png,a\n".to_vec());
    let data = parse(&bytes, Format::Zip, &ReadOptions { labels, ..ReadOptions::default() }).unwrap();
    assert_eq!((data.class_names, data.labels), (vec!["a".to_owned(), "b".to_owned()], vec![1, 0]));
}

#[test]
fn a_file_is_limited_in_its_size_files_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.zip");
    std::fs::write(&path, zip(&[("a/1.png", grey_png(2, 2, 1)), ("b/1.png", grey_png(2, 2, 2))])).unwrap();
    let code = |limits: Limits| {
        read_file(&path, Format::Zip, &ReadOptions::default(), &limits).map_or_else(|e| e.code(), |_| "fine")
    };
    assert_eq!(code(Limits::default()), "fine");
    assert_eq!(code(Limits { max_compressed_bytes: 100, ..Limits::default() }), "limit_exceeded");
    assert_eq!(code(Limits { max_files: 1, ..Limits::default() }), "limit_exceeded");
    assert_eq!(code(Limits { max_values: 7, ..Limits::default() }), "limit_exceeded");
    assert_eq!(code(Limits { max_values: 8, max_files: 2, ..Limits::default() }), "fine");
}

#[test]
fn formats_are_known_by_name() {
    for name in FORMATS {
        let format: Format = name.parse().unwrap();
        assert!(format == Format::Tar || format.to_string() == name);
        assert_eq!(Format::of_name(&format!("DATA.{name}")), Some(format));
    }
    assert_eq!("rar".parse::<Format>().unwrap_err().code(), "unknown_format");
    assert_eq!(Format::of_name("x.png"), None);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..500), packed: bool) {
        let bytes = if packed { gz(&bytes) } else { bytes };
        for format in [Format::Zip, Format::Tar, Format::Idx, Format::Npz] {
            prop_assert!(plain(&bytes, format).is_err());
        }
    }

    #[test]
    fn a_damaged_idx_pair_never_panics(
        packed: bool, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (images, labels) = pair();
        let mut bytes = if packed { [gz(&images), gz(&labels)].concat() } else { [images, labels].concat() };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let limits = Limits { max_decompressed_bytes: 1 << 20, ..Limits::default() };
        if let Ok(data) = read(Cursor::new(&bytes), Format::Idx, &ReadOptions::default(), &limits) {
            prop_assert!(data.data.len() <= 1 << 20);
        }
    }
}
