//! Feature extractors on ONNX Runtime, with small graphs whose results are known.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

mod support;

use datasets::{Data, Dataset};
use inference::Extractor;
use support::onnx::{Attribute, Graph};
use support::runtime;
use weights::manifest::{ExtractorSpec, ResizeRule};

/// Means of each channel, times two: `images [batch, c, 2, 2]` → `features [batch, c]`.
fn channel_means(channels: usize) -> Vec<u8> {
    Graph::new()
        .floats("two", &[1], &[2.0])
        .integers("flat", &[0, channels as i64])
        .input("images", &[0, channels, 2, 2])
        .node("GlobalAveragePool", &["images"], "pooled")
        .node("Reshape", &["pooled", "flat"], "rows")
        .node("Mul", &["rows", "two"], "features")
        .output("features", &[0, channels])
        .finish()
}

fn spec(channels: usize) -> ExtractorSpec {
    ExtractorSpec {
        name: "means".into(),
        input: "images".into(),
        output: "features".into(),
        shape: [channels, 2, 2],
        resize: ResizeRule::Stretch,
        mean: vec![0.0; channels],
        std: vec![1.0; channels],
        dim: 0,
    }
}

fn images(shape: Vec<usize>, pixels: Vec<u8>) -> Dataset {
    Dataset::new("t", shape, vec!["a".into(), "b".into()], Data::U8(pixels), vec![0, 1]).unwrap()
}

#[test]
fn features_are_those_of_the_graph() {
    let extractor = Extractor::probe(&runtime(1), &spec(1), &channel_means(1)).unwrap();
    assert_eq!(extractor.spec().dim, 1);
    let data = images(vec![1, 2, 2], vec![0, 51, 102, 102, 255, 255, 255, 255]);
    let features = extractor.extract(&data).unwrap();
    assert_eq!((features.shape.as_slice(), features.labels.as_slice()), (&[1usize][..], &[0u32, 1][..]));
    let Data::F32(values) = &features.data else { panic!("features are floats") };
    assert!((values[0] - 0.5).abs() < 1e-6 && (values[1] - 2.0).abs() < 1e-6, "{values:?}");
    assert!(matches!(extractor.as_features(&features).unwrap(), std::borrow::Cow::Borrowed(_)));

    let normalised = ExtractorSpec { mean: vec![0.5], std: vec![0.25], ..spec(1) };
    let extractor = Extractor::probe(&runtime(1), &normalised, &channel_means(1)).unwrap();
    let values = extractor.features(&data, &[1, 0]).unwrap();
    assert!((values[0] - 4.0).abs() < 1e-5 && (values[1] + 2.0).abs() < 1e-5, "{values:?}");
}

#[test]
fn images_are_brought_to_the_graphs_input() {
    let extractor = Extractor::probe(&runtime(1), &spec(3), &channel_means(3)).unwrap();
    // Grey 2x4: left half black, right half white.
    let data = images(vec![1, 2, 4], [[0, 0, 255, 255], [0, 0, 255, 255], [0; 4], [0; 4]].concat());
    let values = extractor.features(&data, &[0]).unwrap();
    assert_eq!(values.len(), 3);
    assert!(values.iter().all(|v| (v - 1.0).abs() < 0.02), "{values:?}");
    let many = data.take(&[0, 1].repeat(80));
    let batches = extractor.extract(&many).unwrap();
    assert_eq!(batches.len(), 160, "more than one batch");
    // 2x6 cropped to its middle 2x2, which is white.
    let crop = ExtractorSpec { resize: ResizeRule::Crop, ..spec(1) };
    let extractor = Extractor::probe(&runtime(1), &crop, &channel_means(1)).unwrap();
    let data = images(vec![1, 2, 6], [[0, 0, 255, 255, 0, 0], [0, 0, 255, 255, 0, 0], [0; 6], [0; 6]].concat());
    assert_eq!(extractor.features(&data, &[0, 1]).unwrap(), [2.0, 0.0]);
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let refused = |spec: &ExtractorSpec, onnx: &[u8]| {
        let error = Extractor::probe(&runtime(1), spec, onnx).unwrap_err();
        assert_eq!(error.code(), "extractor_invalid");
        error.to_string()
    };
    let graph = channel_means(1);
    assert!(refused(&spec(1), b"not a graph").contains("means"));
    assert!(refused(&ExtractorSpec { input: "pixels".into(), ..spec(1) }, &graph).contains("pixels"));
    assert!(refused(&ExtractorSpec { output: "logits".into(), ..spec(1) }, &graph).contains("features"));
    assert!(refused(&spec(3), &graph).contains("[batch, 3, 2, 2]"));
    assert!(refused(&ExtractorSpec { mean: vec![], ..spec(1) }, &graph).contains("mean"));
    assert!(refused(&ExtractorSpec { std: vec![0.0], ..spec(1) }, &graph).contains("std"));
    assert!(refused(&ExtractorSpec { shape: [2, 2, 2], ..spec(1) }, &graph).contains("shape"));
    let whole = Graph::new()
        .input("images", &[0, 1, 2, 2])
        .node_with("ReduceMean", &["images"], "features", &[("keepdims", Attribute::Int(0))])
        .output("features", &[])
        .finish();
    assert!(refused(&spec(1), &whole).contains("for 2 images"), "one number for the whole batch is no feature");
    let infinite = Graph::new()
        .floats("zero", &[1], &[0.0])
        .integers("flat", &[0, 4])
        .input("images", &[0, 1, 2, 2])
        .node("Reshape", &["images", "flat"], "rows")
        .node("Div", &["rows", "zero"], "features")
        .output("features", &[0, 4])
        .finish();
    assert!(refused(&spec(1), &infinite).contains("finite"));
    let dim = ExtractorSpec { dim: 7, ..spec(1) };
    assert!(Extractor::load(&runtime(1), &dim, &graph).unwrap_err().to_string().contains("1 features, not 7"));
    let features = Dataset::new("f", vec![2], vec!["a".into(), "b".into()], Data::F32(vec![0.0; 4]), vec![0, 1]);
    let extractor = Extractor::probe(&runtime(1), &spec(1), &graph).unwrap();
    assert_eq!(extractor.extract(&features.unwrap()).unwrap_err().code(), "modality_mismatch");
}
