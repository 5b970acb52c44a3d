use std::io::Write;

use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;
use crate::Data;
use crate::images::tests::{grey_png, lying_png};

fn zip_with(method: CompressionMethod, entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        if name.ends_with('/') {
            writer.add_directory(*name, options).unwrap();
        } else {
            writer.start_file(*name, options).unwrap();
            writer.write_all(bytes).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

fn zip(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    zip_with(CompressionMethod::Deflated, entries)
}

fn two_classes() -> Vec<u8> {
    zip(&[("cat/1.png", grey_png(2, 2, 1)), ("dog/1.png", grey_png(2, 2, 2))])
}

fn refused(bytes: &[u8], limits: &Limits) -> (&'static str, String) {
    let error = from_zip(bytes, limits).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn order_does_not_depend_on_the_archive() {
    let bytes = zip(&[
        ("pets/", vec![]),
        ("pets/dog/b.png", grey_png(2, 2, 4)),
        ("pets/dog/a.png", grey_png(2, 2, 3)),
        ("__MACOSX/pets/cat/._1.png", vec![1]),
        ("pets/cat/.DS_Store", vec![1]),
        ("pets/README.txt", vec![1]),
        ("pets/cat/1.png", grey_png(2, 2, 1)),
    ]);
    let data = from_zip(&bytes, &Limits::default()).unwrap();
    assert_eq!(data.class_names, ["cat", "dog"]);
    assert_eq!(data.labels, [0, 1, 1]);
    assert_eq!(data.data, Data::U8([[1; 4], [3; 4], [4; 4]].concat()));
    let flat = zip_with(
        CompressionMethod::Stored,
        &[
            ("dog\\a.png", grey_png(2, 2, 3)),
            ("dog/b.png", grey_png(2, 2, 4)),
            ("LICENSE", vec![1]),
            ("cat/1.png", grey_png(2, 2, 1)),
        ],
    );
    assert_eq!(from_zip(&flat, &Limits::default()).unwrap().digest(), data.digest());
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = two_classes();
    from_zip(&bytes, &Limits::default()).unwrap();
    for length in 0..bytes.len() {
        assert_eq!(refused(&bytes[..length], &Limits::default()).0, "zip_invalid", "cut at {length}");
    }
}

#[test]
fn content_is_checked() {
    let image = || grey_png(2, 2, 1);
    let limits = Limits::default();
    let mut damaged = zip_with(CompressionMethod::Stored, &[("a/1.png", image()), ("b/1.png", image())]);
    let at = damaged.windows(4).position(|w| w == b"IDAT").unwrap();
    damaged[at + 6] ^= 0xff;
    assert_eq!(refused(&damaged, &limits).0, "zip_invalid");

    assert_eq!(refused(&zip(&[("a/1.png", image())]), &limits).0, "too_few_classes");
    assert_eq!(refused(&zip(&[]), &limits).0, "too_few_classes");
    assert_eq!(refused(&zip(&[("1.png", image()), ("b/1.png", image())]), &limits).0, "zip_invalid");
    let (code, message) = refused(&zip(&[("a/1.png", image()), ("b/notes.txt", vec![65])]), &limits);
    assert_eq!(code, "image_invalid");
    assert!(message.contains("b/notes.txt"), "{message}");
    let (code, message) = refused(&zip(&[("a/1.png", image()), ("b/1.png", grey_png(3, 2, 1))]), &limits);
    assert_eq!(code, "image_size_mismatch");
    assert!(message.contains("b/1.png"), "{message}");
    let nested = [("a/1.png", image()), ("b/1.png", image()), ("b/c/d.png", image())];
    assert_eq!(refused(&zip(&nested), &limits).0, "zip_invalid");
}

#[test]
fn paths_cannot_leave_the_archive() {
    for name in ["../a/1.png", "a/../../b.png", "/etc/1.png", "..\\a\\1.png", "C:\\a\\1.png", "\\\\host\\a.png"] {
        let bytes = zip(&[("b/1.png", grey_png(2, 2, 1)), (name, grey_png(2, 2, 1))]);
        let (code, message) = refused(&bytes, &Limits::default());
        assert_eq!(code, "zip_unsafe_path", "{name}");
        assert!(message.contains("CLASS/FILE"), "{message}");
    }
}

#[test]
fn bombs_are_refused_early() {
    let limits = Limits { max_decompressed_bytes: 1 << 16, ..Limits::default() };
    let bomb = zip(&[("a/1.png", vec![0; 1 << 24]), ("b/1.png", grey_png(2, 2, 1))]);
    assert!(bomb.len() < 1 << 16);
    assert_eq!(refused(&bomb, &limits).0, "limit_exceeded");
    // each entry is within the limit, all together are not
    let names: Vec<String> = (0..40).map(|i| format!("c{}/{i:02}.png", i % 2)).collect();
    let padded = |i: usize| [grey_png(2, 2, 1), vec![i as u8; 1 << 12]].concat();
    let many: Vec<(&str, Vec<u8>)> = names.iter().enumerate().map(|(i, n)| (n.as_str(), padded(i))).collect();
    assert_eq!(refused(&zip(&many), &limits).0, "limit_exceeded");
    let huge = zip(&[("a/1.png", lying_png(60_000, 60_000)), ("b/1.png", grey_png(2, 2, 1))]);
    assert_eq!(refused(&huge, &Limits::default()).0, "limit_exceeded");
    let few = Limits { max_examples: 1, ..Limits::default() };
    assert_eq!(refused(&two_classes(), &few).0, "limit_exceeded");
    let one_class = Limits { max_classes: 1, ..Limits::default() };
    assert_eq!(refused(&two_classes(), &one_class).0, "limit_exceeded");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(from_zip(&bytes, &Limits::default()).is_err());
    }

    #[test]
    fn a_damaged_archive_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = two_classes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let limits = Limits { max_decompressed_bytes: 1 << 20, ..Limits::default() };
        let _ = from_zip(&bytes, &limits);
    }
}
