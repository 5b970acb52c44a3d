//! Who asks: what they may see and change, and what the audit trail says of them.

use std::net::IpAddr;

use sqlx::{Postgres, QueryBuilder};

use crate::{Error, Result, TokenId};

/// Whoever makes a call: the holder of a token, or the program itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name of the principal; owner of what it makes.
    pub name: String,
    /// The token that was shown, when there was one.
    pub token: Option<TokenId>,
    /// Whether everything is visible and may be changed.
    pub administrator: bool,
    /// Globs of resource names (`*` for any text) that are visible; none: all names.
    pub patterns: Vec<String>,
    /// Id of the request, for the audit trail.
    pub request_id: Option<String>,
    /// Address of the client, for the audit trail.
    pub address: Option<IpAddr>,
}

/// What decides whether a row is seen: its name when it has one, its owner and its visibility.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Name that patterns are compared with; `None` where a resource has no name.
    pub name: Option<&'a str>,
    /// Name of the owner.
    pub owner: &'a str,
    /// `public` or `private`.
    pub visibility: &'a str,
}

impl Caller {
    /// The program itself, under a name such as `cli`: sees and changes everything.
    #[must_use]
    pub fn system(name: &str) -> Self {
        Self {
            name: name.into(),
            token: None,
            administrator: true,
            patterns: Vec::new(),
            request_id: None,
            address: None,
        }
    }

    /// Whether a resource is visible: it is public or the caller's own (an administrator sees all), and its name is
    /// among the caller's patterns.
    #[must_use]
    pub fn sees(&self, access: Access<'_>) -> bool {
        let owned = self.administrator || access.visibility == "public" || access.owner == self.name;
        owned && access.name.is_none_or(|name| self.may_name(name))
    }

    /// Whether the caller's patterns allow a resource of this name.
    #[must_use]
    pub fn may_name(&self, name: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| matches(pattern, name))
    }

    /// Refuses what is invisible as if it were not there.
    pub(crate) fn require_sight(&self, resource: &'static str, id: &str, access: Access<'_>) -> Result<()> {
        if self.sees(access) { Ok(()) } else { Err(Error::not_found(resource, id)) }
    }

    /// Refuses changes of what belongs to another.
    pub(crate) fn require_ownership(&self, resource: &'static str, id: &str, owner: &str) -> Result<()> {
        if self.administrator || self.name == owner {
            Ok(())
        } else {
            Err(Error::NotOwner { resource, name: id.into(), owner: owner.into() })
        }
    }

    /// Refuses to make a resource whose name the caller could not see.
    pub(crate) fn require_name(&self, name: &str) -> Result<()> {
        if self.may_name(name) {
            Ok(())
        } else {
            Err(Error::NameNotAllowed { name: name.into(), patterns: self.patterns.join(", ") })
        }
    }

    /// Adds ` AND …` that keeps the visible rows of a table; `alias.owner`, `alias.visibility` and, when `named`,
    /// `alias.name` are its columns. Nothing is added for someone who sees all, so that plans stay simple.
    pub(crate) fn push_sight(&self, query: &mut QueryBuilder<Postgres>, alias: &str, named: bool) {
        if !self.administrator {
            query.push(format_args!(" AND ({alias}.visibility = 'public' OR {alias}.owner = "));
            query.push_bind(self.name.clone());
            query.push(")");
        }
        if named && !self.patterns.is_empty() {
            self.push_names(query, &format!("{alias}.name"));
        }
    }

    /// Adds ` AND …` that keeps the rows whose name, in a column, is among the caller's patterns.
    pub(crate) fn push_names(&self, query: &mut QueryBuilder<Postgres>, column: &str) {
        query.push(format_args!(" AND {column} LIKE ANY ("));
        query.push_bind(self.patterns.iter().map(|pattern| like(pattern)).collect::<Vec<_>>());
        query.push(")");
    }
}

/// A glob as a pattern of SQL's LIKE.
fn like(glob: &str) -> String {
    glob.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_").replace('*', "%")
}

/// Whether a glob, in which `*` stands for any text, matches the whole of a name.
fn matches(glob: &str, name: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            match rest.find(middle) {
                Some(at) => rest = &rest[at + middle.len()..],
                None => return false,
            }
        }
    }
    last.map_or(rest.is_empty(), |end: &str| rest.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, name) in
            [("*", "a"), ("*", ""), ("a", "a"), ("a*", "a"), ("a*c", "abc"), ("*b*", "abc"), ("a**", "ab")]
        {
            assert!(matches(glob, name), "{glob} {name}");
        }
        for (glob, name) in [("", "a"), ("a", "ab"), ("b*", "ab"), ("*a", "ab"), ("a*bc*c", "abc"), ("ab*ba", "aba")] {
            assert!(!matches(glob, name), "{glob} {name}");
        }
        assert_eq!(like("a_%*\\"), "a\\_\\%%\\\\");
    }

    #[test]
    fn sight() {
        let caller = Caller { administrator: false, patterns: vec!["mine-*".into()], ..Caller::system("ann") };
        let sees = |name, owner, visibility| caller.sees(Access { name: Some(name), owner, visibility });
        assert!(sees("mine-1", "bob", "public") && sees("mine-1", "ann", "private"));
        assert!(!sees("mine-1", "bob", "private") && !sees("other", "ann", "public"));
        assert!(caller.sees(Access { name: None, owner: "bob", visibility: "public" }));
        assert!(Caller::system("x").sees(Access { name: Some("other"), owner: "bob", visibility: "private" }));
    }
}
