//! The dependency rule of the modules, and what belongs where, checked on the source itself.
//!
//! `docs/architecture.md` states the rule; a change that breaks it should change both or neither.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the host's files up; a module uses those before it, and none of its own row.
const ROWS: [&[&str]; 7] =
    [&["sys"], &["root"], &["layer"], &["union", "store"], &["view"], &["mount", "jail"], &["cli"]];
/// What every module may use: no I/O, no locks.
const VOCABULARY: [&str; 5] = ["error", "name", "digest", "reference", "meta"];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The top-level module of a file, and its code without comments and tests.
fn read(path: &Path) -> (String, String) {
    let below = path.strip_prefix(root().join("src")).unwrap();
    let module = below.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    (module, code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n"))
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

/// The top-level modules of the crate that the code names.
fn used(code: &str) -> Vec<String> {
    let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    code.split("crate::").skip(1).map(|rest| rest.split(ends).next().unwrap().to_owned()).collect()
}

#[test]
fn uses_point_one_way() {
    let mut checked = 0;
    for path in sources(&root().join("src")) {
        let (module, code) = read(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        for used in used(&code).into_iter().filter(|used| *used != module && !used.is_empty()) {
            checked += 1;
            let is_vocabulary = VOCABULARY.contains(&used.as_str());
            let fits = match row(&module) {
                Some(own) => is_vocabulary || row(&used).is_some_and(|other| other < own),
                None => is_vocabulary && VOCABULARY.contains(&module.as_str()),
            };
            assert!(fits, "{}: {module} may not use {used}", path.display());
        }
    }
    assert!(checked > 100, "only {checked} uses were found: the search is broken");
}

#[test]
fn every_module_has_its_place() {
    for path in sources(&root().join("src")) {
        let (module, _) = read(&path);
        let known = module == "lib" || module == "main" || row(&module).is_some();
        assert!(known || VOCABULARY.contains(&module.as_str()), "{module} is in no row of the rule");
    }
}

#[test]
fn unsafe_and_fuser_stay_where_they_belong() {
    for path in sources(&root().join("src")) {
        let (module, code) = read(&path);
        let words: Vec<&str> = code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
        assert!(module == "sys" || !words.contains(&"unsafe"), "{}: unsafe outside sys", path.display());
        assert!(module == "mount" || !code.contains("fuser::"), "{}: fuser outside mount", path.display());
        assert!(module == "sys" || !words.contains(&"libc"), "{}: libc outside sys", path.display());
        let touches = |word: &str| words.contains(&word) && code.contains(&format!("{word}::"));
        let is_vocabulary = VOCABULARY.contains(&module.as_str());
        assert!(!is_vocabulary || !touches("fs"), "{}: the vocabulary does no I/O", path.display());
    }
}

#[test]
fn the_architecture_document_names_every_module() {
    let document = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for module in ROWS.iter().copied().flatten().chain(&VOCABULARY) {
        assert!(document.contains(&format!("`{module}`")), "docs/architecture.md does not name `{module}`");
    }
}
