//! A part of a network (paper C.6): only some of an architecture's parameters are trained and generated, all others are
//! constants. What is learned and generated are the *values* of the part, one parameter after the other, in the order
//! of the whole network's layout.

use std::collections::BTreeMap;

use crate::error::{Error, Result, check_finite, check_length};
use crate::layout::Layout;
use crate::tensors;

/// The generated parameters of a network, and the constants that all others are.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    whole: Layout,
    layout: Layout,
    /// The whole network `[d]`; what it has in the place of generated values is of no account.
    rest: Vec<f32>,
}

impl Part {
    /// The part of `whole` that are the parameters of these names; the others are constants, with the values that they
    /// have in `network` (`[d]`).
    ///
    /// # Errors
    /// [`Error::Part`] when a name is not in the layout, or none or all of it are named; [`Error::Length`].
    pub fn new(whole: &Layout, generated: &[String], network: Vec<f32>) -> Result<Self> {
        check_length("the network around a part", network.len(), whole.parameters())?;
        check_finite("the network around a part", &network)?;
        if let Some(unknown) = generated.iter().find(|name| whole.get(name).is_none()) {
            return Err(Error::Part(format!("there is no parameter {unknown}; there are {}", whole.names())));
        }
        let own = whole.params.iter().filter(|p| generated.contains(&p.name));
        let layout = Layout::new(own.map(|p| (p.name.clone(), p.shape.clone())));
        if layout.params.is_empty() || layout.params.len() == whole.params.len() {
            let which = if layout.params.is_empty() { "none" } else { "all" };
            return Err(Error::Part(format!(
                "{which} of the network's parameters are generated, which is no part of it"
            )));
        }
        Ok(Self { whole: whole.clone(), layout, rest: network })
    }

    /// Layout of the part's values.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Layout of the whole network.
    pub fn whole(&self) -> &Layout {
        &self.whole
    }

    /// Names of the generated parameters, in order.
    pub fn names(&self) -> Vec<String> {
        self.layout.params.iter().map(|p| p.name.clone()).collect()
    }

    /// The constants: name, shape and values of each parameter that is not generated.
    pub fn constants(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        let others = self.whole.params.iter().filter(|p| self.layout.get(&p.name).is_none());
        others.map(|p| (p.name.as_str(), p.shape.as_slice(), &self.rest[p.range()]))
    }

    /// The part's values of a network `theta` (`[d]`).
    ///
    /// # Errors
    /// [`Error::Length`] when it is not of the layout.
    pub fn take(&self, theta: &[f32]) -> Result<Vec<f32>> {
        check_length("the weight vector", theta.len(), self.whole.parameters())?;
        let own = self.layout.params.iter().filter_map(|p| self.whole.get(&p.name));
        Ok(own.flat_map(|p| theta[p.range()].iter().copied()).collect())
    }

    /// The network (`[d]`) with these values of the part, and the constants.
    ///
    /// # Errors
    /// [`Error::Length`] when they are not as many as the part has.
    pub fn complete(&self, values: &[f32]) -> Result<Vec<f32>> {
        check_length("the generated values", values.len(), self.layout.parameters())?;
        let mut theta = self.rest.clone();
        for own in &self.layout.params {
            if let Some(place) = self.whole.get(&own.name) {
                theta[place.range()].copy_from_slice(&values[own.range()]);
            }
        }
        Ok(theta)
    }

    /// The constants as a safetensors file.
    pub fn to_safetensors(&self) -> Vec<u8> {
        tensors::named_to_safetensors(&self.constants().collect::<Vec<_>>(), &BTreeMap::new())
    }

    /// The part whose constants are a file that [`Self::to_safetensors`] wrote.
    ///
    /// # Errors
    /// As [`Self::new`], and where a constant is missing or has another shape.
    pub fn from_safetensors(whole: &Layout, generated: &[String], bytes: &[u8]) -> Result<Self> {
        let mut rest = vec![0.0; whole.parameters()];
        for param in whole.params.iter().filter(|p| !generated.contains(&p.name)) {
            let (shape, values) = tensors::named_from_safetensors(bytes, &param.name)?;
            if shape != param.shape {
                let (tensor, expected) = (param.name.clone(), param.shape.clone());
                return Err(Error::TensorShape { tensor, found: shape, expected });
            }
            rest[param.range()].copy_from_slice(&values);
        }
        Self::new(whole, generated, rest)
    }
}

/// Names of the parameters that match one of the patterns, in the order of the layout. In a pattern `*` stands for any
/// characters (also none, also dots) and `?` for one.
///
/// # Errors
/// [`Error::Part`] for a pattern that matches nothing, with the names that there are.
pub fn matching(layout: &Layout, patterns: &[String]) -> Result<Vec<String>> {
    let fits = |pattern: &String, name: &str| glob(pattern.as_bytes(), name.as_bytes());
    for pattern in patterns {
        if !layout.params.iter().any(|p| fits(pattern, &p.name)) {
            return Err(Error::Part(format!("no parameter matches {pattern:?}; there are {}", layout.names())));
        }
    }
    let names = layout.params.iter().map(|p| &p.name);
    Ok(names.filter(|name| patterns.iter().any(|pattern| fits(pattern, name))).cloned().collect())
}

fn glob(pattern: &[u8], name: &[u8]) -> bool {
    // Where the last star was, and what it stands for so far.
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new([("a.weight", vec![2, 2]), ("a.bias", vec![2]), ("b.weight", vec![3]), ("b.bias", vec![1])])
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    proptest! {
        #[test]
        fn take_complete_and_the_file_are_exact(chosen in 1usize..15, values in proptest::collection::vec(-9f32..9.0, 20)) {
            let all = layout();
            let own: Vec<String> =
                (0..4).filter(|i| chosen >> i & 1 == 1).map(|i| all.params[i].name.clone()).collect();
            let part = Part::new(&all, &own, values[..10].to_vec()).unwrap();
            prop_assert_eq!(part.names(), own.clone());
            let other = &values[10..];
            let made = part.complete(&part.take(other).unwrap()).unwrap();
            for p in &all.params {
                let from = if own.contains(&p.name) { other } else { &values[..10] };
                prop_assert_eq!(&made[p.range()], &from[p.range()]);
            }
            let back = Part::from_safetensors(&all, &own, &part.to_safetensors()).unwrap();
            prop_assert_eq!(back.complete(&part.take(other).unwrap()).unwrap(), made);
        }
    }

    #[test]
    fn patterns_choose_names() {
        let found = |patterns: &[&str]| matching(&layout(), &names(patterns));
        assert_eq!(found(&["b.*"]).unwrap(), names(&["b.weight", "b.bias"]));
        assert_eq!(found(&["*.bias", "a.bias"]).unwrap(), names(&["a.bias", "b.bias"]));
        assert_eq!(found(&["?.w*t"]).unwrap(), names(&["a.weight", "b.weight"]));
        for (pattern, name, fits) in
            [("*", "", true), ("a*b*c", "aXbbYc", true), ("a*b", "abc", false), ("", "a", false)]
        {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
        let error = found(&["b.*", "c.*"]).unwrap_err().to_string();
        assert!(error.contains("\"c.*\"") && error.contains("a.weight, a.bias, b.weight, b.bias"), "{error}");
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let error = |own: &[&str]| Part::new(&layout(), &names(own), vec![0.0; 10]).unwrap_err().to_string();
        assert!(error(&[]).contains("none"));
        assert!(error(&["a.weight", "a.bias", "b.weight", "b.bias"]).contains("all"));
        assert!(error(&["c"]).contains("no parameter c"));
        assert!(Part::new(&layout(), &names(&["a.bias"]), vec![0.0; 9]).is_err());
        let part = Part::new(&layout(), &names(&["a.bias"]), vec![0.0; 10]).unwrap();
        assert!(part.complete(&[1.0]).is_err() && part.take(&[1.0]).is_err());
        // A file of the constants of another part.
        let file = part.to_safetensors();
        let error = Part::from_safetensors(&layout(), &names(&["b.bias"]), &file).unwrap_err();
        assert_eq!(error.code(), "tensor_missing");
    }
}
