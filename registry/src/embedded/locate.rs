//! Finds the PostgreSQL distribution.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// How far below the given directory `bin/postgres` may lie.
const DEPTH: usize = 2;

/// The directory that holds `bin/postgres` and `bin/initdb`: `explicit` itself, or one up to two levels below it.
///
/// Of several, one with pgvector comes first, then the one whose name has the highest number (`pginstall18`).
///
/// # Errors
/// `postgres_missing` when none is given or there is none.
pub fn locate(explicit: Option<PathBuf>) -> Result<PathBuf> {
    let Some(root) = explicit else {
        return Err(Error::PostgresMissing { at: String::new() });
    };
    let mut found = Vec::new();
    search(&root, DEPTH, &mut found);
    let best = found.into_iter().max_by_key(|dir| (has_pgvector(dir), number(dir), dir.clone()));
    let best = best.ok_or_else(|| Error::PostgresMissing { at: format!(" at {}", root.display()) })?;
    best.canonicalize().map_err(Error::io(&best))
}

fn search(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    if ["postgres", "initdb"].iter().all(|program| directory.join("bin").join(program).is_file()) {
        found.push(directory.to_owned());
        return;
    }
    if depth == 0 {
        return;
    }
    // A directory that cannot be listed holds nothing for us.
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            search(&entry.path(), depth - 1, found);
        }
    }
}

fn has_pgvector(dist: &Path) -> bool {
    ["share/postgresql/extension", "share/extension"].iter().any(|dir| dist.join(dir).join("vector.control").is_file())
}

/// The number that the directory's name ends in; 0 if none.
fn number(dist: &Path) -> u64 {
    let name = dist.file_name().unwrap_or_default().to_string_lossy();
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name.get(name.len() - digits..).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(root: &Path, name: &str, pgvector: bool) -> PathBuf {
        let dist = root.join(name);
        std::fs::create_dir_all(dist.join("bin")).unwrap();
        for program in ["postgres", "initdb"] {
            std::fs::write(dist.join("bin").join(program), "").unwrap();
        }
        if pgvector {
            std::fs::create_dir_all(dist.join("share/postgresql/extension")).unwrap();
            std::fs::write(dist.join("share/postgresql/extension/vector.control"), "").unwrap();
        }
        dist.canonicalize().unwrap()
    }

    #[test]
    fn finds_it_up_to_two_levels_down() {
        let root = tempfile::tempdir().unwrap();
        let dist = install(root.path(), "wheel/package/pginstall", true);
        assert_eq!(locate(Some(dist.clone())).unwrap(), dist);
        assert_eq!(locate(Some(root.path().join("wheel/package"))).unwrap(), dist);
        assert_eq!(locate(Some(root.path().join("wheel"))).unwrap(), dist);
        assert_eq!(locate(Some(root.path().to_owned())).unwrap_err().code(), "postgres_missing");
    }

    #[test]
    fn prefers_pgvector_then_the_higher_number() {
        let root = tempfile::tempdir().unwrap();
        install(root.path(), "pg19", false);
        install(root.path(), "pg9", true);
        let best = install(root.path(), "pg18", true);
        assert_eq!(locate(Some(root.path().to_owned())).unwrap(), best);
    }

    #[test]
    fn says_what_to_set() {
        for given in [None, Some(PathBuf::from("/nonexistent/pg"))] {
            let error = locate(given).unwrap_err().to_string();
            assert!(error.contains("WEIGHTSMITH_POSTGRES") && error.contains("DATABASE_URL"), "{error}");
        }
    }
}
