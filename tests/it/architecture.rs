//! ARCHITECTURE.md says who may import whom, and the sources keep to it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of the table: module and what it may import.
fn rules() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = page.split("## Who may import whom").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let row = |line: &str| {
        let mut cells = line.trim_matches('|').split('|');
        let module = names(cells.next()?).into_iter().next()?;
        Some((module, names(cells.next().unwrap_or_default())))
    };
    table.lines().filter(|line| line.starts_with("| `")).filter_map(row).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
    found
}

/// The modules of ours that a source names: `crate::x`, and each of `crate::{x, y}`.
fn imported(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => found.extend(list.split('}').next().unwrap().split(',').map(word)),
            None => drop(found.insert(word(after))),
        }
    }
    found.remove("");
    found
}

#[test]
fn no_module_imports_what_the_architecture_does_not_allow() {
    let (rules, folder) = (rules(), root().join("src"));
    assert!(rules.len() > 10, "the table was not found: {rules:?}");
    let mut broken = Vec::new();
    for source in sources(&folder) {
        let path = source.strip_prefix(&folder).unwrap();
        let module = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if ["main", "lib"].contains(&module.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&source).unwrap();
        let allowed = rules.get(&module).unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for `{module}`"));
        for import in imported(&text).into_iter().filter(|import| *import != module && !allowed.contains(import)) {
            broken.push(format!("{} imports {import}", path.display()));
        }
        if module != "broker" && text.contains("async_nats::") {
            broken.push(format!("{} names the NATS client library", path.display()));
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
