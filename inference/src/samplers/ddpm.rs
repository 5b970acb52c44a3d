//! DDPM (paper Eq. 6): ancestral sampling with the posterior variance.

use weights::manifest::Schedule;

use super::{Step, noise_levels};

/// The plan of `steps` ancestral steps; with fewer than T, of the respaced process that has the schedule's ᾱ at the
/// chosen timesteps, so β is 1 − ᾱ_t / ᾱ_next and not the schedule's β_t.
///
/// Each step samples the posterior q(z_next | z_t, x₀), which for all T steps is Eq. 6:
/// z_{t−1} = (z_t − β_t/√(1−ᾱ_t)·ε)/√α_t + σ_t·n with σ_t² = β_t(1−ᾱ_{t−1})/(1−ᾱ_t).
pub fn plan(schedule: &Schedule, steps: usize) -> Vec<Step> {
    noise_levels(schedule, steps)
        .into_iter()
        .map(|(t, alpha_bar, next)| {
            let alpha = alpha_bar / next;
            let beta = 1.0 - alpha;
            let x0 = next.sqrt() * beta / (1.0 - alpha_bar);
            let latent = alpha.sqrt() * (1.0 - next) / (1.0 - alpha_bar);
            let variance = beta * (1.0 - next) / (1.0 - alpha_bar);
            Step::from_clean(t, alpha_bar, schedule.prediction, x0, latent, variance.max(0.0).sqrt())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use weights::manifest::Prediction;

    use super::super::tests::{moments, sample, schedule};
    use super::*;

    #[test]
    fn coefficients_are_those_of_equation_6() {
        let schedule = schedule(Prediction::Epsilon);
        let alphas = schedule.alphas_cumulative();
        let plan = plan(&schedule, 1000);
        for t in [999, 500, 10, 1] {
            let step = plan[999 - t];
            let (beta, alpha) = (schedule.beta(t), 1.0 - schedule.beta(t));
            assert_eq!(step.t, t);
            let close = |found: f32, right: f64| assert!((f64::from(found) - right).abs() < 1e-6, "{found} {right}");
            close(step.latent, 1.0 / alpha.sqrt());
            close(step.prediction, -beta / (1.0 - alphas[t]).sqrt() / alpha.sqrt());
            close(step.noise, (beta * (1.0 - alphas[t - 1]) / (1.0 - alphas[t])).sqrt());
        }
        assert_eq!(plan[999].noise, 0.0);
    }

    #[test]
    fn a_single_point_is_recovered() {
        for prediction in [Prediction::Sample, Prediction::Epsilon] {
            let schedule = schedule(prediction);
            for steps in [1000, 37] {
                let z = sample(&plan(&schedule, steps), &schedule, (2.5, 0.0), 3, 0..2, 8);
                assert!(z.iter().all(|v| (v - 2.5).abs() < 5e-3), "{prediction:?} {steps} {z:?}");
            }
        }
    }

    #[test]
    fn the_moments_of_a_gaussian_are_recovered() {
        for prediction in [Prediction::Sample, Prediction::Epsilon] {
            let schedule = schedule(prediction);
            // Few steps lose variance (the posterior variance is a lower bound); all of them do not.
            for (steps, tolerance) in [(1000, 0.03), (250, 0.06)] {
                let z = sample(&plan(&schedule, steps), &schedule, (-1.0, 0.25), 11, 0..20, 1000);
                let (mean, var) = moments(&z);
                assert!((mean + 1.0).abs() < 0.02, "{prediction:?} {steps} mean {mean}");
                assert!((var / 0.25 - 1.0).abs() < tolerance, "{prediction:?} {steps} variance {var}");
            }
        }
    }
}
