use super::*;
use weights::{ParamSpec, resnet};

#[test]
fn layers_have_types_and_positions() {
    let layout = resnet::layout(14, &[4, 6, 8], 3);
    let all = chunks(&layout, 100);
    let of = |name: &str| {
        let range = layout.get(name).unwrap().range();
        all.iter().filter(|c| range.contains(&c.offset)).cloned().collect::<Vec<_>>()
    };
    let (first, second) = (of("layer2.1.conv1.weight"), of("layer2.0.conv2.weight"));
    assert_eq!(
        first.iter().map(|c| (c.part, c.len, c.position)).collect::<Vec<_>>(),
        [(0, 100, 1.0), (1, 100, 1.0), (2, 100, 1.0), (3, 24, 1.0)]
    );
    assert_ne!(first[0].kind, of("layer2.0.conv1.weight")[0].kind, "the first of a stage has other inputs");
    assert_eq!(second[0].position, 0.0);
    assert!(of("bn1.running_mean").is_empty());
    let values: usize = all.iter().map(|c| c.len).sum();
    assert_eq!(values + layout.buffers().map(weights::ParamSpec::len).sum::<usize>(), layout.parameters());
}

#[test]
fn a_network_comes_back_and_its_own_layers_are_generated() {
    let layout = resnet::layout(14, &[4, 4, 8], 3);
    let mut rng = random::stream(3, "test");
    let theta = random::normal_vec(layout.parameters(), &mut rng);
    let config = LayersConfig {
        chunk: 144,
        rows: RowsConfig {
            hidden: 0,
            latent: 48,
            beta: 0.0,
            vae_steps: 600,
            width: 128,
            blocks: 2,
            diffusion_steps: 800,
            batch: 32,
            lr: 3e-3,
            sampling_steps: 10,
            ..RowsConfig::default()
        },
        ..LayersConfig::default()
    };
    let layers = Layers::learn(&config, &layout, &theta.as_slice(), &Progress::silent()).unwrap();
    // Over all values that are learned, of their length.
    let apart = |other: &[f32]| {
        let own = layout.params.iter().filter(|p| !p.is_buffer()).flat_map(ParamSpec::range);
        let (missed, all) = own.fold((0.0, 0.0), |(m, a), i| {
            (m + f64::from(other[i] - theta[i]).powi(2), a + f64::from(theta[i]).powi(2))
        });
        (missed / all).sqrt()
    };
    let back = layers.reconstruct(&layout, &theta).unwrap();
    assert!(apart(&back) < 0.2, "{}", apart(&back));
    let made = layers.generate(&layout, &theta, 1).unwrap();
    assert!(apart(&made) < 0.5, "{}", apart(&made));
}

#[test]
fn what_was_learned_of_one_depth_is_generated_for_another() {
    let (from, to) = (resnet::layout(14, &[2, 2, 4], 3), resnet::layout(20, &[2, 2, 4], 3));
    // Weights that are a constant for each type: a generator must know the type, and nothing else.
    let mut theta = vec![0f32; from.parameters()];
    let value = |name: &str| kind(name).0.bytes().map(u32::from).sum::<u32>() as f32 % 17.0;
    from.params.iter().for_each(|p| theta[p.range()].fill(value(&p.name)));
    let config = LayersConfig {
        chunk: 36,
        rows: RowsConfig {
            hidden: 16,
            latent: 4,
            vae_steps: 30,
            width: 16,
            blocks: 1,
            diffusion_steps: 30,
            batch: 16,
            sampling_steps: 5,
            ..RowsConfig::default()
        },
        ..LayersConfig::default()
    };
    let layers = Layers::learn(&config, &from, &theta.as_slice(), &Progress::silent()).unwrap();
    let start = vec![7.5; to.parameters()];
    let made = layers.generate(&to, &start, 1).unwrap();
    for param in &to.params {
        for &v in &made[param.range()] {
            let wanted = if param.is_buffer() { 7.5 } else { value(&param.name) };
            assert!((v - wanted).abs() < 1e-2, "{} is {v}, not {wanted}", param.name);
        }
    }
    assert_eq!(layers.generate(&to, &start, 1).unwrap(), made);
    let copy = nearest_copy(&from, &theta, &to).unwrap();
    assert!(to.params.iter().all(|p| copy[p.range()].iter().all(|v| *v == value(&p.name))));
    // Another width is of types that nobody has seen.
    let wide = resnet::layout(20, &[2, 4, 4], 3);
    let error = layers.generate(&wide, &vec![0.0; wide.parameters()], 1).unwrap_err().to_string();
    assert!(error.contains("was learned"), "{error}");
    assert!(nearest_copy(&from, &theta, &wide).is_err());
}

#[test]
fn what_was_learned_is_kept_in_a_file() {
    let layout = resnet::layout(14, &[2, 2, 4], 3);
    let theta = random::normal_vec(layout.parameters(), &mut random::stream(5, "test"));
    for uniform in [false, true] {
        let config = LayersConfig {
            chunk: 30,
            uniform,
            rows: RowsConfig {
                hidden: 8,
                latent: 4,
                kl_from: 0.5,
                vae_steps: 6,
                width: 16,
                blocks: 1,
                diffusion_steps: 4,
                batch: 8,
                sampling_steps: 3,
                ..RowsConfig::default()
            },
        };
        let layers = Layers::learn(&config, &layout, &theta.as_slice(), &Progress::silent()).unwrap();
        let bytes = layers.to_bytes(&[]).unwrap();
        let again = Layers::from_bytes(&bytes).unwrap();
        assert_eq!(again.generate(&layout, &theta, 3).unwrap(), layers.generate(&layout, &theta, 3).unwrap());
        assert_eq!(again.reconstruct(&layout, &theta).unwrap(), layers.reconstruct(&layout, &theta).unwrap());
        assert!(Layers::from_bytes(&bytes[..bytes.len() - 1]).is_err());
        let other = weights::tensors::named_to_safetensors(&[], &std::collections::BTreeMap::new());
        let error = Layers::from_bytes(&other).unwrap_err().to_string();
        assert!(error.contains("its metadata has no"), "{error}");
    }
}

#[test]
fn uniform_chunks_have_all_values_once() {
    let layout = resnet::layout(14, &[4, 6, 8], 3);
    let all = uniform(&layout, 100);
    let mut seen = vec![0u8; layout.parameters()];
    all.iter().for_each(|c| seen[c.offset..c.offset + c.len].iter_mut().for_each(|s| *s += 1));
    for param in &layout.params {
        assert!(param.range().all(|i| seen[i] == u8::from(!param.is_buffer())), "{}", param.name);
    }
    assert!(all.iter().enumerate().all(|(i, c)| c.part == i && c.len <= 100));
    assert_eq!((all[0].position, all[all.len() - 1].position), (0.0, 1.0));
}

#[test]
fn tails_are_told_by_their_kurtosis() {
    let layout = Layout::new([("a.0.weight", vec![40, 50])]);
    let normal = random::normal_vec(2000, &mut random::stream(1, "test"));
    let heavy: Vec<f32> = normal.iter().map(|v| v.powi(3)).collect();
    let of = |values: &[f32]| Moments::of(&chunks(&layout, 64), "a.*.weight [40, 50]", &values).unwrap();
    assert!((of(&normal).kurtosis - 3.0).abs() < 0.5 && (of(&normal).std - 1.0).abs() < 0.1);
    assert!(of(&heavy).kurtosis > 10.0);
    let mut broken = normal;
    broken[7] = f32::NAN;
    assert!(Moments::of(&chunks(&layout, 64), "a.*.weight [40, 50]", &broken.as_slice()).is_err());
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let layout = resnet::layout(14, &[2, 2, 4], 3);
    let theta = vec![0f32; layout.parameters()];
    for config in [
        LayersConfig { chunk: 0, ..LayersConfig::default() },
        LayersConfig { rows: RowsConfig { kl_from: 1.5, ..RowsConfig::default() }, ..LayersConfig::default() },
        LayersConfig { rows: RowsConfig { lr: f64::NAN, ..RowsConfig::default() }, ..LayersConfig::default() },
    ] {
        let error = Layers::learn(&config, &layout, &theta.as_slice(), &Progress::silent()).unwrap_err().to_string();
        assert!(error.contains("layers:"), "{error}");
    }
    let none = Layout::new(Vec::<(String, Vec<usize>)>::new());
    assert!(Layers::learn(&LayersConfig::default(), &none, &[].as_slice(), &Progress::silent()).is_err());
}

#[test]
fn a_file_has_all_keys_at_one_level_and_no_others() {
    let config =
        LayersConfig { chunk: 7, rows: RowsConfig { latent: 3, kl_from: 0.5, ..RowsConfig::default() }, uniform: true };
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!((&json["chunk"], &json["latent"]), (&7.into(), &3.into()));
    assert_eq!(serde_json::from_value::<LayersConfig>(json).unwrap(), config);
    assert_eq!(toml::from_str::<LayersConfig>("uniform = true\nchunk = 7\nlatent = 3").unwrap(), config);
    for text in ["chunks = 7", "latent = \"x\"", "chunk = -1"] {
        assert!(toml::from_str::<LayersConfig>(text).is_err(), "{text}");
    }
}
