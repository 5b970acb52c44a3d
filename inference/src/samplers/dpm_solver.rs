//! DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): a multistep solver of the probability-flow ODE for networks that
//! predict x₀; deterministic, and of second order, so that few steps do.

use weights::manifest::Schedule;

use super::{Step, noise_levels};

/// The plan of `steps` steps. With λ = log(√ᾱ/√(1−ᾱ)), h = λ_next − λ_t and r the ratio of the previous h to this one,
///
/// z_next = √((1−ᾱ_next)/(1−ᾱ_t))·z_t + √ᾱ_next·(1 − e^{−h})·((1 + 1/2r)·x₀ − 1/2r·x₀'),
///
/// where x₀' is the clean latent of the step before. The first step has none, and the last goes to ᾱ = 1, where h is
/// infinite: both are of first order, which is DDIM's step.
pub fn plan(schedule: &Schedule, steps: usize) -> Vec<Step> {
    let mut before: Option<f64> = None;
    noise_levels(schedule, steps)
        .into_iter()
        .map(|(t, alpha_bar, next)| {
            let h = lambda(next) - lambda(alpha_bar);
            // Half of 1/r.
            let extrapolation = before.replace(h).filter(|_| h.is_finite()).map_or(0.0, |before| h / before / 2.0);
            let latent = ((1.0 - next) / (1.0 - alpha_bar)).max(0.0).sqrt();
            let clean = next.sqrt() * -(-h).exp_m1();
            let x0 = clean * (1.0 + extrapolation);
            let step = Step::from_clean(t, alpha_bar, schedule.prediction, x0, latent, 0.0);
            Step { previous: (-clean * extrapolation) as f32, ..step }
        })
        .collect()
}

/// Half the logarithm of the signal-to-noise ratio; infinite without noise.
fn lambda(alpha_bar: f64) -> f64 {
    0.5 * (alpha_bar / (1.0 - alpha_bar)).ln()
}

#[cfg(test)]
mod tests {
    use weights::manifest::Prediction;

    use super::super::tests::{moments, sample, schedule};
    use super::super::{ddim, timesteps};
    use super::*;

    const PREDICTIONS: [Prediction; 2] = [Prediction::Sample, Prediction::Epsilon];

    #[test]
    fn the_first_and_the_last_step_are_those_of_ddim() {
        for prediction in PREDICTIONS {
            let schedule = schedule(prediction);
            let (ours, ddim) = (plan(&schedule, 12), ddim::plan(&schedule, 12, 0.0));
            assert_eq!(ours.iter().map(|s| s.t).collect::<Vec<_>>(), timesteps(1000, 12));
            for at in [0, 11] {
                assert_eq!(ours[at].previous, 0.0);
                assert!((ours[at].latent - ddim[at].latent).abs() < 1e-5, "{:?} {:?}", ours[at], ddim[at]);
                assert!((ours[at].prediction - ddim[at].prediction).abs() < 1e-5);
            }
            assert!(ours[1..11].iter().all(|step| step.previous < 0.0 && step.noise == 0.0));
        }
    }

    #[test]
    fn a_single_point_is_recovered_in_few_steps() {
        for prediction in PREDICTIONS {
            let schedule = schedule(prediction);
            for steps in [1, 2, 5, 20] {
                let z = sample(&plan(&schedule, steps), &schedule, (-3.0, 0.0), 5, 0..2, 8);
                assert!(z.iter().all(|v| (v + 3.0).abs() < 5e-3), "{prediction:?} {steps} {z:?}");
            }
        }
    }

    /// The flow of a Gaussian is exact with many steps: what few steps miss of it is the solver's error.
    #[test]
    fn it_is_nearer_to_the_flow_than_ddim() {
        for prediction in PREDICTIONS {
            let schedule = schedule(prediction);
            let flow = |plan: &[Step]| sample(plan, &schedule, (2.0, 0.25), 13, 0..4, 500);
            let exact = flow(&ddim::plan(&schedule, 1000, 0.0));
            let (_, var) = moments(&exact);
            assert!((var / 0.25 - 1.0).abs() < 0.1, "{var}");
            let error = |plan: &[Step]| {
                let z = flow(plan);
                z.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / exact.len() as f64
            };
            // Squared errors: those of DDIM fall by 4 with twice the steps, those of the second order by 16 and more.
            for (steps, ratio) in [(10, 0.6), (20, 0.1), (40, 0.01)] {
                let (ours, ddim) = (error(&plan(&schedule, steps)), error(&ddim::plan(&schedule, steps, 0.0)));
                assert!(ours < ratio * ddim, "{prediction:?} {steps}: {ours:e} {ddim:e}");
            }
        }
    }
}
