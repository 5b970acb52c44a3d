//! Names of resources and references to generators.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Checks the form that the database demands of a resource's name (`resource_name_valid`), before anything is stored
/// under it.
///
/// # Errors
/// `invalid_name` with what would be right.
pub fn check(name: &str) -> Result<()> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if begins && name.len() <= 100 && name.bytes().all(allowed) {
        Ok(())
    } else {
        Err(Error::InvalidName { name: shorten(name), also: "" })
    }
}

/// Checks an alias: a name that `name@…` cannot read as a version.
pub(crate) fn check_alias(alias: &str) -> Result<()> {
    check(alias)?;
    if alias == "latest" || alias.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::InvalidName { name: alias.into(), also: "; an alias is neither `latest` nor a number" });
    }
    Ok(())
}

/// Keeps an error's sentence short when the refused text is long.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 120 { text.into() } else { text.chars().take(120).chain(['…']).collect() }
}

/// Which version of a generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The highest version there is.
    Latest,
    /// A version number.
    Version(i32),
    /// The version an alias points to.
    Alias(String),
}

/// A reference to a generator version: `name`, `name@latest`, `name@3` or `name@alias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratorRef {
    /// The generator's name.
    pub name: String,
    /// Which of its versions.
    pub selector: Selector,
}

impl FromStr for GeneratorRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::InvalidReference(shorten(text));
        let (name, selector) = text.split_once('@').map_or((text, None), |(name, rest)| (name, Some(rest)));
        check(name).map_err(|_| refused())?;
        let selector = match selector {
            None | Some("latest") => Selector::Latest,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Selector::Version(digits.parse().ok().filter(|v| *v > 0).ok_or_else(refused)?)
            }
            Some(alias) => {
                check_alias(alias).map_err(|_| refused())?;
                Selector::Alias(alias.into())
            }
        };
        Ok(Self { name: name.into(), selector })
    }
}

impl fmt::Display for GeneratorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Latest => write!(f, "{}@latest", self.name),
            Selector::Version(version) => write!(f, "{}@{version}", self.name),
            Selector::Alias(alias) => write!(f, "{}@{alias}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "0", "digits-mlp_2", &"x".repeat(100)] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "_a", "A", "ä", "a b", "a@b", "a/b", "a\0", "a\n", &"x".repeat(101)] {
            assert_eq!(check(bad).unwrap_err().code(), "invalid_name", "{bad}");
        }
        for bad in ["latest", "3", "007"] {
            assert!(check(bad).is_ok() && check_alias(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references() {
        let parse = |text: &str| text.parse::<GeneratorRef>();
        assert_eq!(parse("digits").unwrap().selector, Selector::Latest);
        assert_eq!(parse("digits@latest").unwrap().selector, Selector::Latest);
        assert_eq!(parse("digits@3").unwrap().selector, Selector::Version(3));
        assert_eq!(parse("digits@stable").unwrap().selector, Selector::Alias("stable".into()));
        for bad in ["", "@", "a@", "@1", "a@0", "a@1@2", "a@99999999999", "a@-1", "A@1", "a@S"] {
            assert_eq!(parse(bad).unwrap_err().code(), "invalid_reference", "{bad}");
        }
        for text in ["digits@latest", "digits@3", "digits@stable"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }
}
