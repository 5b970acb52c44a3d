//! Steps of the denoiser and an encoder that learns along, beside candle's.

use super::*;
use crate::stages::case::case;
use crate::stages::encoder;

#[test]
fn an_encoder_that_learns_along_has_candles_gradients() {
    case(&[("embedding_dim = 8", "embedding_dim = 8\njoint = 0.5")]).with(|given| {
        let Given { config, zoo, vectors, sources, .. } = *given;
        let latents = random::normal(&[vectors.checkpoints(), 8], &Device::Cpu, &mut random::stream(1, "z")).unwrap();
        let (mut encoder, _) = encoder::train(given, &latents).unwrap();
        let shape = DenoiserShape {
            latent: vec![8],
            condition_dim: encoder.shape.condition_dim(),
            token_dim: encoder.shape.token_dim,
            any_number: false,
            config: config.denoiser.clone(),
        };
        let schedule = schedule(config);
        let alphas = schedule.alphas_cumulative();
        let latent = Latent { shape: vec![8], scale: 1.0 };
        let mut denoiser = Denoiser { shape, params: Params::new(2, &Device::Cpu), schedule, latent };
        let data = Batches { config, zoo, sources, vectors, latents, alphas, joint: true, qualities: None };
        let shard = |denoiser: &Denoiser, encoder: &Encoder| Shard {
            networks: (denoiser.clone(), encoder.clone()),
            rng: random::stream(1, "step"),
        };
        // By candle first, which makes the denoiser's parameters.
        let mut rng = random::stream(1, "step");
        let picked = shards::pick(&vectors.train, config.diffusion.batch, &mut rng);
        let tasks = picked.iter().map(|&i| zoo.task(i as usize));
        let supports = encoder.support(sources, tasks, Part::Train, &mut rng).unwrap();
        let condition = encoder.encode(&supports).unwrap().1;
        let drawn = data.draw(&picked, &supports, &condition, &mut rng).unwrap();
        let prediction = denoiser.denoise(&drawn.batch.noisy, &drawn.batch.timestep, &drawn.condition).unwrap();
        let loss = drawn.error(&prediction).unwrap().affine(0.5, 0.0).unwrap();
        let grads = loss.backward().unwrap();
        let learned = data.learn(&mut shard(&denoiser, &encoder), 0.5).unwrap();
        let loss = loss.to_scalar::<f32>().unwrap();
        assert!((learned.loss - loss).abs() < 1e-5 * loss, "{} {loss}", learned.loss);
        let vars: Vec<_> = denoiser.params.vars().into_iter().chain(encoder.params.vars()).collect();
        assert_eq!(vars.len(), learned.params.len());
        for (i, (var, ours)) in vars.iter().zip(&learned.params).enumerate() {
            let theirs = grads.get(var).map(|grad| grad.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let (Some(ours), Some(theirs)) = (ours.as_ref().map(Gradient::values), &theirs) else {
                assert!(ours.is_none() && theirs.is_none(), "parameter {i}");
                continue;
            };
            let largest = theirs.iter().fold(1e-3f32, |m, g| m.max(g.abs()));
            let off = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(ours.len() == theirs.len() && off < 1e-4 * largest, "parameter {i}: {off} of {largest}");
        }
    });
}
