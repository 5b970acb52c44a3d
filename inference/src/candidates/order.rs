//! The order of candidates.

use std::cmp::Ordering;

use super::{Candidate, Group, Origin, Outcomes, Scores};
use crate::support::ClosedForm;

/// What decides first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum By {
    /// The [`leader`], then the origins' scores; ties go to the closed form, near the zoo to the adapted one first.
    LeaveOneOut { near: bool, leader: Option<Group> },
    /// Accuracy on validation data.
    Validation,
    /// What the predictor expects.
    Predictor,
    /// Accuracy on the support.
    Support,
    /// Where nothing can be held out: what is generated, where it is trusted, else the closed form.
    OneExample { trusted: bool },
}

/// The group that comes first: the one that is best on the average of such datasets (near the zoo the head that is adapted to
/// what is generated, or where there is none what is generated; else the mean of closed forms), unless others are better by
/// more than two standard errors of the difference, then the best of those. A few held-out examples would otherwise prefer what was
/// lucky. With w examples that only the other tells right and l that only this one does, the difference is w - l and its
/// standard error √(w + l).
pub(super) fn leader(outcomes: &Outcomes, near: bool) -> Option<Group> {
    let closed = |form| (Origin::ClosedForm, Some(form));
    let expected: &[Group] = match near {
        true => &[closed(ClosedForm::Adapted), (Origin::Generated, None)],
        false => &[closed(ClosedForm::Blend)],
    };
    let (group, own) = expected.iter().find_map(|group| Some((*group, outcomes.get(group)?)))?;
    let better = |(_, other): &(&Group, &Vec<bool>)| {
        let only = |a: &[bool], b: &[bool]| a.iter().zip(b).filter(|(a, b)| **a && !**b).count() as f64;
        let (wins, losses) = (only(other, own), only(own, other));
        wins - losses > 2.0 * (wins + losses).sqrt()
    };
    let right = |(_, right): &(&Group, &Vec<bool>)| right.iter().filter(|r| **r).count();
    // The last of equals is the first of the groups.
    let best = outcomes.iter().rev().filter(better).max_by_key(right);
    Some(best.map_or(group, |(other, _)| *other))
}

/// Puts the best first. Ties go to the closed form, which is cheap and the same for each seed; then to the better on the
/// support (with [`By::Validation`]: to the smaller loss there).
pub(super) fn sort<K>(candidates: &mut [Candidate<K>], by: By) {
    candidates.sort_by(|a, b| {
        let of = |candidate: &Candidate<K>| candidate.scores.unwrap_or_default();
        let (x, y): (Scores, Scores) = (of(a), of(b));
        let first = match by {
            By::LeaveOneOut { leader, .. } => {
                let leads = |candidate: &Candidate<K>| leader == Some(candidate.group());
                leads(b).cmp(&leads(a)).then(larger(x.leave_one_out, y.leave_one_out))
            }
            By::Validation => larger(x.validation, y.validation),
            By::Predictor => larger(x.predictor, y.predictor),
            By::Support | By::OneExample { .. } => Ordering::Equal,
        };
        let rest = first.then(place(a, by).cmp(&place(b, by))).then(smaller(a.validation_loss, b.validation_loss));
        // What was made from one example a class is always right on it.
        let accuracy = match by {
            By::OneExample { .. } => Ordering::Equal,
            _ => larger(x.support_accuracy, y.support_accuracy),
        };
        rest.then(accuracy).then(smaller(x.support_loss, y.support_loss))
    });
}

/// Who comes first of those with equal scores.
fn place<K>(candidate: &Candidate<K>, by: By) -> u8 {
    let is = |form| candidate.method == Some(form);
    match (candidate.origin, by) {
        (Origin::Generated, By::OneExample { trusted: true }) => 0,
        (Origin::ClosedForm, By::OneExample { .. }) => 1 + u8::from(!is(ClosedForm::Blend)),
        (Origin::ClosedForm, By::LeaveOneOut { near, .. }) => 1 + u8::from(is(ClosedForm::Adapted) != near),
        (Origin::ClosedForm, _) => 1,
        _ => 3,
    }
}

/// The larger first, and what is not known last.
fn larger(a: Option<f64>, b: Option<f64>) -> Ordering {
    smaller(a.map(|v| -v), b.map(|v| -v))
}

/// The smaller first, and what is not known last.
fn smaller(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(origin: Origin, leave_one_out: Option<f64>, accuracy: f64, loss: f64) -> Candidate<()> {
        let scores =
            Scores { leave_one_out, support_accuracy: Some(accuracy), support_loss: Some(loss), ..Scores::default() };
        Candidate { scores: Some(scores), ..Candidate::new(origin, vec![loss as f32]) }
    }

    fn order(mut candidates: Vec<Candidate<()>>, by: By) -> Vec<(Origin, f32)> {
        sort(&mut candidates, by);
        candidates.iter().map(|c| (c.origin, c.theta[0])).collect()
    }

    fn some() -> Vec<Candidate<()>> {
        use Origin::{ClosedForm, Generated, Retrieved};
        vec![
            candidate(Generated, Some(0.8), 0.9, 3.0),
            candidate(Generated, Some(0.8), 1.0, 2.0),
            candidate(Generated, Some(0.8), 1.0, 1.0),
            candidate(Retrieved, None, 1.0, 0.0),
            candidate(ClosedForm, Some(0.8), 0.5, 4.0),
            candidate(ClosedForm, Some(0.7), 1.0, 5.0),
        ]
    }

    #[test]
    fn the_origins_score_comes_first_and_ties_go_to_the_closed_form() {
        use Origin::{ClosedForm, Generated, Retrieved};
        let generated = [(Generated, 1.0), (Generated, 2.0), (Generated, 3.0)];
        let last = [(ClosedForm, 5.0), (Retrieved, 0.0)];
        let far = [&[(ClosedForm, 4.0)][..], &generated, &last].concat();
        assert_eq!(order(some(), By::LeaveOneOut { near: false, leader: None }), far);
        // What is adapted to the zoo comes first of equals where the zoo is near, and last of the closed forms elsewhere.
        let adapted =
            Candidate { method: Some(super::ClosedForm::Adapted), ..candidate(ClosedForm, Some(0.8), 0.9, 6.0) };
        let with = || some().into_iter().chain([adapted.clone()]).collect::<Vec<_>>();
        let far = order(with(), By::LeaveOneOut { near: false, leader: None });
        assert_eq!(far[..3], [(ClosedForm, 4.0), (ClosedForm, 6.0), (Generated, 1.0)]);
        let near = order(with(), By::LeaveOneOut { near: true, leader: None });
        assert_eq!(near[..3], [(ClosedForm, 6.0), (ClosedForm, 4.0), (Generated, 1.0)]);
    }

    #[test]
    fn where_nothing_is_held_out_trust_decides() {
        use Origin::{ClosedForm, Generated};
        let near = order(some(), By::OneExample { trusted: true });
        assert_eq!(near[..3], [(Generated, 1.0), (Generated, 2.0), (Generated, 3.0)]);
        let far = order(some(), By::OneExample { trusted: false });
        assert_eq!(far[..2], [(ClosedForm, 4.0), (ClosedForm, 5.0)]);
        let said = (super::super::one_example(true), super::super::one_example(false));
        assert!(said.0.contains("it comes first") && said.1.contains("closed forms come first"), "{said:?}");
        // Which closed form is the better cannot be told.
        let blend = Candidate { method: Some(super::ClosedForm::Blend), ..candidate(ClosedForm, None, 1.0, 6.0) };
        let far = order(some().into_iter().chain([blend]).collect(), By::OneExample { trusted: false });
        assert_eq!(far[..2], [(ClosedForm, 6.0), (ClosedForm, 4.0)]);
    }

    #[test]
    fn another_leads_only_where_it_is_clearly_better() {
        let closed = |form| (Origin::ClosedForm, Some(form));
        let (ridge, blend) = (closed(super::ClosedForm::Ridge), closed(super::ClosedForm::Blend));
        let right = |wrong: &[usize]| (0..12).map(|i| !wrong.contains(&i)).collect::<Vec<_>>();
        let leads = |near, groups: &[(Group, &[usize])]| {
            leader(&groups.iter().map(|(group, wrong)| (*group, right(wrong))).collect(), near)
        };
        let generated = (Origin::Generated, None);
        assert_eq!(leads(false, &[(blend, &[0, 1, 2, 3]), (ridge, &[])]), Some(blend));
        assert_eq!(leads(false, &[(blend, &[0, 1, 2, 3, 4]), (ridge, &[])]), Some(ridge));
        // Six that only it tells right, and one that it does not: no more than luck.
        assert_eq!(leads(false, &[(blend, &[0, 1, 2, 3, 4, 5]), (ridge, &[6])]), Some(blend));
        assert_eq!(leads(false, &[(blend, &[0, 1, 2, 3, 4, 5]), (ridge, &[0]), (generated, &[])]), Some(generated));
        assert_eq!(leads(true, &[(blend, &[0]), (generated, &[0])]), Some(generated));
        let adapted = closed(super::ClosedForm::Adapted);
        assert_eq!(leads(true, &[(adapted, &[0]), (generated, &[])]), Some(adapted));
        assert_eq!(leads(false, &[(generated, &[])]), None);
    }

    #[test]
    fn the_predictor_decides_where_it_is_asked() {
        let of = |origin, predictor, loss: f64| {
            let scores = Scores { predictor, support_loss: Some(loss), ..Scores::default() };
            Candidate { scores: Some(scores), ..Candidate::<()>::new(origin, vec![loss as f32]) }
        };
        let candidates = vec![
            of(Origin::ClosedForm, Some(0.7), 0.0),
            of(Origin::Generated, Some(0.9), 2.0),
            of(Origin::Retrieved, None, 1.0),
            of(Origin::Generated, Some(0.8), 3.0),
        ];
        let order: Vec<f32> = order(candidates, By::Predictor).into_iter().map(|(_, loss)| loss).collect();
        assert_eq!(order, [2.0, 3.0, 0.0, 1.0]);
    }

    #[test]
    fn validation_decides_by_accuracy_then_loss() {
        let of = |origin, accuracy, loss: f64| {
            let scores = Scores { validation: Some(accuracy), ..Scores::default() };
            let theta = vec![loss as f32];
            Candidate { scores: Some(scores), validation_loss: Some(loss), ..Candidate::<()>::new(origin, theta) }
        };
        let candidates = vec![
            of(Origin::Generated, 0.9, 0.5),
            of(Origin::Retrieved, 0.9, 0.4),
            of(Origin::Generated, 0.95, 9.0),
            of(Origin::ClosedForm, 0.9, 7.0),
        ];
        let order: Vec<f32> = order(candidates, By::Validation).into_iter().map(|(_, loss)| loss).collect();
        assert_eq!(order, [9.0, 7.0, 0.4, 0.5]);
    }
}
