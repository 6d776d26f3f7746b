//! What the project promises of its own text: floors, module docs, file sizes.
#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file without its tests, at most.
const LINES_MAX: usize = 400;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ext));
        } else if path.extension().is_some_and(|other| other == ext) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A source file's path below `src`, and its text.
fn sources() -> Vec<(PathBuf, String)> {
    let src = root().join("src");
    let read =
        |path: PathBuf| (path.strip_prefix(&src).unwrap().to_owned(), fs::read_to_string(path).unwrap());
    files(&src, "rs").into_iter().map(read).collect()
}

/// Whether a file holds nothing but tests.
fn is_test(path: &Path) -> bool {
    path.iter().any(|part| part == "tests" || part == "tests.rs")
}

/// The text of a file without its tests module and its comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code.lines().map(|line| line.split_once("//").map_or(line, |(before, _)| before));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules of `src/lib.rs` in their order.
fn floors() -> Vec<String> {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let module = |line: &str| Some(line.strip_prefix("pub mod ")?.strip_suffix(';')?.to_owned());
    lib.lines().filter_map(module).collect()
}

/// The names that follow `crate::`, be it in a path, in braces, or after `super::` as often as leads there.
fn mentioned(path: &Path, code: &str) -> Vec<String> {
    let depth = path.components().count() - usize::from(path.ends_with("mod.rs"));
    let to_crate = "super::".repeat(depth);
    let mut names = Vec::new();
    for way in ["crate::", &to_crate] {
        for (at, _) in code.match_indices(way) {
            let rest = &code[at + way.len()..];
            match rest.strip_prefix('{') {
                Some(list) => names.extend(first_names(list)),
                None => names.push(name(rest)),
            }
        }
    }
    names
}

/// The first name of each path in `a::{x, y}, b}`.
fn first_names(list: &str) -> Vec<String> {
    let mut depth = 0_usize;
    let mut paths = vec![String::new()];
    for letter in list.chars() {
        match letter {
            '}' if depth == 0 => break,
            ',' if depth == 0 => paths.push(String::new()),
            other => {
                depth = depth + usize::from(other == '{') - usize::from(other == '}');
                paths.last_mut().unwrap().push(other);
            }
        }
    }
    paths.iter().map(|path| name(path.trim())).filter(|name| !name.is_empty()).collect()
}

fn name(path: &str) -> String {
    path.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

#[test]
fn a_file_uses_only_the_floors_below_its_own() {
    let floors = floors();
    assert!(floors.len() > 5 && floors.contains(&"proxy".to_owned()), "{floors:?}");
    let level = |name: &str| floors.iter().position(|floor| floor == name);
    let mut wrong = Vec::new();
    let mut checked = 0;
    for (path, text) in sources() {
        if is_test(&path) {
            continue;
        }
        let own = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some(own) = level(own) else { continue };
        for name in mentioned(&path, &code(&text)) {
            checked += 1;
            match level(&name) {
                Some(used) if used <= own => {}
                Some(_) => wrong.push(format!("{} uses {name}, which is above it", path.display())),
                None => wrong.push(format!("{} uses {name}, which is no module", path.display())),
            }
        }
    }
    assert!(checked > 50, "only {checked} uses were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn uses_are_found_in_every_form() {
    let found = |path: &str, code: &str| mentioned(Path::new(path), code);
    assert_eq!(found("a.rs", "use crate::x::Y;"), ["x"]);
    assert_eq!(found("a/b.rs", "use crate::{x::{Y, Z}, w, v::U};"), ["x", "w", "v"]);
    assert_eq!(found("a/b.rs", "use super::super::x::Y; use super::c::D;"), ["x"]);
    assert_eq!(found("a/mod.rs", "let x = super::x::Y;"), ["x"]);
    assert_eq!(found("a/b.rs", "crate::wire::frame::X"), ["wire"]);
}

#[test]
fn every_file_says_what_it_is() {
    let silent = |(path, text): (PathBuf, String)| (!text.starts_with("//! ")).then_some(path);
    let silent: Vec<_> = sources().into_iter().filter_map(silent).collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn no_file_is_too_long() {
    let lines = |text: &str| text.split("#[cfg(test)]\nmod tests {").next().unwrap().lines().count();
    let long = |(path, text): (PathBuf, String)| {
        (lines(&text) > LINES_MAX && !is_test(&path)).then(|| format!("{}: {}", path.display(), lines(&text)))
    };
    let long: Vec<_> = sources().into_iter().filter_map(long).collect();
    assert!(long.is_empty(), "{long:#?}");
}
