//! Experiments of a form of their own: without a zoo of classifiers.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::experiment::Place;
use super::{adapters, language, scale, unseen};
use crate::compare::mean_std;
use crate::context::{say, write_whole};
use crate::error::{Error, Result};

/// Such an experiment.
pub struct Own {
    /// Its name.
    pub name: &'static str,
    /// Its title.
    pub title: &'static str,
    /// Whether `report all` runs it.
    pub of_all: bool,
    missing: fn(Option<&Path>) -> Option<String>,
    run: fn(&Place<'_>, bool) -> Result<()>,
}

/// All of them.
pub const ALL: [Own; 5] = [
    Own { name: unseen::NAME, title: unseen::TITLE, of_all: true, missing: unseen::missing_data, run: unseen::run },
    Own {
        name: language::SEARCH,
        title: language::SEARCH_TITLE,
        of_all: true,
        missing: language::missing_data,
        run: language::run_search,
    },
    Own {
        name: language::SOUP,
        title: language::SOUP_TITLE,
        of_all: true,
        missing: language::missing_data,
        run: language::run_soup,
    },
    // It needs a text encoder.
    Own {
        name: adapters::NAME,
        title: adapters::TITLE,
        of_all: false,
        missing: adapters::missing_data,
        run: adapters::run,
    },
    // It writes 3.5 GB.
    Own { name: scale::NAME, title: scale::TITLE, of_all: false, missing: |_| None, run: scale::run },
];

impl Own {
    /// The one of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|own| own.name == name)
    }

    /// Why its data is not there, if so.
    pub fn missing(&self, data: Option<&Path>) -> Option<String> {
        (self.missing)(data)
    }

    /// Runs it, and writes its page and its numbers.
    ///
    /// # Errors
    /// Those of the experiment, whose data must be there ([`Own::missing`]).
    pub fn run(&self, place: &Place<'_>, quick: bool) -> Result<()> {
        (self.run)(place, quick)
    }
}

/// Reads a configuration's file, over whose values those of its table `quick` go when asked.
///
/// # Errors
/// `config_invalid`.
pub fn settings<T: serde::de::DeserializeOwned>(name: &str, file: &str, quick: bool) -> Result<T> {
    let invalid = |e: String| Error::input("config_invalid", format!("experiment {name}: {e}"));
    let mut table: toml::Table = toml::from_str(file).map_err(|e| invalid(e.to_string()))?;
    let small = table.remove("quick");
    if let Some(toml::Value::Table(small)) = small.filter(|_| quick) {
        over(&mut table, small);
    }
    table.try_into().map_err(|e: toml::de::Error| invalid(e.to_string()))
}

fn over(table: &mut toml::Table, small: toml::Table) {
    for (key, value) in small {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(own)), toml::Value::Table(value)) => over(own, value),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// The command that runs an experiment.
pub fn command(name: &str, quick: bool) -> String {
    format!("weightsmith report {name} --data DIR{}", if quick { " --quick" } else { "" })
}

/// What a quick run's page begins with.
pub fn warning(quick: bool) -> &'static str {
    if quick { "**A quick run, to see that it works: none of these numbers is a result.**\n\n" } else { "" }
}

/// Mean, deviation and all of some numbers, as JSON.
pub fn numbers(values: &[f64]) -> Value {
    let (mean, std) = mean_std(values.iter().copied());
    json!({ "mean": mean, "std": std, "values": values })
}

/// A table's cell: the mean, and the deviation where there are several numbers; a dash where there is none.
pub fn cell(values: &[f64], digits: usize) -> String {
    let (mean, std) = mean_std(values.iter().copied());
    match values.len() {
        0 => "–".to_owned(),
        1 => format!("{mean:.digits$}"),
        _ => format!("{mean:.digits$} ± {std:.digits$}"),
    }
}

/// What each arm is, a line each.
pub fn legend(arms: &[(&str, &str)]) -> String {
    arms.iter().map(|(arm, what)| format!("- `{arm}`: {what}.\n")).collect()
}

/// Writes numbers and page, and says the page. `numbers` are those of the experiment alone, an object: what ran them is put
/// before them.
///
/// # Errors
/// Those of writing.
pub fn finish(
    place: &Place<'_>,
    (name, quick): (&str, bool),
    settings: &impl Serialize,
    numbers: Value,
    page: &str,
) -> Result<()> {
    let mut out = json!({
        "experiment": name, "quick": quick, "configuration": settings, "revision": training::REVISION,
        "version": env!("CARGO_PKG_VERSION"), "command": command(name, quick),
    });
    if let (Value::Object(out), Value::Object(numbers)) = (&mut out, numbers) {
        out.extend(numbers);
    }
    let mut text = serde_json::to_vec_pretty(&out).map_err(|e| Error::Internal(e.to_string()))?;
    text.push(b'\n');
    let target = |ending: &str| place.out.join(format!("{name}.{ending}"));
    write_whole(&target("json"), &text)?;
    write_whole(&target("md"), page.as_bytes())?;
    say(page);
    Ok(())
}
