//! Variables with our prefix that nothing reads are mistakes, and are said to be.

use std::collections::BTreeSet;

use clap::Command;

use crate::error::{Error, Result};

const PREFIX: &str = "WEIGHTSMITH_";
/// Read by the build, by the scripts, by tests, or by configuration files that name them.
const OTHERS: [&str; 8] = [
    "WEIGHTSMITH_DATA",
    "WEIGHTSMITH_DEPS",
    "WEIGHTSMITH_MOTO",
    "WEIGHTSMITH_PYTHON",
    "WEIGHTSMITH_PYTHONPATH",
    "WEIGHTSMITH_REVISION",
    "WEIGHTSMITH_SCHEMATHESIS",
    "WEIGHTSMITH_SHARED_DATA",
];

/// Refuses variables with our prefix that no command reads.
///
/// # Errors
/// `unknown_variable`, with the nearest one there is.
pub fn check(command: &Command) -> Result<()> {
    let set: Vec<String> = std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    check_names(command, &set)
}

fn check_names(command: &Command, set: &[String]) -> Result<()> {
    let mut known: BTreeSet<String> = OTHERS.iter().map(|name| (*name).to_owned()).collect();
    collect(command, &mut known);
    let mut unknown: Vec<&String> =
        set.iter().filter(|name| name.starts_with(PREFIX) && !known.contains(*name)).collect();
    unknown.sort();
    let Some(name) = unknown.first() else {
        return Ok(());
    };
    let nearest = known.iter().min_by_key(|candidate| distance(name, candidate)).map_or("", String::as_str);
    let text = format!("no command reads the variable {name}: unset it, or use {nearest} if that is what was meant");
    Err(Error::input("unknown_variable", text))
}

fn collect(command: &Command, known: &mut BTreeSet<String>) {
    let variables = command.get_arguments().filter_map(|argument| argument.get_env());
    known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
    command.get_subcommands().for_each(|command| collect(command, known));
}

/// Edits from one text to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.chars().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn distances() {
        for (from, to, expected) in [("", "", 0), ("abc", "abc", 0), ("", "ab", 2), ("kitten", "sitting", 3)] {
            assert_eq!((distance(from, to), distance(to, from)), (expected, expected));
        }
    }

    #[test]
    fn the_nearest_is_named() {
        let inner = Command::new("inner").arg(Arg::new("queue").long("queue").env("WEIGHTSMITH_QUEUE"));
        let outer = Command::new("outer").arg(Arg::new("bind").long("bind").env("WEIGHTSMITH_BIND")).subcommand(inner);
        let check = |names: &[&str]| check_names(&outer, &names.iter().map(|name| (*name).into()).collect::<Vec<_>>());
        check(&["PATH", "WEIGHTSMITH_BIND", "WEIGHTSMITH_QUEUE", "WEIGHTSMITH_DEPS", "WEIGHTSMITHX"]).unwrap();
        let error = check(&["WEIGHTSMITH_QUEU"]).unwrap_err();
        assert_eq!(error.code(), "unknown_variable");
        assert!(
            error.to_string().contains("WEIGHTSMITH_QUEU:") && error.to_string().contains("use WEIGHTSMITH_QUEUE ")
        );
    }
}
