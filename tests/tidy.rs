//! What the project promises of its own text: floors, module docs, file sizes.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file without its tests, at most.
const LINES_MAX: usize = 400;
/// Fields of a type of the data path, at most: one with more has no walls inside.
const FIELDS_MAX: usize = 12;

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

/// The file that a path names, which begins at the crate's root: that of the longest part of it that is a module.
fn file_of(path: &[String], files: &[PathBuf]) -> Option<usize> {
    (1..=path.len()).rev().find_map(|length| {
        let module: PathBuf = path[..length].iter().collect();
        let names = [module.with_extension("rs"), module.join("mod.rs")];
        files.iter().position(|file| names.contains(file))
    })
}

/// The paths that a file uses, each from the crate's root.
fn used(file: &Path, code: &str) -> Vec<Vec<String>> {
    let own: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    let own = own.strip_suffix(&["mod".to_owned()]).unwrap_or(&own).to_vec();
    let mut paths = Vec::new();
    let starts = code.match_indices("crate::").chain(code.match_indices("super::"));
    for (at, _) in starts.filter(|(at, _)| !code[..*at].ends_with("super::") && !ends_in_name(&code[..*at])) {
        let mut rest = &code[at..];
        let mut base = own.clone();
        if let Some(after) = rest.strip_prefix("crate::") {
            (base, rest) = (Vec::new(), after);
        }
        while let Some(after) = rest.strip_prefix("super::") {
            base.pop();
            rest = after;
        }
        paths.extend(tails(rest).into_iter().map(|tail| [base.clone(), tail].concat()));
    }
    // A module's own children, by their names alone.
    for child in code.lines().filter_map(|line| line.strip_prefix("use ")) {
        paths.extend(tails(child).into_iter().map(|tail| [own.clone(), tail].concat()));
    }
    paths
}

fn ends_in_name(text: &str) -> bool {
    text.chars().next_back().is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == ':')
}

/// `a::b` or `a::{b, c}` as paths; deeper groups count as their beginnings.
fn tails(text: &str) -> Vec<Vec<String>> {
    let mut path = Vec::new();
    let mut rest = text;
    loop {
        if let Some(list) = rest.strip_prefix('{') {
            let with = |name: String| [path.clone(), vec![name]].concat();
            return first_names(list).into_iter().map(with).collect();
        }
        let name = name(rest);
        rest = &rest[name.len()..];
        path.push(name);
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            None => return vec![path],
        }
    }
}

/// A file that goes round to itself by what it uses, if there is one. What a file uses of the module that it is in, or that
/// one of it, makes no circle: they are one room.
fn circle(sources: &[(PathBuf, String)]) -> Option<Vec<PathBuf>> {
    let files: Vec<PathBuf> = sources.iter().map(|(path, _)| path.clone()).collect();
    let parent = |file: &Path| {
        let folder = file.parent().unwrap();
        if file.ends_with("mod.rs") {
            folder.parent().unwrap_or(folder).to_owned()
        } else {
            folder.to_owned()
        }
    };
    let is_within = |one: &Path, other: &Path| {
        let module = if other.ends_with("mod.rs") {
            other.parent().unwrap().to_owned()
        } else {
            other.with_extension("")
        };
        parent(one).starts_with(&module)
    };
    let uses = |(file, text): &(PathBuf, String)| -> Vec<usize> {
        let used = used(file, &code(text)).into_iter().filter_map(|path| file_of(&path, &files));
        used.filter(|at| {
            files[*at] != *file && !is_within(file, &files[*at]) && !is_within(&files[*at], file)
        })
        .collect()
    };
    let edges: Vec<Vec<usize>> = sources.iter().map(uses).collect();
    (0..files.len()).find_map(|start| {
        let mut from: Vec<Option<usize>> = vec![None; files.len()];
        let mut waiting = vec![start];
        while let Some(at) = waiting.pop() {
            for &next in &edges[at] {
                if next == start {
                    let mut way = vec![files[start].clone()];
                    let mut step = at;
                    while step != start {
                        way.push(files[step].clone());
                        step = from[step].unwrap();
                    }
                    return Some(way);
                }
                if from[next].is_none() {
                    from[next] = Some(at);
                    waiting.push(next);
                }
            }
        }
        None
    })
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let sources: Vec<_> = sources().into_iter().filter(|(path, _)| !is_test(path)).collect();
    assert_eq!(circle(&sources), None, "a circle of files is a missing room");
    let bench = root().join("bench");
    for crate_root in [bench.clone(), bench.join("soak")] {
        let of_crate = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&crate_root).unwrap().to_owned(), text)
        };
        let sources: Vec<_> = files(&crate_root, "rs").into_iter().map(of_crate).collect();
        assert!(sources.len() > 5);
        assert_eq!(circle(&sources), None, "in {}", crate_root.display());
    }
}

#[test]
fn circles_are_found_in_every_form() {
    let sources = |texts: &[(&str, &str)]| -> Vec<(PathBuf, String)> {
        texts.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect()
    };
    let found = |texts: &[(&str, &str)]| circle(&sources(texts)).is_some();
    assert!(found(&[("a.rs", "use crate::b::X;"), ("b.rs", "fn f() { crate::a::g(); }")]));
    assert!(found(&[
        ("f/a.rs", "use super::b::X;"),
        ("f/b.rs", "use super::{c, d::Y};"),
        ("f/c.rs", "use super::a;"),
        ("f/d.rs", "")
    ]));
    assert!(!found(&[("f/mod.rs", "use a::X;"), ("f/a.rs", "use super::Y;")]), "a module and its child");
    assert!(!found(&[("a.rs", "use crate::b::X;"), ("b.rs", "// crate::a\n")]));
    assert!(found(&[("a.rs", "use crate::f::b::X;"), ("f/b.rs", "use crate::a::{Y, Z};"), ("f/mod.rs", "")]));
}

/// Every module has its place in ARCHITECTURE.md: a floor by its name, and what is in a floor by its own.
#[test]
fn the_architecture_names_every_module() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let missing = |(path, _): (PathBuf, String)| {
        let module = match path.file_name().unwrap().to_str().unwrap() {
            "lib.rs" | "main.rs" => return None,
            "mod.rs" => path.parent().unwrap().file_name().unwrap().to_owned(),
            _ => path.file_stem().unwrap().to_owned(),
        };
        let module = module.to_str().unwrap().to_owned();
        let named =
            [format!("`{module}`"), format!("`{module}/`"), format!("/{module}`"), format!("/{module}/`")];
        (!is_test(&path) && !named.iter().any(|name| text.contains(name))).then_some(path)
    };
    let missing: Vec<_> = sources().into_iter().filter_map(missing).collect();
    assert!(missing.is_empty(), "{missing:#?}");
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

/// A server is marked by what sessile itself has met, and by nothing that a client can bring about.
#[test]
fn only_dialling_and_probing_witness_that_a_server_cannot_be_reached() {
    let makes = |(path, text): (PathBuf, String)| code(&text).contains("witnessed()").then_some(path);
    let makers: Vec<PathBuf> = sources().into_iter().filter_map(makes).collect();
    let allowed = ["fleet/unreachable.rs", "link/dial.rs", "link/query.rs"];
    assert_eq!(makers, allowed.map(PathBuf::from), "see fleet::Unreachable");
}

/// The structs with named fields in a file's code, and how many each has.
fn structs(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("struct ").filter(|(at, _)| !ends_in_name(&code[..*at])) {
        let rest = &code[at + "struct ".len()..];
        let Some(open) = rest.find(['{', ';']).filter(|open| rest[*open..].starts_with('{')) else {
            continue;
        };
        found.push((name(rest), fields(&rest[open + 1..])));
    }
    found
}

/// How many fields there are up to the brace that ends them: each has a colon of its own outside of all brackets.
fn fields(body: &str) -> usize {
    let text = body.replace("::", "").replace("->", "");
    let (mut depth, mut count) = (0_usize, 0);
    for letter in text.chars() {
        match letter {
            '}' if depth == 0 => break,
            '{' | '(' | '[' | '<' => depth += 1,
            '}' | ')' | ']' | '>' => depth -= 1,
            ':' if depth == 0 => count += 1,
            _ => {}
        }
    }
    count
}

#[test]
fn no_type_of_the_data_path_has_too_many_fields() {
    let in_proxy = |(path, _): &(PathBuf, String)| path.starts_with("proxy") && !is_test(path);
    let structs = sources().into_iter().filter(in_proxy).flat_map(|(path, text)| {
        structs(&code(&text)).into_iter().map(move |(name, fields)| (path.clone(), name, fields))
    });
    let structs: Vec<_> = structs.collect();
    assert!(structs.len() > 40 && structs.iter().any(|(_, name, fields)| name == "Switch" && *fields > 5));
    let long: Vec<_> = structs.into_iter().filter(|(_, _, fields)| *fields > FIELDS_MAX).collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn fields_are_counted_in_every_form() {
    let text = "pub struct A<'a> { a: x::B<'a>, pub(super) b: Box<dyn Fn(u8) -> (C, D)>, c: [u8; 2] }\n\
                struct T(u8, u16);\nstruct N;\nstruct W<F> where F: Fn(u8) { f: F }\nlet s = S { a: 1, b: 2 };";
    assert_eq!(structs(text), [("A".to_owned(), 3), ("W".to_owned(), 1)]);
}
