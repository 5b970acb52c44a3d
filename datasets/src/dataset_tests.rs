use proptest::prelude::*;

use super::*;

fn names(n: usize) -> Vec<String> {
    (0..n).map(|c| format!("c{c}")).collect()
}

/// Six examples of three classes, example i made of [10 i, 10 i + 1].
fn six() -> Dataset {
    let pixels = (0..6u8).flat_map(|i| [10 * i, 10 * i + 1]).collect();
    Dataset::new("six", vec![1, 1, 2], names(3), Data::U8(pixels), vec![0, 1, 2, 2, 1, 0]).unwrap()
}

#[test]
fn parts_must_agree() {
    let make = |shape: &[usize], classes: usize, data: Data, labels: &[u32]| {
        Dataset::new("t", shape.to_vec(), names(classes), data, labels.to_vec()).map_err(|e| e.code())
    };
    let pixels = || Data::U8(vec![0; 4]);
    let floats = |last: f32| Data::F32(vec![0.0, 0.0, 0.0, last]);
    assert!(make(&[1, 1, 2], 2, pixels(), &[0, 1]).is_ok());
    assert!(make(&[2], 2, floats(-7.0), &[0, 1]).is_ok());
    assert_eq!(make(&[1, 1, 2], 2, pixels(), &[0, 1, 1]), Err("dataset_invalid"));
    assert_eq!(make(&[1, 1, 2], 2, Data::U8(vec![]), &[]), Err("dataset_invalid"));
    assert_eq!(make(&[1, 2], 2, pixels(), &[0, 1]), Err("dataset_invalid"));
    assert_eq!(make(&[2, 1, 1], 2, pixels(), &[0, 1]), Err("dataset_invalid"));
    assert_eq!(make(&[2], 2, pixels(), &[0, 1]), Err("dataset_invalid"));
    assert_eq!(make(&[1, 0, 2], 2, Data::U8(vec![]), &[0, 1]), Err("dataset_invalid"));
    assert_eq!(make(&[1, usize::MAX, 3], 2, pixels(), &[0, 1]), Err("dataset_invalid"));
    assert_eq!(make(&[1, 1, 2], 2, pixels(), &[0, 2]), Err("labels_out_of_range"));
    assert_eq!(make(&[1, 1, 2], 0, pixels(), &[0, 0]), Err("too_few_classes"));
    assert_eq!(make(&[2], 2, floats(f32::NAN), &[0, 1]), Err("non_finite"));
    assert_eq!(make(&[1, 1, 2], 2, floats(-0.1), &[0, 1]), Err("value_out_of_range"));
    let same = vec!["a".to_owned(), "a".to_owned()];
    let error = Dataset::new("t", vec![2], same, floats(0.0), vec![0, 1]).unwrap_err();
    assert_eq!(error.code(), "duplicate_class");
}

#[test]
fn features_of_pixels_and_floats() {
    let data = six();
    assert_eq!((data.len(), data.dim(), data.classes(), data.modality()), (6, 2, 3, Modality::Image));
    assert_eq!(data.gather(&[5, 0]), [50.0 / 255.0, 51.0 / 255.0, 0.0, 1.0 / 255.0]);
    let floats = Dataset::new("f", vec![2], names(1), Data::F32(vec![1.5, -2.0]), vec![0]).unwrap();
    assert_eq!(floats.modality().to_string(), "features");
    assert_eq!(serde_json::to_string(&floats.modality()).unwrap(), "\"features\"");
    let mut row = [0.0; 2];
    floats.write_features(0, &mut row);
    assert_eq!(row, [1.5, -2.0]);
    assert!(data.gather(&[]).is_empty());
}

#[test]
fn class_indices_keep_the_order_asked() {
    assert_eq!(six().class_indices(&[5, 4, 3, 0]), [vec![5, 0], vec![4], vec![3]]);
}

#[test]
fn selecting_relabels_in_the_order_given() {
    let chosen = six().select_classes(&[2, 0]).unwrap();
    assert_eq!(chosen.class_names, ["c2", "c0"]);
    assert_eq!(chosen.labels, [1, 0, 0, 1]);
    assert_eq!(chosen.data, Data::U8(vec![0, 1, 20, 21, 30, 31, 50, 51]));
    let code = |classes: &[u32]| six().select_classes(classes).unwrap_err().code();
    assert_eq!(code(&[3]), "unknown_class");
    assert_eq!(code(&[1, 1]), "duplicate_class");
    assert_eq!(code(&[]), "dataset_invalid");
    assert_eq!(six().take(&[0, 1]).select_classes(&[2]).unwrap_err().code(), "dataset_invalid");
}

#[test]
fn joining_and_taking() {
    let data = six();
    assert_eq!(data.take(&[0, 1, 2]).concat(&data.take(&[3, 4, 5])).unwrap(), data);
    assert!(data.take(&[]).is_empty());
    let floats = Dataset { data: Data::F32(data.gather(&[0, 1, 2, 3, 4, 5])), ..data.clone() };
    let both = data.concat(&floats).unwrap();
    assert_eq!(both.gather(&[1]), both.gather(&[7]));
    let other = Dataset { class_names: vec!["x".into(), "y".into(), "z".into()], ..data.clone() };
    assert_eq!(data.concat(&other).unwrap_err().code(), "dataset_mismatch");
    let tall = Dataset { shape: vec![1, 2, 1], ..data.clone() };
    assert_eq!(data.concat(&tall).unwrap_err().code(), "dataset_mismatch");
}

#[test]
fn every_class_is_required_where_it_matters() {
    assert!(six().require_every_class().is_ok());
    assert_eq!(six().take(&[0, 1]).require_every_class().unwrap_err().code(), "class_without_images");
    assert_eq!(six().select_classes(&[1]).unwrap().require_every_class().unwrap_err().code(), "too_few_classes");
}

#[test]
fn digest_tells_contents_apart_and_ignores_the_name() {
    let data = six();
    // Pinned: stored datasets are found by it.
    assert_eq!(data.digest(), "sha256:ebd1c03181c47c093600c08aee54c82d50ff6f9d6e418c9521b61b5805818103");
    let renamed = Dataset { name: "other".into(), ..data.clone() };
    assert_eq!(renamed.digest(), data.digest());
    let mut changed = vec![
        Dataset { shape: vec![1, 2, 1], ..data.clone() },
        Dataset { labels: vec![0, 1, 2, 2, 0, 1], ..data.clone() },
        Dataset { class_names: vec!["c0c".into(), "1".into(), "c2".into()], ..data.clone() },
        Dataset { data: Data::F32(data.gather(&[0, 1, 2, 3, 4, 5])), ..data.clone() },
        data.take(&[1, 0, 2, 3, 4, 5]),
    ];
    changed.push(data);
    let digests: std::collections::HashSet<String> = changed.iter().map(Dataset::digest).collect();
    assert_eq!(digests.len(), changed.len());
}

#[test]
fn resizing_is_bilinear() {
    let data = Dataset::new("r", vec![1, 1, 4], names(1), Data::F32(vec![0.0, 0.0, 1.0, 1.0]), vec![0]).unwrap();
    let Data::F32(half) = data.resize(1, 2).unwrap().data else { panic!("f32 expected") };
    // A triangle two source pixels wide: weights 3, 3, 1 (and 1 outside) of each side.
    assert!((half[0] - 1.0 / 7.0).abs() < 1e-6 && (half[1] - 6.0 / 7.0).abs() < 1e-6, "{half:?}");
    let digits = crate::digits::load().unwrap().take(&[3, 4]);
    assert_eq!(digits.resize(8, 8).unwrap(), digits);
    let large = digits.resize(28, 20).unwrap();
    assert_eq!(large.shape, [1, 28, 20]);
    let mean = |d: &Dataset| d.gather(&[0]).iter().sum::<f32>() / d.dim() as f32;
    assert!((mean(&large) - mean(&digits)).abs() < 0.02);
    let rgb = Dataset::new("c", vec![3, 2, 2], names(1), Data::U8([[10; 4], [20; 4], [30; 4]].concat()), vec![0]);
    assert_eq!(rgb.unwrap().resize(1, 1).unwrap().data, Data::U8(vec![10, 20, 30]));
    assert_eq!(digits.resize(0, 8).unwrap_err().code(), "dataset_invalid");
    assert_eq!(digits.resize(8, 1 << 20).unwrap_err().code(), "dataset_invalid");
    let features = Dataset::new("f", vec![2], names(1), Data::F32(vec![1.5, -2.0]), vec![0]).unwrap();
    assert_eq!(features.resize(8, 8).unwrap_err().code(), "not_images");
}

proptest! {
    #[test]
    fn selected_examples_are_those_of_their_class(
        labels in prop::collection::vec(0u32..5, 1..30), order in Just((0..5u32).collect::<Vec<_>>()).prop_shuffle(), k in 1usize..=5,
    ) {
        let values = (0..labels.len()).map(|i| i as f32).collect();
        let data = Dataset::new("t", vec![1], names(5), Data::F32(values), labels.clone()).unwrap();
        let classes = &order[..k];
        let Ok(chosen) = data.select_classes(classes) else {
            prop_assert!(labels.iter().all(|l| !classes.contains(l)));
            return Ok(());
        };
        prop_assert_eq!(chosen.len(), labels.iter().filter(|&l| classes.contains(l)).count());
        for (i, &label) in chosen.labels.iter().enumerate() {
            let original = chosen.gather(&[i])[0] as usize;
            prop_assert_eq!(labels[original], classes[label as usize]);
            prop_assert_eq!(&chosen.class_names[label as usize], &format!("c{}", labels[original]));
        }
    }
}
