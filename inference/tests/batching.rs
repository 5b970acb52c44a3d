//! Continuous batching: what a request gets does not depend on who else asks, nobody starves, and who leaves is gone.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/training.rs"]
mod made;
mod support;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use inference::{Embedding, Error, Generator, Runtime, SampleOptions, SamplerKind};
use made::train_as;
use support::runtime;
use training::Part;
use weights::Bundle;
use weights::manifest::Prediction;

const CONFIG: &str = r#"
    name = "batching"
    [data]
    sources = [{ name = "digits", from = "digits" }]
    [tasks]
    kind = "class_sets"
    classes = 3
    seen = 6
    orders = 2
    [architecture]
    kind = "mlp"
    hidden = [8]
    [zoo]
    epochs = 5
    [vae]
    hidden = [16]
    latent = [2, 8, 8]
    steps = 20
    batch = 8
    [encoder]
    images = 2
    width = 8
    heads = 2
    token_dim = 4
    embedding_dim = 6
    steps = 5
    batch = 8
    [denoiser]
    kind = "unet"
    channels = 32
    multipliers = [1, 2]
    [diffusion]
    steps = 5
    batch = 8
    timesteps = 100
"#;

/// A generator with a UNet on four sessions, and embeddings of several tasks.
fn generator() -> &'static (Generator, Vec<Embedding>) {
    static MADE: OnceLock<(Generator, Vec<Embedding>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let (trained, zoo, sources) = train_as(CONFIG);
        let generator = Generator::load(&runtime(4), trained.bundle).unwrap();
        let embeddings = zoo.runs.iter().take(4).map(|run| {
            let task = sources.task(&run.task, Part::Train).unwrap();
            generator.embed(&task.first(generator.manifest().encoder.images_per_class)).unwrap()
        });
        let embeddings = embeddings.collect();
        (generator, embeddings)
    })
}

fn requests() -> Vec<SampleOptions> {
    let kinds = [
        (SamplerKind::Ddim, Some(20), 0.0, 1.0),
        (SamplerKind::Ddim, Some(7), 0.8, 1.0),
        (SamplerKind::DpmSolverPp, Some(11), 0.0, 3.0),
        (SamplerKind::Ddpm, None, 0.0, 1.0),
        (SamplerKind::Ddpm, Some(30), 0.0, 2.0),
    ];
    let each = kinds.into_iter().zip(1..);
    let each = each.flat_map(|(kind, seed)| [(kind, seed, 1), (kind, seed + 50, 3), (kind, seed + 90, 9)]);
    each.map(|((sampler, steps, eta, guidance), seed, count)| SampleOptions {
        sampler,
        steps,
        eta: Some(eta),
        guidance,
        seed,
        count,
        ..SampleOptions::default()
    })
    .collect()
}

#[test]
fn a_sample_is_the_same_alone_and_among_other_requests() {
    let (generator, embeddings) = generator();
    let requests = requests();
    let sample = |at: usize| {
        let embedding = &embeddings[at % embeddings.len()];
        generator.sample(embedding, &requests[at], &mut |_, _| true).unwrap()
    };
    let alone: Vec<_> = (0..requests.len()).map(sample).collect();
    for _ in 0..3 {
        let together: Vec<_> = std::thread::scope(|scope| {
            let sample = &sample;
            let all: Vec<_> = (0..requests.len()).map(|at| scope.spawn(move || sample(at))).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (at, (alone, together)) in alone.iter().zip(&together).enumerate() {
            let pairs = alone.iter().flatten().zip(together.iter().flatten());
            let difference = pairs.map(|(a, b): (&f32, &f32)| (a - b).abs()).fold(0.0, f32::max);
            assert!(difference < 1e-5 && alone.len() == together.len(), "{difference} of {:?}", requests[at]);
        }
    }
}

#[test]
fn batches_that_are_filled_up_give_the_same() {
    let runtime = runtime(3);
    runtime.pad_batches(true);
    check_same(&runtime);
}

#[test]
fn tensors_that_stay_in_their_place_give_the_same() {
    let runtime = runtime(3);
    runtime.bind_tensors(true);
    check_same(&runtime);
}

/// A generator on this runtime gives what it gives on a plain one.
fn check_same(runtime: &Runtime) {
    let (generator, embeddings) = generator();
    let padded = Generator::load(runtime, train_as(CONFIG).0.bundle).unwrap();
    assert_eq!(padded.digest(), generator.digest());
    // Three rows are filled up to four, of guided ones six to eight.
    for (count, guidance) in [(1, 1.0), (3, 1.0), (3, 2.0), (70, 1.0)] {
        let options = SampleOptions { count, guidance, seed: 5, ..SampleOptions::default() };
        let of = |generator: &Generator| generator.sample(&embeddings[1], &options, &mut |_, _| true).unwrap();
        let (plain, padded) = (of(generator), of(&padded));
        let pairs = plain.iter().flatten().zip(padded.iter().flatten());
        let difference = pairs.map(|(a, b): (&f32, &f32)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference < 1e-5 && plain.len() == padded.len(), "{difference} of {count}");
    }
    let of = |generator: &Generator, seed| {
        let options = SampleOptions { count: 2, seed, ..SampleOptions::default() };
        generator.sample(&embeddings[2], &options, &mut |_, _| true).unwrap()
    };
    std::thread::scope(|scope| {
        let (of, padded) = (&of, &padded);
        let all: Vec<_> = (0..6).map(|seed| (seed, scope.spawn(move || of(padded, seed)))).collect();
        for (seed, one) in all {
            let (one, plain) = (one.join().unwrap(), of(generator, seed));
            assert!(one.iter().flatten().zip(plain.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    });
}

#[test]
fn generators_with_a_graph_in_common_have_its_sessions_in_common() {
    let (generator, embeddings) = generator();
    let options = SampleOptions { count: 2, ..SampleOptions::default() };
    let runtime = runtime(2);
    let bundle = || train_as(CONFIG).0.bundle;
    let (one, other) = (bundle(), bundle());
    assert_eq!(one.digest(), other.digest());
    let one = Generator::load(&runtime, one).unwrap();
    let pools = runtime.pools();
    assert!(pools >= 5, "{pools}");
    let other = Generator::load(&runtime, other).unwrap();
    assert_eq!(runtime.pools(), pools);
    let of = |generator: &Generator| generator.generate(&embeddings[0], &options, &mut |_, _| true).unwrap().weights;
    // Rows may run alone or together, as the lanes get a core.
    let (ours, theirs) = (of(&one), of(&other));
    let pairs = ours.iter().flatten().zip(theirs.iter().flatten());
    assert_eq!(ours.len(), theirs.len());
    assert!(pairs.into_iter().all(|(a, b): (&f32, &f32)| (a - b).abs() < 1e-5));
    drop(one);
    assert_eq!(of(&other).len(), of(generator).len());
    drop(other);
    // A thread that helped with the last sample may need a moment to see that there is no more.
    let begun = Instant::now();
    while runtime.pools() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} graphs are still loaded", runtime.pools());
        std::thread::yield_now();
    }
}

#[test]
fn a_small_request_does_not_wait_for_a_large_one() {
    let (generator, embeddings) = generator();
    let all = Some(100);
    let large = SampleOptions { count: 2000, sampler: SamplerKind::Ddpm, steps: all, ..SampleOptions::default() };
    let small = SampleOptions { count: 1, steps: Some(10), ..SampleOptions::default() };
    let (begun, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sampled = generator.for_client("ann").sample(&embeddings[0], &large, &mut |step, total| {
                begun.store(true, Ordering::Relaxed);
                // Ended by those who asked for little.
                done.load(Ordering::Relaxed) < 20 && step < total
            });
            assert!(matches!(sampled.unwrap_err(), Error::Cancelled { step, total: 200_000 } if step < 200_000));
        });
        while !begun.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        for i in 0..20 {
            let client = if i % 2 == 0 { "bob" } else { "cyd" };
            generator.for_client(client).sample(&embeddings[1], &small, &mut |_, _| true).unwrap();
            done.fetch_add(1, Ordering::Relaxed);
        }
    });
}

#[test]
fn who_leaves_does_not_disturb_the_others() {
    let (generator, embeddings) = generator();
    let options = SampleOptions { count: 40, steps: Some(20), ..SampleOptions::default() };
    let alone = generator.sample(&embeddings[2], &options, &mut |_, _| true).unwrap();
    std::thread::scope(|scope| {
        for i in 0..6 {
            scope.spawn(move || {
                let options = SampleOptions { count: 30, seed: i, steps: Some(20), ..SampleOptions::default() };
                let sample = |stop: usize| generator.sample(&embeddings[0], &options, &mut |step, _| step < stop);
                assert!(matches!(sample(5 * i as usize).unwrap_err(), Error::Cancelled { total: 600, .. }));
                // A panic where the progress is shown ends the request, not the generator.
                let panics = std::panic::AssertUnwindSafe(|| {
                    let _ = generator.sample(&embeddings[0], &options, &mut |step, _| {
                        assert!(step < 10, "the caller breaks");
                        true
                    });
                });
                assert!(std::panic::catch_unwind(panics).is_err());
            });
        }
        for _ in 0..3 {
            let among = generator.sample(&embeddings[2], &options, &mut |_, _| true).unwrap();
            let pairs = alone.iter().flatten().zip(among.iter().flatten());
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5));
        }
    });
}

#[test]
fn a_run_that_fails_is_an_error_for_all_who_wait_for_it() {
    // The graph looks up ᾱ by timestep, and its table has only half of these.
    let mut longer = support::manifest(Prediction::Epsilon);
    longer.schedule.steps = 200;
    let bundle = Bundle::new(longer, support::bundle_files(Prediction::Epsilon)).unwrap();
    let generator = Generator::load(&runtime(2), bundle).unwrap();
    let embedding = Embedding { dataset: vec![0.0; 3], condition: vec![0.5; 6], classes: 2 };
    std::thread::scope(|scope| {
        for count in 1..8 {
            let (generator, embedding) = (&generator, &embedding);
            scope.spawn(move || {
                let options = SampleOptions { count, ..SampleOptions::default() };
                let error = generator.sample(embedding, &options, &mut |_, _| true).unwrap_err();
                assert!(matches!(&error, Error::Graph { graph, .. } if graph == "denoiser.onnx"), "{error}");
            });
        }
    });
}
