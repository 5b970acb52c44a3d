//! DDIM: the non-Markovian process with DDPM's marginals; deterministic at η = 0.

use weights::manifest::Schedule;

use super::{Step, noise_levels};

/// The plan of `steps` steps with stochasticity `eta` in [0, 1]:
/// z_next = √ᾱ_next·x₀ + √(1−ᾱ_next−σ²)·ε + σ·n with σ = η·√((1−ᾱ_next)/(1−ᾱ_t))·√(1−ᾱ_t/ᾱ_next).
pub fn plan(schedule: &Schedule, steps: usize, eta: f64) -> Vec<Step> {
    noise_levels(schedule, steps)
        .into_iter()
        .map(|(t, alpha_bar, next)| {
            let sigma = eta * ((1.0 - next) / (1.0 - alpha_bar)).sqrt() * (1.0 - alpha_bar / next).max(0.0).sqrt();
            let direction = (1.0 - next - sigma * sigma).max(0.0).sqrt();
            // ε = (z_t − √ᾱ_t·x₀) / √(1−ᾱ_t).
            let latent = direction / (1.0 - alpha_bar).sqrt();
            let x0 = next.sqrt() - latent * alpha_bar.sqrt();
            Step::from_clean(t, alpha_bar, schedule.prediction, x0, latent, sigma)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use weights::manifest::Prediction;

    use super::super::tests::{moments, sample, schedule};
    use super::super::{ddpm, tests};
    use super::*;

    #[test]
    fn without_eta_no_noise_is_added_and_the_walk_is_deterministic() {
        let schedule = schedule(Prediction::Sample);
        let plan = plan(&schedule, 20, 0.0);
        assert_eq!((plan.len(), plan[0].t), (20, 999));
        assert!(plan.iter().all(|step| step.noise == 0.0));
        let draw = |seed| sample(&plan, &schedule, (0.5, 1.5), seed, 0..2, 4);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn a_single_point_is_recovered_in_few_steps() {
        for prediction in [Prediction::Sample, Prediction::Epsilon] {
            let schedule = schedule(prediction);
            for (steps, eta) in [(1, 0.0), (5, 0.0), (20, 0.0), (20, 1.0)] {
                let z = sample(&plan(&schedule, steps, eta), &schedule, (-3.0, 0.0), 5, 0..2, 8);
                assert!(z.iter().all(|v| (v + 3.0).abs() < 5e-3), "{prediction:?} {steps} {eta} {z:?}");
            }
        }
    }

    #[test]
    fn the_moments_of_a_gaussian_are_recovered() {
        for prediction in [Prediction::Sample, Prediction::Epsilon] {
            let schedule = schedule(prediction);
            for (steps, eta, tolerance) in [(1000, 0.0, 0.03), (100, 0.0, 0.08), (1000, 1.0, 0.03)] {
                let z = sample(&plan(&schedule, steps, eta), &schedule, (2.0, 0.25), 13, 0..20, 1000);
                let (mean, var) = moments(&z);
                assert!((mean - 2.0).abs() < 0.02, "{prediction:?} {steps} {eta} mean {mean}");
                assert!((var / 0.25 - 1.0).abs() < tolerance, "{prediction:?} {steps} {eta} variance {var}");
            }
        }
    }

    #[test]
    fn eta_one_is_ddpm() {
        let schedule = tests::schedule(Prediction::Epsilon);
        for (a, b) in plan(&schedule, 1000, 1.0).iter().zip(ddpm::plan(&schedule, 1000)) {
            assert_eq!(a.t, b.t);
            let close = |x: f32, y: f32| assert!((x - y).abs() < 1e-4 * y.abs().max(1.0), "{a:?} {b:?}");
            close(a.latent, b.latent);
            close(a.prediction, b.prediction);
            close(a.noise, b.noise);
        }
    }
}
