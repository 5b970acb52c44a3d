//! What each operation needs, read from the OpenAPI document: the declaration is the rule.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::http::Method;
use registry::tokens::Scope;
use serde_json::Value;
use utoipa::openapi::OpenApi;

use crate::error::{Error, Result};

/// Name of the security scheme of bearer tokens.
pub(crate) const SCHEME: &str = "token";

/// What a request of an operation has to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: anyone may ask.
    Nothing,
    /// A valid token that has all scopes of one of these lists.
    Token(Vec<Vec<Scope>>),
    /// The operation does not declare what it needs: nobody may ask.
    Undeclared,
}

/// Operations by path template and method.
pub(crate) struct Table(BTreeMap<String, Vec<(Method, Needs)>>);

impl Table {
    /// The table of a document.
    pub(crate) fn of(document: &OpenApi) -> Self {
        let document = serde_json::to_value(document).unwrap_or_default();
        let paths = document["paths"].as_object().into_iter().flatten();
        let operations = |item: &Value| -> Vec<(Method, Needs)> {
            let each = item.as_object().into_iter().flatten();
            // `parameters`, `summary` and the like are beside the methods, and are valid names of methods too.
            let method = |name: &str| Method::from_str(&name.to_ascii_uppercase()).ok();
            each.filter(|(_, operation)| operation["responses"].is_object())
                .filter_map(|(name, operation)| Some((method(name)?, needs(&operation["security"]))))
                .collect()
        };
        Self(paths.map(|(path, item)| (path.clone(), operations(item))).collect())
    }

    /// What a request needs; HEAD needs what GET does unless it is described itself.
    pub(crate) fn needs(&self, method: &Method, path: &str) -> Result<Needs> {
        let undescribed = || Error::Internal(format!("the path {path} is routed and not described"));
        let operations = self.0.get(path).ok_or_else(undescribed)?;
        let find = |method: &Method| operations.iter().find(|(name, _)| name == method).map(|(_, needs)| needs);
        let found = find(method).or_else(|| if method == Method::HEAD { find(&Method::GET) } else { None });
        match found {
            Some(Needs::Undeclared) => {
                Err(Error::Internal(format!("{method} {path} does not declare which scope it needs")))
            }
            Some(needs) => Ok(needs.clone()),
            None => Err(Error::MethodNotAllowed { method: method.to_string(), allow: allowed(operations) }),
        }
    }

    /// All operations, for the test that each declares what it needs.
    #[cfg(test)]
    fn iter(&self) -> impl Iterator<Item = (&str, &Method, &Needs)> {
        self.0.iter().flat_map(|(path, each)| each.iter().map(move |(method, needs)| (path.as_str(), method, needs)))
    }
}

/// The methods of a path, as in `Allow`.
fn allowed(operations: &[(Method, Needs)]) -> String {
    let mut names: Vec<&str> = operations.iter().map(|(method, _)| method.as_str()).collect();
    if names.contains(&"GET") && !names.contains(&"HEAD") {
        names.push("HEAD");
    }
    names.sort_unstable();
    names.join(",")
}

/// Reads a `security` member: `[{}]` is open, `[{"token": [scopes]}]` needs a token, more of these one of them; all else
/// is not understood.
fn needs(security: &Value) -> Needs {
    match security.as_array().map(Vec::as_slice) {
        None | Some([]) => Needs::Undeclared,
        Some([Value::Object(one)]) if one.is_empty() => Needs::Nothing,
        Some(alternatives) => {
            let scopes: Option<Vec<Vec<Scope>>> = alternatives.iter().map(scopes).collect();
            scopes.map_or(Needs::Undeclared, Needs::Token)
        }
    }
}

/// The scopes of one alternative.
fn scopes(requirement: &Value) -> Option<Vec<Scope>> {
    let requirement = requirement.as_object().filter(|requirement| requirement.len() == 1)?;
    requirement.get(SCHEME)?.as_array()?.iter().map(|name| name.as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_operation_declares_what_it_needs() {
        let table = Table::of(&crate::openapi());
        assert!(table.iter().count() > 25);
        for (path, method, needs) in table.iter() {
            assert_ne!(*needs, Needs::Undeclared, "{method} {path}: add security((\"token\" = [\"…\"]))");
            if *needs == Needs::Nothing {
                assert!(!path.starts_with("/v1/"), "{method} {path} is open");
            }
        }
    }

    #[test]
    fn declarations() {
        assert_eq!(needs(&json!([{}])), Needs::Nothing);
        assert_eq!(needs(&json!([{"token": []}])), Needs::Token(vec![vec![]]));
        assert_eq!(needs(&json!([{"token": ["read", "train"]}])), Needs::Token(vec![vec![Scope::Read, Scope::Train]]));
        let either = json!([{"token": ["generate"]}, {"token": ["train"]}]);
        assert_eq!(needs(&either), Needs::Token(vec![vec![Scope::Generate], vec![Scope::Train]]));
        for bad in [
            json!(null),
            json!([]),
            json!([{}, {"token": ["read"]}]),
            json!([{"key": []}]),
            json!([{"token": ["write"]}]),
            json!([{"token": ["read"], "key": []}]),
        ] {
            assert_eq!(needs(&bad), Needs::Undeclared, "{bad}");
        }
    }

    #[test]
    fn what_is_not_described_is_refused() {
        let table = Table::of(&crate::openapi());
        assert_eq!(table.needs(&Method::HEAD, "/v1/datasets").unwrap(), Needs::Token(vec![vec![Scope::Read]]));
        let error = table.needs(&Method::DELETE, "/v1/datasets").unwrap_err();
        assert_eq!((error.code(), error.to_string().contains("GET,HEAD,POST")), ("method_not_allowed", true));
        assert_eq!(table.needs(&Method::GET, "/hidden").unwrap_err().code(), "internal");
    }
}
