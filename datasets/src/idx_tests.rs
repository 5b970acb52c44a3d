use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `n` images of 2x3 whose pixels are all their own index from `first`.
fn images(first: u8, n: u8) -> Vec<u8> {
    let pixels: Vec<u8> = (first..first + n).flat_map(|i| [i; 6]).collect();
    write_images(n.into(), &[1, 2, 3], &pixels).unwrap()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn header(dims: &[u32]) -> Vec<u8> {
    let dims_bytes = dims.iter().flat_map(|d| d.to_be_bytes());
    [0, 0, 8, dims.len() as u8].into_iter().chain(dims_bytes).collect()
}

#[test]
fn the_bytes_of_the_format() {
    // Written out by hand from the description of the format.
    let plain = [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 9, 8, 7, 6];
    assert_eq!(parse_images(&plain).unwrap(), (1, vec![1, 2, 2], vec![9, 8, 7, 6]));
    assert_eq!(write_images(1, &[1, 2, 2], &[9, 8, 7, 6]).unwrap(), plain);
    assert_eq!(parse_labels(&[0, 0, 8, 1, 0, 0, 0, 2, 4, 5]).unwrap(), [4, 5]);
    let colour = write_images(1, &[3, 1, 2], &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(parse_images(&gzip(&colour)).unwrap(), (1, vec![3, 1, 2], vec![1, 2, 3, 4, 5, 6]));
    assert!(write_images(2, &[1, 2, 2], &[0; 4]).is_err());
}

#[test]
fn a_header_that_lies_is_told_with_both_numbers() {
    let limits = Limits::default();
    for packed in [false, true] {
        let parse = |bytes: Vec<u8>| parse_images_with(&if packed { gzip(&bytes) } else { bytes }, &limits);
        let message = |bytes: Vec<u8>| {
            let error = parse(bytes).unwrap_err();
            assert_eq!(error.code(), "idx_header_mismatch", "{error}");
            error.to_string()
        };
        let few = message([header(&[10, 2, 3]), vec![0; 59]].concat());
        assert!(few.contains("60") && few.contains("59"), "{few}");
        let many = message([header(&[10, 2, 3]), vec![0; 1000]].concat());
        assert!(many.contains("60") && many.contains(if packed { "61" } else { "1000" }), "{many}");
        let absurd = message([header(&[u32::MAX; 4]), vec![0; 5]].concat());
        assert!(absurd.contains("340282366604025813516997721482669850625") && absurd.contains('5'), "{absurd}");
        let labels = [header(&[3]), vec![0; 2]].concat();
        assert_eq!(parse_labels(&labels).unwrap_err().code(), "idx_header_mismatch");
    }
}

#[test]
fn what_is_not_idx_is_refused() {
    let code = |bytes: &[u8]| parse_images(bytes).unwrap_err().code();
    assert_eq!(code(b""), "idx_invalid");
    assert_eq!(code(b"\x89PNG"), "idx_invalid");
    assert_eq!(code(&[0, 0, 0x0d, 3]), "idx_invalid");
    assert_eq!(code(&header(&[1, 2, 3])[..10]), "idx_invalid");
    assert_eq!(code(&header(&[0, 2, 3])), "idx_invalid");
    assert_eq!(code(&[header(&[3]), vec![0; 3]].concat()), "idx_invalid");
    let packed = gzip(&images(0, 200));
    assert_eq!(code(&packed[..packed.len() - 9]), "idx_invalid");
    assert_eq!(code(&packed[..12]), "idx_invalid");
}

#[test]
fn limits_hold_for_honest_headers_too() {
    let code = |bytes: &[u8], limits: &Limits| parse_images_with(bytes, limits).unwrap_err().code();
    let bytes = images(0, 20);
    for bytes in [bytes.clone(), gzip(&bytes)] {
        assert_eq!(code(&bytes, &Limits { max_examples: 19, ..Limits::default() }), "limit_exceeded");
        assert_eq!(code(&bytes, &Limits { max_pixels_per_image: 5, ..Limits::default() }), "limit_exceeded");
        assert_eq!(code(&bytes, &Limits { max_decompressed_bytes: 119, ..Limits::default() }), "limit_exceeded");
    }
    // A bomb: its header keeps its promise, which is over the limit.
    let bomb = gzip(&[header(&[1, 4000, 4000]), vec![0; 16_000_000]].concat());
    assert!(bomb.len() < 20_000);
    assert_eq!(code(&bomb, &Limits { max_decompressed_bytes: 1 << 20, ..Limits::default() }), "limit_exceeded");
}

#[test]
fn folders_join_train_and_test() {
    let dir = folder(&[
        ("t10k-images.idx3-ubyte", images(3, 2)),
        ("t10k-labels.idx1-ubyte", write_labels(&[1, 3]).unwrap()),
        ("train-images-idx3-ubyte.gz", gzip(&images(0, 3))),
        ("train-labels-idx1-ubyte", write_labels(&[2, 0, 1]).unwrap()),
        ("LICENSE", vec![65]),
    ]);
    let all = load_dir(dir.path()).unwrap();
    assert_eq!(all.labels, [2, 0, 1, 1, 3]);
    assert_eq!(all.class_names, ["0", "1", "2", "3"]);
    assert_eq!(all.data, Data::U8((0..5).flat_map(|i| [i; 6]).collect()));
    let (train, test) = load_dir_parts(dir.path()).unwrap();
    assert_eq!((train.labels.as_slice(), test.labels.as_slice()), ([2, 0, 1].as_slice(), [1, 3].as_slice()));
    assert_eq!((train.classes(), test.classes()), (4, 4));
    assert_eq!(train.concat(&test).unwrap(), all);
    let pair = load_pair(&dir.path().join("train-images-idx3-ubyte.gz"), &dir.path().join("train-labels-idx1-ubyte"));
    assert_eq!(pair.unwrap().classes(), 3);
    assert_eq!(crate::load_source(&format!("idx:{}", dir.path().display())).unwrap(), all);
}

#[test]
fn bad_folders_say_what_is_missing() {
    let refused = |files: &[(&str, Vec<u8>)]| {
        let error = load_dir(folder(files).path()).unwrap_err();
        (error.code(), error.to_string())
    };
    assert_eq!(refused(&[("LICENSE", vec![1])]).0, "folder_invalid");
    let (code, message) = refused(&[("train-images-idx3-ubyte", images(0, 2))]);
    assert_eq!(code, "folder_invalid");
    assert!(message.contains("train-labels-idx1-ubyte"), "{message}");
    let labels = |labels: &[u8]| ("train-labels-idx1-ubyte", write_labels(labels).unwrap());
    let (code, message) = refused(&[("train-images-idx3-ubyte", images(0, 2)), labels(&[0, 1, 1])]);
    assert_eq!(code, "dataset_mismatch");
    assert!(message.contains("2 images") && message.contains("3 labels"), "{message}");
    assert_eq!(refused(&[("train-images-idx3-ubyte", images(0, 2)), labels(&[0, 0])]).0, "too_few_classes");
    let only_train = folder(&[("train-images-idx3-ubyte", images(0, 2)), labels(&[0, 1])]);
    assert_eq!(load_dir_parts(only_train.path()).unwrap_err().code(), "folder_invalid");
    assert_eq!(load_dir(Path::new("no/such/folder")).unwrap_err().code(), "io");
}

/// Real sets, where the environment points to them; each is a folder of IDX files.
#[test]
fn real_data_when_it_is_there() {
    let Some(root) = std::env::var_os("WEIGHTSMITH_DATA") else { return };
    let mut found = 0;
    for entry in fs::read_dir(&root).unwrap() {
        let dir = entry.unwrap().path();
        match load_dir(&dir) {
            Ok(data) => {
                assert!(data.len() > 1000 && data.modality() == crate::Modality::Image, "{}", data.name);
                data.require_every_class().unwrap();
                let small = data.take(&(0..50).collect::<Vec<_>>()).resize(16, 16).unwrap();
                assert_eq!(small.shape, [1, 16, 16]);
                found += 1;
            }
            // Other kinds of data may lie beside them.
            Err(error) => assert!(matches!(error.code(), "folder_invalid" | "io"), "{error}"),
        }
    }
    assert!(found > 0, "WEIGHTSMITH_DATA holds no IDX set");
}

proptest! {
    #[test]
    fn round_trip(
        n in 1usize..6, grey: bool, h in 1usize..5, w in 1usize..5, packed: bool, seed in prop::collection::vec(any::<u8>(), 1..9),
    ) {
        let shape = vec![if grey { 1 } else { 3 }, h, w];
        let pixels: Vec<u8> = seed.iter().copied().cycle().take(n * shape.iter().product::<usize>()).collect();
        let bytes = write_images(n, &shape, &pixels).unwrap();
        let bytes = if packed { gzip(&bytes) } else { bytes };
        prop_assert_eq!(parse_images(&bytes).unwrap(), (n, shape, pixels));
        let labels = write_labels(&seed).unwrap();
        prop_assert_eq!(parse_labels(&if packed { gzip(&labels) } else { labels }).unwrap(), seed);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..64), idx: bool, packed: bool) {
        if idx && bytes.len() >= 4 {
            bytes[..3].copy_from_slice(&[0, 0, 8]);
            bytes[3] %= 5;
        }
        let limits = Limits { max_decompressed_bytes: 1 << 16, ..Limits::default() };
        for bytes in [if packed { gzip(&bytes) } else { bytes.clone() }, [&[0x1f, 0x8b], bytes.as_slice()].concat()] {
            let _ = parse_images_with(&bytes, &limits);
            let _ = parse_labels_with(&bytes, &limits);
        }
    }
}
