//! What each source file imports from which other, read from the text: `use` lists, nested ones
//! included, and paths in the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module's path from the crate root: `["serve", "ws", "session"]`; empty for the root.
type ModulePath = Vec<String>;

/// The source files of the crate with their imports; code of tests is left out.
pub struct Imports {
    /// By module path: the file's path relative to `src`.
    files: BTreeMap<ModulePath, String>,
    /// By module path: the absolute paths that the file names.
    named: BTreeMap<ModulePath, BTreeSet<Vec<String>>>,
    /// By module path and name: the absolute path that the file re-exports under this name.
    exported: BTreeMap<(ModulePath, String), Vec<String>>,
}

impl Imports {
    pub fn read(src: &Path) -> Imports {
        let mut texts = BTreeMap::new();
        let mut files = BTreeMap::new();
        for path in rust_files(src) {
            let relative = path.strip_prefix(src).unwrap();
            let module = module_path(relative);
            if module.iter().any(|part| part == "tests") {
                continue;
            }
            texts.insert(module.clone(), code_of(&fs::read_to_string(&path).unwrap()));
            files.insert(module, relative.to_str().unwrap().to_owned());
        }
        Imports::of(&texts, files)
    }

    fn of(texts: &BTreeMap<ModulePath, String>, files: BTreeMap<ModulePath, String>) -> Imports {
        let (mut named, mut exported) = (BTreeMap::new(), BTreeMap::new());
        for (module, code) in texts {
            let mut paths = BTreeSet::new();
            for Use { path, name, is_public } in uses(code) {
                let Some(path) = absolute(module, &path) else { continue };
                if is_public {
                    exported.insert((module.clone(), name), path.clone());
                }
                paths.insert(path);
            }
            paths.extend(inline_paths(code).iter().filter_map(|path| absolute(module, path)));
            named.insert(module.clone(), paths);
        }
        Imports { files, named, exported }
    }

    /// For each file the files that it imports from; a name that a module only re-exports is one of
    /// the file that defines it.
    pub fn by_file(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let of = |(module, paths): (&ModulePath, &BTreeSet<Vec<String>>)| {
            let targets = paths.iter().filter_map(|path| self.file_of(path, 0));
            let own = &*self.files[module];
            (own, targets.filter(|target| *target != own).collect())
        };
        self.named.iter().map(of).collect()
    }

    /// The file that defines what a path names.
    fn file_of(&self, path: &[String], depth: usize) -> Option<&str> {
        let module = (0..=path.len()).rev().find_map(|end| {
            let module = &path[..end];
            self.files.contains_key(module).then(|| module.to_vec())
        })?;
        let rest = &path[module.len()..];
        if let Some(name) = rest.first().filter(|_| depth < 8)
            && let Some(target) = self.exported.get(&(module.clone(), name.clone()))
        {
            return self.file_of(target, depth + 1);
        }
        Some(&self.files[&module])
    }

    /// Groups of files each of which can be reached from every other one of its group.
    pub fn circles(&self) -> Vec<BTreeSet<&str>> {
        let imports = self.by_file();
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            imports.keys().map(|file| (*file, reachable(&imports, file))).collect();
        let mut circles = BTreeSet::new();
        for (file, targets) in &reached {
            let back =
                targets.iter().filter(|target| reached.get(*target).is_some_and(|back| back.contains(file)));
            let circle: BTreeSet<&str> = back.copied().collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }
}

fn reachable<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = imports[from].iter().copied().collect();
    while let Some(file) = open.pop() {
        if reached.insert(file) {
            open.extend(imports.get(file).into_iter().flatten());
        }
    }
    reached
}

pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let all = entries.flat_map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    all.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

fn module_path(file: &Path) -> ModulePath {
    let file = file.with_extension("");
    let parts: Vec<String> = file.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    match parts.split_last() {
        Some((last, folders)) if last == "mod" => folders.to_vec(),
        Some((last, [])) if last == "lib" => Vec::new(),
        _ => parts,
    }
}

/// The text without comments, strings and the module of unit tests.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['/', '"', '\'']) {
        code.push_str(&rest[..at]);
        rest = &rest[at..];
        let skipped = match rest.as_bytes()[0] {
            b'/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            b'"' => string_length(rest, raw_marks(&code)),
            b'\'' => char_length(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push_str(&rest[..1]);
        }
        rest = &rest[skipped.max(1)..];
    }
    code + rest
}

/// How many `#` the raw string has that begins behind `code`; none if it is not a raw one.
fn raw_marks(code: &str) -> Option<usize> {
    let before = code.trim_end_matches('#');
    before.ends_with('r').then_some(code.len() - before.len())
}

/// The length of a string literal with both quotes.
fn string_length(text: &str, raw_marks: Option<usize>) -> usize {
    if let Some(marks) = raw_marks {
        let end = format!("\"{}", "#".repeat(marks));
        return text[1..].find(&end).map_or(text.len(), |at| 1 + at + end.len());
    }
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal with both quotes; 0 for a lifetime.
fn char_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 3)
        }
        _ => chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1),
    }
}

struct Use {
    path: Vec<String>,
    name: String,
    is_public: bool,
}

/// The paths of all `use` declarations, with lists written out.
fn uses(code: &str) -> Vec<Use> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("use ") {
        let before = code[..start].rsplit('\n').next().unwrap_or_default().trim();
        let is_public = before == "pub" || before.starts_with("pub(") && before.ends_with(')');
        if !(before.is_empty() || is_public) {
            continue;
        }
        let list = code[start + 4..].split(';').next().unwrap_or_default();
        let mut paths = Vec::new();
        expand(&[], list, &mut paths);
        found.extend(paths.into_iter().map(|(path, name)| Use { path, name, is_public }));
    }
    found
}

/// Writes out `a::{b, c::{d as e}}` as `a::b` and `a::c::d`, each with the name that it gets.
fn expand(prefix: &[String], list: &str, found: &mut Vec<(Vec<String>, String)>) {
    let list = list.trim();
    if let Some(open) = list.find('{') {
        let close = list.rfind('}').filter(|close| *close > open).unwrap_or(list.len());
        let mut prefix = prefix.to_vec();
        prefix.extend(segments(&list[..open]));
        split_list(&list[open + 1..close]).into_iter().for_each(|part| expand(&prefix, part, found));
        return;
    }
    let (path, alias) = list.split_once(" as ").map_or((list, None), |(path, alias)| (path, Some(alias)));
    let mut full = prefix.to_vec();
    full.extend(segments(path).filter(|segment| segment != "self" || prefix.is_empty()));
    let name = alias.map(str::trim).or(full.last().map(String::as_str)).unwrap_or_default().to_owned();
    found.push((full, name));
}

fn segments(path: &str) -> impl Iterator<Item = String> {
    path.split("::").map(|segment| segment.trim().to_owned()).filter(|segment| !segment.is_empty())
}

/// Splits at the commas that are in no inner list.
fn split_list(list: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

/// Paths in the code that begin with `crate::`, `super::` or `self::`.
fn inline_paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let is_inside = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            // `pub(in super)` says who may see an item, and imports nothing.
            if code[..at].ends_with(is_inside) || code[..at].ends_with("(in ") {
                continue;
            }
            let path: String = code[at..].chars().take_while(|c| is_inside(*c)).collect();
            // A list of `use` is written out elsewhere, and a visibility imports nothing.
            if path.ends_with("::") || code[..at].ends_with("pub(in ") {
                continue;
            }
            found.push(segments(&path).collect());
        }
    }
    found
}

/// The path from the crate root, if it is one of this crate.
fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" | "swelter" => base.clear(),
        "self" => {}
        "super" => drop(base.pop()),
        _ => return None,
    }
    rest = &rest[1..];
    while rest.first().is_some_and(|part| part == "super") {
        base.pop();
        rest = &rest[1..];
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(texts: &[(&str, &str)]) -> Imports {
        let module = |path: &str| segments(path).collect::<ModulePath>();
        let files = texts.iter().map(|(path, _)| (module(path), (*path).to_owned())).collect();
        Imports::of(&texts.iter().map(|(path, text)| (module(path), code_of(text))).collect(), files)
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let text = "a('\"', b'\\'', '\\\\', \"x\\\"y\", r#\"use q\"#, &'a str) // use z\nb";
        assert_eq!(code_of(text), "a(, b, , , r#, &'a str) \nb");
    }

    #[test]
    fn nested_lists_and_paths_are_found() {
        let text = "use crate::{model::{Row, log::{self, Slot as S}}, codec};\n// use crate::no;\npub enum Cause { A }\n\
                    fn f() { super::kafka::g(\"crate::no::x\") }";
        let all = imports(&[
            ("a::b", text),
            ("model", ""),
            ("model::log", ""),
            ("codec", "pub use self::csv::Reader;"),
            ("codec::csv", ""),
            ("a::kafka", "use crate::codec::Reader;"),
            ("no", ""),
        ]);
        let by_file = all.by_file();
        assert_eq!(by_file["a::b"], BTreeSet::from(["a::kafka", "codec", "model", "model::log"]));
        assert_eq!(
            by_file["a::kafka"],
            BTreeSet::from(["codec::csv"]),
            "what is re-exported is of its own file"
        );
    }

    #[test]
    fn list_and_visibility_are_no_imports_of_the_parent() {
        let text = "use super::{B, c::C};\npub(in super::super) fn f() {}";
        let all = imports(&[("a", "pub use self::b::B;"), ("a::b", ""), ("a::c", ""), ("a::d", text)]);
        assert_eq!(all.by_file()["a::d"], BTreeSet::from(["a::b", "a::c"]));
    }

    #[test]
    fn circle_of_files_inside_modules_is_found() {
        let line = [("a", "use self::b::B;"), ("a::b", "use crate::c::C;"), ("c", "")];
        assert_eq!(imports(&line).circles(), Vec::<BTreeSet<&str>>::new());
        let circle = [
            ("a", "use self::b::B;"),
            ("a::b", "use crate::{c::{d::D}};"),
            ("c", ""),
            ("c::d", "use super::super::a::A;"),
        ];
        assert_eq!(imports(&circle).circles(), [BTreeSet::from(["a", "a::b", "c::d"])]);
    }
}
