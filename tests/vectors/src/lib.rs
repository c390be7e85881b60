//! Finds the third-party test vectors, checks that they are the listed ones, and runs one trial for each.
//!
//! The folder is `$SUBROSA_VECTORS`, else `../shared/testdata` from the project's root. The list is `tests/VECTORS.md`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Runs the trials that `make` builds from the vectors of `area` (a folder name in `tests/VECTORS.md`).
///
/// Where the folder is missing, one ignored trial stands for each listed file, and a line says so; with `CI=true`
/// that is a failure. A file that is missing from a folder that is there, or changed, is a failing trial.
pub fn run(area: &str, make: impl FnOnce(&Path) -> Vec<Trial>) -> ExitCode {
    let arguments = Arguments::from_args();
    let listed = listed(area);
    let Some(folder) = folder() else {
        println!(
            "NOT RUN: {} third-party vectors (set SUBROSA_VECTORS; sources and hashes in tests/VECTORS.md)",
            listed.len()
        );
        let in_ci = env::var_os("CI").is_some_and(|value| value == "true");
        let trials = listed
            .into_iter()
            .map(|(file, _)| {
                Trial::test(file, || Err("the folder of third-party vectors is missing".into()))
                    .with_ignored_flag(!in_ci)
            })
            .collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    };
    let mut trials: Vec<Trial> = listed
        .into_iter()
        .map(|(file, sha256)| {
            let path = folder.join(&file);
            Trial::test(format!("{file} is the listed file"), move || is_listed(&path, &sha256))
        })
        .collect();
    trials.extend(make(&folder));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The folder of the vectors, if there is one. A `SUBROSA_VECTORS` that points nowhere counts as missing.
pub fn folder() -> Option<PathBuf> {
    let folder = env::var_os("SUBROSA_VECTORS").map_or_else(|| root().join("../shared/testdata"), PathBuf::from);
    folder.is_dir().then_some(folder)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The (file, SHA-256) pairs that `tests/VECTORS.md` lists for an area.
fn listed(area: &str) -> Vec<(String, String)> {
    let prefix = format!("{area}/");
    LIST.lines()
        .filter_map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1);
            let (sha256, file) = (cells.next()?, cells.next()?);
            file.starts_with(&prefix).then(|| (file.to_owned(), sha256.to_owned()))
        })
        .collect()
}

fn is_listed(path: &Path, sha256: &str) -> Result<(), libtest_mimic::Failed> {
    let bytes = fs::read(path)?;
    let found = hex::encode(ring::digest::digest(&ring::digest::SHA256, &bytes));
    if found == sha256 { Ok(()) } else { Err(format!("expected SHA-256 {sha256}, found {found}").into()) }
}

const LIST: &str = include_str!("../../VECTORS.md");
