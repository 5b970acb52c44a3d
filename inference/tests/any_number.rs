//! One generator for heads of any number of classes: each number, also one that the zoo lacks; what is not there changes
//! nothing; another order of the classes is that order of the rows.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;
#[path = "support/any_number.rs"]
mod train;

use inference::{Familiarity, Generator, SampleOptions, SessionPool};
use made::check_probe;
use support::runtime;
use train::{Any, FEATURES, IMAGES, any};
use weights::manifest::files;

const MOST: usize = 5;

fn generator(any: &Any) -> Generator {
    Generator::load(&runtime(2), any.trained.bundle.clone()).unwrap()
}

#[test]
fn graphs_run_as_they_were_trained() {
    let any = any(&runtime(2));
    for probe in &any.trained.probes {
        check_probe(probe, any.trained.bundle.file(&probe.graph).unwrap());
    }
    let names: Vec<_> = any.trained.bundle.manifest().architectures.iter().map(|a| a.name.clone()).collect();
    assert_eq!(names, ["head-16-2", "head-16-3", "head-16-4", "head-16-5"]);
    let zoo: Vec<_> = any.zoo.architectures().map(weights::Architecture::name).collect();
    assert_eq!(zoo, ["head-16-2", "head-16-3", "head-16-5"]);
}

#[test]
fn each_number_of_classes_gives_its_head() {
    let any = any(&runtime(2));
    let generator = generator(any);
    assert_eq!((generator.manifest().format, generator.manifest().encoder.min_classes), (4, Some(2)));
    let orders: [&[u32]; 4] = [&[7, 1], &[7, 1, 4], &[7, 1, 4, 0], &[7, 1, 4, 0, 6]];
    for classes in orders {
        let k = classes.len();
        let own = generator.for_classes(k).unwrap();
        assert_eq!((own.architecture().name.clone(), own.classes()), (format!("head-16-{k}"), k));
        let support = own.gather_support(&any.digits, classes, 0).unwrap().whole();
        assert_eq!(support.features.len(), k * IMAGES * FEATURES);
        let embedding = own.embed(&support.features).unwrap();
        assert_eq!(embedding.classes, k);
        let options = SampleOptions { count: 4, seed: 3, ..SampleOptions::default() };
        let generated = own.generate(&embedding, &options, &mut |_, _| true).unwrap().weights;
        let task = any.digits.select_classes(classes).unwrap();
        let task = own.network_data(&task).unwrap();
        let accuracy = |theta: &[f32]| own.evaluate(theta, &task).unwrap().accuracy;
        let mean = generated.iter().map(|theta| accuracy(theta)).sum::<f64>() / 4.0;
        // Chance is 1/k; also with 4 classes, which no head of the zoo has.
        assert!(mean > 0.5 + 0.5 / k as f64, "{k} classes: {mean}");
        let heads = own.closed_forms(&support.data, &[]).unwrap();
        assert_eq!(heads.len(), 3);
        for (_, theta) in heads {
            assert_eq!(theta.len(), k * (FEATURES + 1));
        }
        // Not with the head of another number of classes.
        let other = generator.for_classes(if k == 2 { 3 } else { 2 }).unwrap();
        assert_eq!(other.sample(&embedding, &options, &mut |_, _| true).unwrap_err().code(), "classes_mismatch");
    }
}

#[test]
fn numbers_outside_are_refused_with_the_range() {
    let any = any(&runtime(2));
    let generator = generator(any);
    for classes in [&[7][..], &[7, 1, 4, 0, 6, 2]] {
        let error = generator.features(&any.digits, classes, 0).unwrap_err();
        assert_eq!(error.code(), "classes_mismatch");
        assert!(error.to_string().contains("from 2 to 5"), "{error}");
        assert_eq!(generator.for_classes(classes.len()).unwrap_err().code(), "classes_mismatch");
    }
    let long = vec![0.0; 6 * IMAGES * FEATURES];
    assert_eq!(generator.embed(&long).unwrap_err().code(), "classes_mismatch");
    assert_eq!(generator.embed(&long[..2 * IMAGES * FEATURES + 1]).unwrap_err().code(), "length_mismatch");
}

#[test]
fn classes_like_the_zoos_are_near_and_others_are_far() {
    let any = any(&runtime(2));
    let generator = generator(any);
    let known = generator.manifest().encoder.known_classes.unwrap();
    assert!(known.tokens > 500 && known.dim == 16 && known.unit > 0.0 && known.near > 1.0, "{known:?}");
    let distances = |data: &datasets::Dataset, classes: &[u32], seed| {
        let own = generator.for_classes(classes.len()).unwrap();
        let embedding = own.embed(&own.features(data, classes, seed).unwrap()).unwrap();
        let Familiarity { distances: found, near } = own.familiarity(&embedding).unwrap();
        assert_eq!(found.len(), classes.len());
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        assert_eq!(near, mean <= f64::from(known.near));
        mean
    };
    let mut far = any.digits.clone();
    let values = far.gather(&(0..far.len()).collect::<Vec<_>>());
    far.data = datasets::Data::F32(values.iter().map(|v| 1.0 - v).collect());
    let draws = |data: &datasets::Dataset| {
        let orders: [&[u32]; 4] = [&[7, 1], &[4, 0, 6], &[9, 2, 3, 8], &[5, 1, 8, 2, 0]];
        let all: Vec<f64> = (0..10).flat_map(|seed| orders.map(|classes| distances(data, classes, seed))).collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let (near, far) = (draws(&any.digits), draws(&far));
    assert!(near > 0.5 && near < 1.3 && far > 1.5 * near, "{near} {far}");
}

#[test]
fn heads_go_through_the_vae_and_back() {
    let any = any(&runtime(2));
    let generator = generator(any);
    for kind in 0..3 {
        let checkpoint = (0..any.zoo.checkpoints.len()).find(|&c| any.zoo.kind(c) == kind).unwrap();
        let (task, theta) = (any.zoo.task(checkpoint), any.zoo.weights(checkpoint).to_vec());
        let own = generator.for_classes(task.classes.len()).unwrap();
        let latents = own.encode_weights(std::slice::from_ref(&theta)).unwrap();
        assert_eq!(latents[0].len(), MOST * 12);
        let back = own.decode(&latents).unwrap().remove(0);
        let data = any.digits.select_classes(&task.classes).unwrap();
        let data = own.network_data(&data).unwrap();
        let accuracy = |theta: &[f32]| own.evaluate(theta, &data).unwrap().accuracy;
        assert!(accuracy(&back) > 0.7 * accuracy(&theta), "{} {}", accuracy(&back), accuracy(&theta));
    }
}

#[test]
fn refinement_moves_what_the_head_is_made_of() {
    let any = any(&runtime(2));
    let own = generator(any).for_classes(3).unwrap();
    let support = own.gather_support(&any.digits, &[2, 5, 8], 0).unwrap().whole();
    let embedding = own.embed(&support.features).unwrap();
    let latents = own.sample(&embedding, &SampleOptions::default(), &mut |_, _| true).unwrap();
    let refined = own.refine(&latents, &support.data, &inference::Refine::default(), &mut || true).unwrap();
    assert_ne!(refined[0][..3 * 12], latents[0][..3 * 12]);
    assert_eq!(refined[0][3 * 12..], latents[0][3 * 12..]);
}

/// The exported graphs on 3 classes of 5: tokens, prediction and decoded rows.
fn chain(any: &Any, features: &[f32], z: &[f32]) -> [Vec<f32>; 3] {
    let pool = |name: &str| SessionPool::new(&runtime(2), name, any.trained.bundle.file(name).unwrap()).unwrap();
    let presence = [1.0, 1.0, 1.0, 0.0, 0.0];
    let encoder = pool(files::DATASET_ENCODER);
    let (shape, there): ([usize; 4], [usize; 2]) = ([1, MOST, IMAGES, FEATURES], [1, MOST]);
    let said = encoder.run(&[("features", &shape[..], features), ("presence", &there[..], &presence[..])]).unwrap();
    let condition = [said["condition"].data.as_slice(), &presence].concat();
    let (dims, t): ([usize; 3], [usize; 1]) = ([1, MOST, 12], [1]);
    let inputs = [
        ("latent", &dims[..], z),
        ("timestep", &t[..], &[400.0][..]),
        ("condition", &[1, condition.len()][..], &condition),
    ];
    let prediction = pool(files::DENOISER).run(&inputs).unwrap()["prediction"].data.clone();
    let weights =
        pool(files::VAE_DECODER).run(&[("latent", &dims[..], &prediction[..])]).unwrap()["weights"].data.clone();
    [said["condition"].data[16..].to_vec(), prediction, weights]
}

/// The first 3 rows of `width` values in another order.
fn reordered(values: &[f32], width: usize, order: [usize; 3]) -> Vec<f32> {
    let own: Vec<f32> = order.iter().flat_map(|&row| &values[row * width..(row + 1) * width]).copied().collect();
    [own.as_slice(), &values[3 * width..]].concat()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |far, (a, b)| far.max((a - b).abs()))
}

#[test]
fn absent_rows_change_nothing_and_an_order_of_classes_is_that_of_the_rows() {
    let any = any(&runtime(2));
    let own = generator(any);
    let mut features = own.features(&any.digits, &[7, 1, 4], 0).unwrap();
    features.resize(MOST * IMAGES * FEATURES, 0.0);
    let z: Vec<f32> = (0..MOST * 12).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
    let [tokens, prediction, weights] = chain(any, &features, &z);
    assert!(prediction[3 * 12..].iter().all(|v| *v == 0.0));
    let (mut other_features, mut other_z) = (features.clone(), z.clone());
    other_features[3 * IMAGES * FEATURES..].iter_mut().enumerate().for_each(|(i, v)| *v = i as f32 - 70.0);
    other_z[3 * 12..].iter_mut().for_each(|v| *v = 1e6);
    assert_eq!(chain(any, &other_features, &other_z), [tokens.clone(), prediction.clone(), weights.clone()]);
    // Not for nothing: what is there does change it.
    other_z[0] += 1.0;
    assert_ne!(chain(any, &features, &other_z)[1], prediction);

    let order = [2, 0, 1];
    let permuted = chain(any, &reordered(&features, IMAGES * FEATURES, order), &reordered(&z, 12, order));
    assert!(difference(&permuted[0], &reordered(&tokens, 16, order)) < 1e-4);
    assert!(difference(&permuted[1], &reordered(&prediction, 12, order)) < 1e-4);
    assert!(difference(&permuted[1], &prediction) > 1e-2, "all rows look alike");
    assert!(
        difference(&permuted[2][..MOST * FEATURES], &reordered(&weights[..MOST * FEATURES], FEATURES, order)) < 1e-4
    );
}
