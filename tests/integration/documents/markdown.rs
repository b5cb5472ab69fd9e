//! Markdown files of the repository: their prose, fenced blocks, headings and links.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown file of the repository.
pub struct Page {
    /// Relative to the repository.
    pub path: String,
    lines: Vec<Line>,
    pub blocks: Vec<Block>,
}

struct Line {
    number: usize,
    text: String,
}

/// A fenced block.
pub struct Block {
    /// Where it begins.
    pub number: usize,
    pub language: String,
    /// The words behind the language: `run`, `output`, `stderr`, `file=NAME`.
    pub words: Vec<String>,
    pub text: String,
}

impl Block {
    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|own| own == word)
    }

    pub fn file(&self) -> Option<&str> {
        self.words.iter().find_map(|word| word.strip_prefix("file="))
    }
}

impl Page {
    pub fn read(path: &str) -> Page {
        let text = fs::read_to_string(repository().join(path)).unwrap();
        let (mut lines, mut blocks) = (Vec::new(), Vec::new());
        let mut open: Option<Block> = None;
        for (number, text) in (1..).zip(text.lines()) {
            let fence = text.trim_start().strip_prefix("```");
            match (fence, open.take()) {
                (Some(info), None) => {
                    let mut words = info.split_whitespace().map(String::from);
                    let language = words.next().unwrap_or_default();
                    open = Some(Block { number, language, words: words.collect(), text: String::new() });
                }
                (Some(_), Some(block)) => blocks.push(block),
                (None, Some(mut block)) => {
                    block.text.push_str(text);
                    block.text.push('\n');
                    open = Some(block);
                }
                (None, None) => lines.push(Line { number, text: text.into() }),
            }
        }
        assert!(open.is_none(), "{path}: a block has no end");
        Page { path: path.into(), lines, blocks }
    }

    /// `path:line` of each line of prose with more than `columns` characters that could be wrapped.
    pub fn long_lines(&self, columns: usize) -> Vec<String> {
        let may_be_long = |text: &str| {
            let text = text.trim_start();
            let content = text.trim_start_matches(['-', '*', '>', ' ']);
            text.starts_with('|') || text.starts_with("![") || !content.contains(' ') || is_definition(text)
        };
        let long = self.lines.iter().filter(|line| line.text.chars().count() > columns);
        long.filter(|line| !may_be_long(&line.text))
            .map(|line| format!("{}:{}", self.path, line.number))
            .collect()
    }

    pub fn lines(&self) -> usize {
        fs::read_to_string(repository().join(&self.path)).unwrap().lines().count()
    }

    /// The anchors that GitHub gives its headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut seen: HashMap<String, usize> = HashMap::new();
        let headings = self.lines.iter().filter(|line| line.text.starts_with('#'));
        let anchors = headings.map(|line| {
            let anchor = anchor(line.text.trim_start_matches('#').trim());
            let times = seen.entry(anchor.clone()).and_modify(|times| *times += 1).or_insert(0);
            if *times == 0 { anchor } else { format!("{anchor}-{times}") }
        });
        anchors.collect()
    }

    /// Line and target of each link and image.
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for line in &self.lines {
            let text = without_code(&line.text);
            if is_definition(&text) {
                links.extend(text.split_once("]: ").map(|(_, target)| (line.number, target.trim().into())));
            }
            let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| (line.number, target.into())));
        }
        links
    }
}

/// `[name]: target`
fn is_definition(text: &str) -> bool {
    text.starts_with('[') && text.split_once("]: ").is_some_and(|(name, _)| !name.contains("]("))
}

fn without_code(text: &str) -> String {
    text.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// As GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|&c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// All Markdown files that the repository holds, in order of their paths.
pub fn pages() -> Vec<Page> {
    let mut found = Vec::new();
    collect(repository(), &mut found);
    found.sort();
    let pages = found.iter().map(|path| path.strip_prefix(repository()).unwrap());
    pages.map(|path| Page::read(path.to_str().unwrap())).collect()
}

/// The README and the pages of `docs`.
pub fn user_pages() -> Vec<Page> {
    let is_for_users = |page: &Page| page.path == "README.md" || page.path.starts_with("docs/");
    pages().into_iter().filter(is_for_users).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_str().unwrap_or_default();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && name != "target" && (!name.starts_with('.') || name == ".github") {
            collect(&path, found);
        } else if kind.is_file() && name.ends_with(".md") {
            found.push(path);
        }
    }
}

#[test]
fn anchors_are_those_of_github() {
    assert_eq!(anchor("What a topic is known by"), "what-a-topic-is-known-by");
    assert_eq!(anchor("/readyz answers 503"), "readyz-answers-503");
    assert_eq!(anchor("WireGuard, or another private network"), "wireguard-or-another-private-network");
}
