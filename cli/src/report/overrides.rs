//! Overrides of a training configuration by dotted keys.

use serde_json::Value;
use toml::{Table, Value as Toml};
use training::Config;

/// Keys that exist, and are left out of a configuration that does not set them.
const OPTIONAL: [&str; 10] =
    ["backbone", "chunk", "extractor", "fit", "images", "mode", "role", "rows", "start_noise", "train"];

/// The configuration with some values replaced: `"vae.beta" = 1e-2` or `vae = { beta = 1e-2 }`. A table with a `kind`
/// replaces the whole section.
///
/// # Errors
/// A sentence with the keys there are, or with the value that makes no sense.
pub fn apply(config: &Config, overrides: &Table) -> Result<Config, String> {
    if overrides.is_empty() {
        return Ok(config.clone());
    }
    let mut json = serde_json::to_value(config).map_err(|e| e.to_string())?;
    merge(&mut json, overrides, "")?;
    Config::from_json(&json).map_err(|e| e.to_string())
}

fn merge(target: &mut Value, overrides: &Table, inside: &str) -> Result<(), String> {
    for (key, value) in overrides {
        let mut place = &mut *target;
        let mut path = inside.to_owned();
        for part in key.split('.') {
            place = step(place, &path, part)?;
            path = if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
        }
        match value {
            Toml::Table(table) if place.is_object() && !table.contains_key("kind") => merge(place, table, &path)?,
            _ => *place = serde_json::to_value(value).map_err(|e| e.to_string())?,
        }
    }
    Ok(())
}

/// The value under `key`.
fn step<'a>(value: &'a mut Value, path: &str, key: &str) -> Result<&'a mut Value, String> {
    let place = if path.is_empty() { "the configuration" } else { path };
    let Some(map) = value.as_object_mut() else {
        return Err(format!("{place} is no section, so {path}.{key} cannot be set"));
    };
    if !map.contains_key(key) && !OPTIONAL.contains(&key) {
        let known = map.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let full = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        return Err(format!("there is no setting {full}; {place} has {known}"));
    }
    Ok(map.entry(key).or_insert(Value::Null))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str) -> Result<Config, String> {
        apply(&Config::parse(crate::zoo::DIGITS).unwrap(), &text.parse::<Table>().unwrap())
    }

    #[test]
    fn dotted_keys_and_tables_do_the_same() {
        let dotted = changed("\"vae.beta\" = 0.5\nseed = 3").unwrap();
        assert_eq!((dotted.vae.beta, dotted.seed), (0.5, 3));
        assert_eq!(changed("seed = 3\nvae.beta = 0.5").unwrap(), dotted);
        // A number without a point is one all the same.
        assert_eq!(changed("\"vae.behaviour\" = 0").unwrap().vae.behaviour, 0.0);
    }

    #[test]
    fn a_kind_replaces_its_section() {
        let unet =
            changed("denoiser = { kind = \"unet\", channels = 8, multipliers = [1] }\n\"vae.latent\" = [2, 4, 4]");
        assert_eq!(serde_json::to_value(unet.unwrap().denoiser).unwrap()["kind"], "unet");
    }

    #[test]
    fn what_does_not_exist_is_named_with_what_does() {
        let error = changed("\"vae.behavior\" = 0.0").unwrap_err();
        assert!(error.contains("vae.behavior") && error.contains("behaviour_share"), "{error}");
        assert!(changed("\"vae.beta.x\" = 0").unwrap_err().contains("no section"));
        assert!(changed("vea = { beta = 0.0 }").unwrap_err().contains("no setting vea"));
        assert!(changed("\"vae.beta\" = \"much\"").unwrap_err().contains("much"));
        assert!(changed("\"vae.beta\" = -1.0").unwrap_err().contains("vae.beta"));
    }
}
