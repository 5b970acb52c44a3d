use proptest::prelude::*;

use super::*;

/// An npz of the given arrays: name, element type, shape, raw data.
fn npz(arrays: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
    let members: Vec<(&str, Vec<u8>)> =
        arrays.iter().map(|(name, descr, shape, data)| (*name, npy::write(descr, shape, data))).collect();
    write_zip(&members).unwrap()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    words(values, |v| v.to_le_bytes())
}

fn labels(values: &[u8]) -> (&'static str, &'static str, [usize; 1], Vec<u8>) {
    ("labels", "|u1", [values.len()], values.to_vec())
}

fn refused(arrays: &[(&str, &str, &[usize], Vec<u8>)]) -> (&'static str, String) {
    let error = from_npz(&npz(arrays), &Limits::default()).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn what_numpy_wrote_loads() {
    // numpy 2.4: savez(images=arange(36, u8) [6, 2, 3], labels=[0, 1, 2, 0, 1, 2] int64)
    let images = from_npz(include_bytes!("../tests/data/numpy_images.npz"), &Limits::default()).unwrap();
    assert_eq!(images.shape, [1, 2, 3]);
    assert_eq!(images.labels, [0, 1, 2, 0, 1, 2]);
    assert_eq!(images.class_names, ["0", "1", "2"]);
    assert_eq!(images.data, Data::U8((0..36).collect()));
    // savez_compressed(features=asfortranarray(arange(12) / 4 - 1) [4, 3], labels=>i2, class_names=<U7)
    let features = from_npz(include_bytes!("../tests/data/numpy_features.npz"), &Limits::default()).unwrap();
    assert_eq!(features.shape, [3]);
    assert_eq!(features.labels, [1, 0, 1, 0]);
    assert_eq!(features.class_names, ["chat", "chien é"]);
    assert_eq!(features.data, Data::F32((0..12u8).map(|v| f32::from(v) / 4.0 - 1.0).collect()));
}

#[test]
fn another_reader_agrees_with_what_is_written() {
    let digits = crate::digits::load().unwrap();
    let some = digits.take(&(0..30).collect::<Vec<_>>());
    let bytes = to_npz(&some).unwrap();
    assert_eq!(bytes, to_npz(&some).unwrap());
    let members = members(Cursor::new(&bytes), &Limits::default()).unwrap();
    let images = npyz::NpyFile::new(&members["images"][..]).unwrap();
    assert_eq!(images.shape(), [30, 1, 8, 8]);
    assert_eq!(Data::U8(images.into_vec().unwrap()), some.data);
    let labels = npyz::NpyFile::new(&members["labels"][..]).unwrap();
    assert_eq!(labels.into_vec::<u32>().unwrap(), some.labels);
}

#[test]
fn rows_of_bad_values_are_named() {
    let row_of = |value: f32, name: &str, shape: &[usize]| {
        let mut values = vec![0.5f32; 4];
        values[3] = value;
        let (l, dtype, dims, data) = labels(&[0, 1]);
        refused(&[(name, "<f4", shape, f32s(&values)), (l, dtype, &dims, data)])
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (name, shape) in [("features", &[2, 2][..]), ("images", &[2, 1, 2])] {
            let (code, message) = row_of(value, name, shape);
            assert_eq!(code, "non_finite");
            assert!(message.contains("row 1") && message.contains(name), "{message}");
        }
    }
    let (code, message) = row_of(1.5, "images", &[2, 1, 2]);
    assert_eq!(code, "value_out_of_range");
    assert!(message.contains("row 1"), "{message}");
    let too_large = [0.0f64, 1.0, 2.0, 1e300].iter().flat_map(|v| v.to_le_bytes()).collect();
    let (l, dtype, dims, data) = labels(&[0, 1]);
    assert_eq!(refused(&[("features", "<f8", &[2, 2], too_large), (l, dtype, &dims, data)]).0, "non_finite");
}

#[test]
fn arrays_that_do_not_fit_are_refused() {
    let check = |name: &str, descr: &str, shape: &[usize], bytes: usize, word: &str| {
        let (l, dtype, dims, data) = labels(&[0, 1]);
        let (code, message) = refused(&[(name, descr, shape, vec![0; bytes]), (l, dtype, &dims, data)]);
        assert_eq!(code, "npz_invalid", "{message}");
        assert!(message.contains(word), "{message}");
    };
    check("images", "|u1", &[3, 1, 2], 6, "3 rows");
    check("images", "|u1", &[2, 3], 6, "[n, h, w]");
    check("images", "|u1", &[2, 4, 4, 3], 96, "channels last");
    check("images", "|u1", &[2, 0, 4], 0, "at least 1");
    check("images", "<i4", &[2, 1, 1], 8, "i4");
    check("images", "|u1", &[2, 1, 2], 3, "promises 4 bytes");
    check("features", "|u1", &[2, 1], 2, "features are floats");
    check("features", "<f4", &[2], 8, "[n, d]");
    check("features", "<c8", &[2, 1], 16, "element type");
    check("other", "|u1", &[2, 1], 2, "neither");
    let image = || ("images", "|u1", &[2usize, 1, 1][..], vec![0, 0]);
    assert_eq!(refused(&[image()]).0, "npz_invalid");
    assert_eq!(refused(&[image(), ("labels", "<f4", &[2], vec![0; 8])]).0, "npz_invalid");
    assert_eq!(refused(&[image(), ("labels", "|u1", &[2, 1], vec![0; 2])]).0, "npz_invalid");
}

#[test]
fn labels_and_classes_are_checked() {
    let image = || ("images", "|u1", &[2usize, 1, 1][..], vec![0, 0]);
    let with = |labels: &[i8], names: Option<&str>| {
        let mut arrays = vec![image(), ("labels", "|i1", &[2usize][..], labels.iter().map(|&l| l as u8).collect())];
        let shape = [names.map_or(0, str::len)];
        if let Some(names) = names {
            arrays.push(("class_names", "|u1", &shape, names.as_bytes().to_vec()));
        }
        refused(&arrays)
    };
    let (code, message) = with(&[0, -1], None);
    assert_eq!(code, "labels_out_of_range");
    assert!(message.contains("-1") && message.contains("example 1"), "{message}");
    assert_eq!(with(&[0, 2], Some(r#"["a","b"]"#)).0, "labels_out_of_range");
    assert_eq!(with(&[0, 0], None).0, "too_few_classes");
    assert_eq!(with(&[0, 2], None).0, "class_without_images");
    assert_eq!(with(&[0, 1], Some(r#"["a","b","c"]"#)).0, "class_without_images");
    assert_eq!(with(&[0, 1], Some(r#"["a","a"]"#)).0, "duplicate_class");
    assert_eq!(with(&[0, 1], Some("cat,dog")).0, "npz_invalid");
    let huge =
        vec![image(), ("labels", "<u8", &[2usize][..], [0, u64::MAX].iter().flat_map(|l| l.to_le_bytes()).collect())];
    assert_eq!(refused(&huge).0, "limit_exceeded");
}

#[test]
fn damage_and_limits() {
    let digits = crate::digits::load().unwrap();
    let some = digits.take(&(0..20).collect::<Vec<_>>());
    let bytes = to_npz(&some).unwrap();
    for length in 0..bytes.len() {
        assert_eq!(from_npz(&bytes[..length], &Limits::default()).unwrap_err().code(), "zip_invalid");
    }
    for limits in [
        Limits { max_examples: 19, ..Limits::default() },
        Limits { max_pixels_per_image: 63, ..Limits::default() },
        Limits { max_classes: 9, ..Limits::default() },
        Limits { max_decompressed_bytes: 1000, ..Limits::default() },
    ] {
        assert_eq!(from_npz(&bytes, &limits).unwrap_err().code(), "limit_exceeded", "{limits:?}");
    }
    let one_class = digits.take(&[0]);
    assert_eq!(to_npz(&one_class).unwrap_err().code(), "class_without_images");
}

fn dataset() -> impl Strategy<Value = Dataset> {
    let sizes = (2usize..5, 0usize..6, prop_oneof![Just(1usize), Just(3)], 1usize..4, 1usize..4, 0u8..3);
    sizes.prop_flat_map(|(classes, extra, c, h, w, kind)| {
        let n = classes + extra;
        let shape = if kind == 0 { vec![c * h * w] } else { vec![c, h, w] };
        let values = n * c * h * w;
        let data = match kind {
            0 => {
                prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::ZERO | prop::num::f32::SUBNORMAL, values)
                    .prop_map(Data::F32)
                    .boxed()
            }
            1 => prop::collection::vec(any::<u8>(), values).prop_map(Data::U8).boxed(),
            _ => prop::collection::vec(0.0f32..=1.0, values).prop_map(Data::F32).boxed(),
        };
        let labels = prop::collection::vec(0..classes as u32, extra)
            .prop_map(move |extra| (0..classes as u32).chain(extra).collect::<Vec<_>>());
        (".{0,8}", prop::collection::hash_set(".{0,6}", classes), data, labels).prop_map(
            move |(name, names, data, labels)| {
                Dataset::new(name, shape.clone(), names.into_iter().collect(), data, labels).unwrap()
            },
        )
    })
}

proptest! {
    #[test]
    fn round_trip_is_exact(dataset in dataset()) {
        let bytes = to_npz(&dataset).unwrap();
        let back = from_npz(&bytes, &Limits::default()).unwrap();
        prop_assert_eq!(&back, &dataset);
        prop_assert_eq!(back.digest(), dataset.digest());
        prop_assert_eq!(to_npz(&back).unwrap(), bytes);
    }

    #[test]
    fn arbitrary_members_never_panic(
        images in prop::collection::vec(any::<u8>(), 0..80), labels in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let bytes = write_zip(&[("images", images.clone()), ("labels", labels)]).unwrap();
        prop_assert!(from_npz(&bytes, &Limits::default()).is_err());
        prop_assert!(from_npz(&images, &Limits::default()).is_err());
    }

    #[test]
    fn a_damaged_npz_never_panics(
        dataset in dataset(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = to_npz(&dataset).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = from_npz(&bytes, &Limits { max_decompressed_bytes: 1 << 20, ..Limits::default() });
    }
}
