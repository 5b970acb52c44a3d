//! `--print-config`: what a command would run with, as TOML, and where each value comes from.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// What is printed in place of a secret.
const HIDDEN: &str = "***";
/// Arguments that say what to do, and not how.
const NO_SETTINGS: [&str; 3] = ["help", "version", "print_config"];

/// The effective configuration of a command that was parsed to `matches`.
#[must_use]
pub fn print(command: &Command, matches: &ArgMatches) -> String {
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let settings = command.get_arguments().filter(|argument| !NO_SETTINGS.contains(&argument.get_id().as_str()));
    for argument in settings {
        let section = argument.get_help_heading().unwrap_or("general").to_lowercase().replace(' ', "_");
        sections.entry(section).or_default().push(line(argument, matches));
    }
    let mut text = format!("# What `weightsmith {}` runs with, and where each value comes from.\n", command.get_name());
    for (section, lines) in sections {
        // Writing to a String does not fail.
        let _ = write!(text, "\n[{section}]\n{}\n", lines.join("\n"));
    }
    text
}

fn line(argument: &Arg, matches: &ArgMatches) -> String {
    let id = argument.get_id().as_str();
    let secret = argument.is_hide_env_values_set();
    let raw = matches.try_get_raw(id).ok().flatten();
    let values: Vec<String> = raw.into_iter().flatten().map(|value| shown(&value.to_string_lossy(), secret)).collect();
    let flag = argument.get_long().map(|long| format!("--{long}"));
    let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
    let names: Vec<String> = flag.iter().chain(&variable).cloned().collect();
    let origin = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => flag.unwrap_or_else(|| "the command line".into()),
        Some(ValueSource::EnvVariable) => variable.unwrap_or_else(|| "the environment".into()),
        _ => format!("default; {}", names.join(", ")),
    };
    match (&values[..], argument.get_action()) {
        ([], _) => format!("# {id} is not set; {}", names.join(", ")),
        (_, ArgAction::Append) => format!("{id} = [{}]  # {origin}", values.join(", ")),
        ([value], _) => format!("{id} = {value}  # {origin}"),
        _ => format!("{id} = [{}]  # {origin}", values.join(", ")),
    }
}

/// A value in TOML.
fn shown(value: &str, secret: bool) -> String {
    if secret {
        return quoted(&without_secrets(value));
    }
    let number = value.parse::<i64>().is_ok_and(|number| number.to_string() == value);
    if number || value == "true" || value == "false" { value.to_owned() } else { quoted(value) }
}

fn quoted(value: &str) -> String {
    toml::Value::String(value.to_owned()).to_string()
}

/// Of a URL, all but the password and what follows `?`; of anything else, nothing.
fn without_secrets(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else {
        return HIDDEN.into();
    };
    let (place, query) = rest.split_once('?').map_or((rest, ""), |(place, _)| (place, "?***"));
    // A password may itself hold an @.
    let place = match place.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:{HIDDEN}@{host}"),
            None => format!("{user}@{host}"),
        },
        None => place.to_owned(),
    };
    format!("{scheme}://{place}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_secret() {
        for (value, expected) in [
            ("hunter2", "***"),
            ("", "***"),
            ("postgres://ann@host/db", "postgres://ann@host/db"),
            ("postgres://ann:p@ss:w@host:5432/db", "postgres://ann:***@host:5432/db"),
            ("postgres://host/db?user=ann&password=x", "postgres://host/db?***"),
        ] {
            assert_eq!(without_secrets(value), expected);
        }
    }

    #[test]
    fn it_is_toml_that_says_where_from() {
        let command = Command::new("serve")
            .arg(Arg::new("bind").long("bind").default_value("127.0.0.1:1").help_heading("Server"))
            .arg(Arg::new("queue").long("queue").default_value("64").help_heading("Limits"))
            .arg(Arg::new("origin").long("origin").action(ArgAction::Append).help_heading("Server"))
            .arg(Arg::new("open").long("open").action(ArgAction::SetTrue).help_heading("Server"))
            .arg(Arg::new("key").long("key").hide_env_values(true).help_heading("Server"))
            .arg(Arg::new("name").long("name").help_heading("Server"));
        let matches = command
            .clone()
            .get_matches_from(["serve", "--queue", "8", "--origin", "a", "--origin", "b\"", "--key", "hunter2"]);
        let text = print(&command, &matches);
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("queue = 8  # --queue") && text.contains("# default; --bind"), "{text}");
        let table: toml::Table = text.parse().unwrap();
        let server = &table["server"];
        assert_eq!(table["limits"]["queue"].as_integer(), Some(8));
        assert_eq!((server["bind"].as_str(), server["open"].as_bool()), (Some("127.0.0.1:1"), Some(false)));
        assert_eq!(server["origin"].as_array().unwrap().len(), 2);
        assert_eq!(server["key"].as_str(), Some("***"));
        assert!(text.contains("# name is not set; --name"), "{text}");
    }
}
