//! Hands the revision of the source to the compiler: a generator's manifest says what trained it. And the digests of the
//! sources that decide what is trained: another revision with the same ones trains the same.

#![allow(clippy::print_stdout)] // how a build script talks to cargo

use std::path::Path;
use std::process::Command;

/// What decides a training, besides its configuration and data.
const SOURCES: [&str; 4] = ["HEAD:training/src", "HEAD:weights/src", "HEAD:datasets/src", "HEAD:Cargo.lock"];

/// What git answers, when it does.
fn git(args: &[&str]) -> Option<String> {
    let found = Command::new("git").arg("rev-parse").args(args).output().ok().filter(|o| o.status.success());
    found.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

fn main() {
    println!("cargo:rustc-env=WEIGHTSMITH_REVISION={}", git(&["HEAD"]).as_deref().unwrap_or("unknown"));
    let sources: Option<Vec<String>> = SOURCES.into_iter().map(|tree| git(&[tree])).collect();
    let sources = sources.map_or_else(|| "unknown".to_owned(), |trees| trees.join(" "));
    println!("cargo:rustc-env=WEIGHTSMITH_SOURCES={sources}");
    // Asked for, because in a further working tree they are not in `../.git`. A path that does not exist would run
    // this script at every build.
    let paths = ["HEAD", "logs/HEAD"].into_iter().filter_map(|path| git(&["--git-path", path]));
    for path in paths.filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-changed=build.rs");
}
