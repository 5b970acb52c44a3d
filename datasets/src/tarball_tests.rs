use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;
use crate::images::tests::grey_png;

fn append(builder: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, bytes: &[u8]) {
    let mut header = Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, bytes).unwrap();
}

fn tar(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    entries.iter().for_each(|(name, bytes)| append(&mut builder, name.as_bytes(), EntryType::Regular, bytes));
    builder.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn two_classes() -> Vec<u8> {
    tar(&[("pets/dog/1.png", grey_png(2, 2, 2)), ("pets/cat/1.png", grey_png(2, 2, 1)), ("pets/README", vec![1])])
}

fn read(bytes: &[u8]) -> Result<Dataset> {
    from_tar(bytes, &Limits::default())
}

fn code(bytes: &[u8]) -> &'static str {
    read(bytes).unwrap_err().code()
}

#[test]
fn plain_and_compressed_are_the_same() {
    let plain = read(&two_classes()).unwrap();
    assert_eq!(plain.class_names, ["cat", "dog"]);
    assert_eq!(read(&gz(&two_classes())).unwrap().digest(), plain.digest());
}

#[test]
fn long_names_are_read_as_tar_writes_them() {
    let long = format!("{}/x.png", "c".repeat(150));
    let mut builder = Builder::new(Vec::new());
    for (name, value) in [(long.as_str(), 1), ("dog/1.png", 2)] {
        let png = grey_png(2, 2, value);
        let mut header = Header::new_gnu();
        header.set_size(png.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &png[..]).unwrap();
    }
    let data = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!(data.class_names, ["c".repeat(150), "dog".to_owned()]);

    let record = |key: &str, value: &str| format!("{} {key}={value}\n", 4 + key.len() + value.len() + 1);
    let pax = record("path", "cat/from-pax.png");
    assert_eq!(pax.len(), pax.split(' ').next().unwrap().parse::<usize>().unwrap());
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, b"pax", EntryType::XHeader, pax.as_bytes());
    append(&mut builder, b"short", EntryType::Regular, &grey_png(2, 2, 1));
    append(&mut builder, b"dog/1.png", EntryType::Regular, &grey_png(2, 2, 2));
    assert_eq!(read(&builder.into_inner().unwrap()).unwrap().class_names, ["cat", "dog"]);
}

#[test]
fn labels_come_from_a_csv() {
    let csv = b"path,label\nx/1.png,10\nx/2.png,2\n".to_vec();
    let images = [("set/x/1.png", grey_png(2, 2, 1)), ("set/x/2.png", grey_png(2, 2, 2))];
    let with = |csv: Vec<u8>| tar(&[&[("set/labels.csv", csv)][..], &images].concat());
    let data = read(&with(csv)).unwrap();
    assert_eq!((data.class_names, data.labels), (vec!["2".to_owned(), "10".to_owned()], vec![1, 0]));
    let missing = read(&with(b"path,label\nx/1.png,a\nx/2.png,b\nx/3.png,a\n".to_vec())).unwrap_err();
    assert_eq!(missing.code(), "labels_csv_invalid");
    assert!(missing.to_string().contains("x/3.png"), "{missing}");
    let unlabelled = read(&with(b"path,label\nx/1.png,a\n".to_vec())).unwrap_err();
    assert!(unlabelled.to_string().contains("x/2.png"), "{unlabelled}");
}

#[test]
fn what_a_tar_of_images_never_holds_is_refused() {
    let image = grey_png(2, 2, 1);
    for name in ["../a/1.png", "/etc/passwd", "a/../../b", "C:\\x\\y"] {
        assert_eq!(code(&tar(&[(name, image.clone())])), "tar_unsafe_path", "{name:?}");
    }
    for kind in [EntryType::Symlink, EntryType::Link, EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let mut builder = Builder::new(Vec::new());
        append(&mut builder, b"cat/1.png", kind, b"");
        assert_eq!(code(&builder.into_inner().unwrap()), "tar_unsafe_path", "{kind:?}");
    }
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, b"c\xff/1.png", EntryType::Regular, &image);
    assert_eq!(code(&builder.into_inner().unwrap()), "tar_invalid");
    let twice = tar(&[("a/1.png", image.clone()), ("./a/1.png", image.clone()), ("b/1.png", image)]);
    assert_eq!(code(&twice), "tar_invalid");
    assert_eq!(code(&[]), "too_few_classes");
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = two_classes();
    // Two blocks of zeros end a tar; without the second, or both, the content is whole.
    let content = bytes.len() - 1024;
    for length in (0..content).step_by(7) {
        assert!(read(&bytes[..length]).is_err(), "cut at {length} of {content}");
    }
    let packed = gz(&bytes);
    for length in 1..packed.len() - 8 {
        assert!(read(&packed[..length]).is_err(), "cut at {length}");
    }
}

#[test]
fn bombs_end_early() {
    let limits = Limits { max_decompressed_bytes: 1 << 16, max_files: 10, ..Limits::default() };
    let refused = |bytes: &[u8]| from_tar(bytes, &limits).unwrap_err();
    assert_eq!(refused(&gz(&tar(&[("a/1.png", vec![0; 1 << 24])]))).code(), "limit_exceeded");
    let names: Vec<String> = (0..12).map(|i| format!("c/{i}.png")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), grey_png(2, 2, 1))).collect();
    assert_eq!(refused(&tar(&many)).code(), "limit_exceeded");
    // Skipped entries are read over, and there is an end to that too.
    assert_eq!(refused(&gz(&tar(&[(".hidden", vec![0; 1 << 24]), ("a/1.png", vec![])]))).code(), "limit_exceeded");
    let mut builder = Builder::new(Vec::new());
    append(&mut builder, b"x", EntryType::GNULongName, &vec![b'a'; 1 << 20]);
    assert_eq!(refused(&builder.into_inner().unwrap()).code(), "limit_exceeded");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), packed: bool) {
        let bytes = if packed { gz(&bytes) } else { bytes };
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn a_damaged_tar_never_panics(
        packed: bool, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = if packed { gz(&two_classes()) } else { two_classes() };
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let limits = Limits { max_decompressed_bytes: 1 << 20, max_files: 100, ..Limits::default() };
        if let Ok(data) = from_tar(&bytes[..], &limits) {
            prop_assert!(data.data.len() <= 1 << 20);
        }
    }
}
