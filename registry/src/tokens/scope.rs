//! What a token allows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// One thing that a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Read what is visible.
    Read,
    /// Generate weights.
    Generate,
    /// Send data and models, train, and move aliases.
    Train,
    /// Everything, also tokens and the audit trail.
    Administer,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 4] = [Self::Read, Self::Generate, Self::Train, Self::Administer];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Generate => "generate",
            Self::Train => "train",
            Self::Administer => "administer",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scope {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let known = Self::ALL.into_iter().find(|scope| scope.name() == text);
        known.ok_or_else(|| Error::invalid("scopes", "use read, generate, train or administer"))
    }
}

/// All that a token allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Scopes(pub Vec<Scope>);

impl Scopes {
    /// Whether a scope is among them; `administer` includes the others.
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Administer)
    }
}

impl TryFrom<Vec<String>> for Scopes {
    type Error = Error;

    fn try_from(names: Vec<String>) -> Result<Self, Error> {
        names.iter().map(|name| name.parse()).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administer_includes_the_others() {
        for scope in Scope::ALL {
            assert_eq!(scope.name().parse::<Scope>().unwrap(), scope);
            assert!(Scopes(vec![Scope::Administer]).allow(scope));
            assert_eq!(
                Scopes(vec![Scope::Read, Scope::Train]).allow(scope),
                [Scope::Read, Scope::Train].contains(&scope)
            );
        }
        assert_eq!("Read".parse::<Scope>().unwrap_err().code(), "invalid_value");
    }
}
