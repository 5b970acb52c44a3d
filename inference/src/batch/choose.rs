//! Which rows take the next step.

use std::collections::VecDeque;

/// Rows of a walk that could take a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting<C> {
    /// Who asked for it.
    pub client: C,
    /// Rows.
    pub rows: usize,
    /// Rows of the tensor that each of them takes: two where it is guided.
    pub cost: usize,
}

/// How many rows of each walk take the next step: `walks` in the order in which they came, at most `most` rows of the tensor
/// in all. Clients take turns, one row each, those first who came first: who asks for one network does not wait behind those
/// who asked for hundreds, and of equal requests the oldest end first. One row is taken also when it costs more than `most`.
pub(super) fn choose<C: PartialEq + Copy>(walks: &[Waiting<C>], most: usize) -> Vec<usize> {
    let mut taken = vec![0; walks.len()];
    let mut clients: Vec<(C, VecDeque<usize>)> = Vec::new();
    for (at, walk) in walks.iter().enumerate().filter(|(_, walk)| walk.rows > 0) {
        match clients.iter_mut().find(|(client, _)| *client == walk.client) {
            Some((_, own)) => own.push_back(at),
            None => clients.push((walk.client, VecDeque::from([at]))),
        }
    }
    let mut left = most;
    while !clients.is_empty() {
        for (_, own) in &mut clients {
            let Some(&at) = own.front() else { continue };
            let cost = walks[at].cost;
            if cost > left && left < most {
                return taken;
            }
            taken[at] += 1;
            left = left.saturating_sub(cost);
            if taken[at] == walks[at].rows {
                own.pop_front();
            }
            if left == 0 {
                return taken;
            }
        }
        clients.retain(|(_, own)| !own.is_empty());
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(client: char, rows: usize) -> Waiting<char> {
        Waiting { client, rows, cost: 1 }
    }

    #[test]
    fn clients_take_turns_and_the_oldest_come_first() {
        // One asks for hundreds; two others, who came later, for one and two.
        assert_eq!(choose(&[of('a', 200), of('b', 1), of('c', 2)], 8), [5, 1, 2]);
        // The second request of a client waits for its first, not for others.
        assert_eq!(choose(&[of('a', 3), of('a', 3), of('b', 9)], 8), [3, 1, 4]);
        // More clients than places: who came first.
        assert_eq!(choose(&[of('a', 1), of('b', 1), of('c', 1)], 2), [1, 1, 0]);
        assert_eq!(choose(&[of('a', 0), of('b', 2)], 8), [0, 2]);
        assert!(choose::<char>(&[], 8).is_empty());
    }

    #[test]
    fn guided_rows_count_twice_and_one_always_goes() {
        let guided = |client, rows| Waiting { client, rows, cost: 2 };
        assert_eq!(choose(&[guided('a', 9)], 8), [4]);
        assert_eq!(choose(&[of('b', 1), guided('a', 9)], 4), [1, 1]);
        assert_eq!(choose(&[guided('a', 9)], 1), [1]);
    }
}
