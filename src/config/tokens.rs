//! Bearer tokens: one per line, its scopes and the token.

use std::path::Path;

use super::layers::read_text_file;
use crate::serve::Token;

const MAX_FILE_BYTES: u64 = 1024 * 1024;
const MAX_TOKENS: usize = 10_000;
const MAX_SECRET_BYTES: usize = 512;

/// Reads the tokens of a file that only its owner can read.
pub fn tokens_from_file(path: &Path) -> Result<Vec<Token>, Vec<String>> {
    let named = |problem: String| format!("{} {problem}", path.display());
    check_private(path).map_err(|problem| vec![named(problem)])?;
    let text = read_text_file(path, MAX_FILE_BYTES).map_err(|problem| vec![named(problem)])?;
    parse_tokens(text.lines()).map_err(|problems| {
        problems.into_iter().map(|(line, problem)| named(format!("line {line}: {problem}"))).collect()
    })
}

/// Parses the tokens of a variable: lines, or the same separated by semicolons.
pub fn tokens_from_variable(text: &str) -> Result<Vec<Token>, Vec<String>> {
    parse_tokens(text.split(['\n', ';'])).map_err(|problems| {
        problems.into_iter().map(|(entry, problem)| format!("entry {entry}: {problem}")).collect()
    })
}

/// A file of root's may be readable by its group, as mounted secrets are: only root can have
/// allowed it.
#[cfg(unix)]
fn check_private(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    let allowed = if metadata.uid() == 0 { 0o740 } else { 0o700 };
    if metadata.mode() & 0o777 & !allowed != 0 {
        return Err(format!("is accessible to other users: run chmod 600 {}", path.display()));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(_: &Path) -> Result<(), String> {
    Ok(())
}

/// Parses tokens; errors have the line number from 1. Messages never contain any part of a line: it
/// may be a secret.
fn parse_tokens<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<Token>, Vec<(usize, String)>> {
    let (mut tokens, mut problems) = (Vec::<Token>::new(), Vec::new());
    for (i, line) in lines.enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match parse_token(line) {
            Ok(token) if tokens.iter().any(|other| other.secret == token.secret) => {
                problems.push((
                    i + 1,
                    "the same token is listed already: list it once, with all its scopes".into(),
                ));
            }
            Ok(_) if tokens.len() == MAX_TOKENS => {
                problems.push((i + 1, format!("there are more than {MAX_TOKENS} tokens")));
                break;
            }
            Ok(token) => tokens.push(token),
            Err(problem) => problems.push((i + 1, problem)),
        }
    }
    if problems.is_empty() { Ok(tokens) } else { Err(problems) }
}

fn parse_token(line: &str) -> Result<Token, String> {
    let shape = || "write scopes and a token, as in: read,ingest s3cr3t".to_owned();
    let (scopes, secret) = line.split_once(char::is_whitespace).ok_or_else(shape)?;
    let mut token = Token { secret: secret.trim().to_owned(), read: false, ingest: false };
    for scope in scopes.split(',') {
        match scope {
            "read" => token.read = true,
            "ingest" => token.ingest = true,
            _ => return Err("the scopes are read, ingest, or both with a comma and without a space".into()),
        }
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~+".contains(&b);
    let length = token.secret.len();
    if !(1..=MAX_SECRET_BYTES).contains(&length) || !token.secret.bytes().all(allowed) {
        // RFC 6750 allows / and = in a header. But browsers send a token as the name of a
        // subprotocol, which cannot contain them.
        return Err(format!(
            "a token is 1 to {MAX_SECRET_BYTES} letters, digits, and - . _ ~ +: browsers cannot send others, such as / and ="
        ));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_lines_are_scopes_and_token() {
        let tokens = tokens_from_variable("# people\nread abc;read,ingest  d.e-f~+_\n\ningest x").unwrap();
        let seen: Vec<_> = tokens.iter().map(|t| (t.secret.as_str(), t.read, t.ingest)).collect();
        assert_eq!(seen, [("abc", true, false), ("d.e-f~+_", true, true), ("x", false, true)]);
    }

    #[test]
    fn errors_name_line_and_no_secret() {
        let problems = tokens_from_variable(
            "hunter2;write hunter2;read hun ter2;read hunter3;ingest hunter3;read hun/;read hun=",
        )
        .unwrap_err();
        assert_eq!(problems.len(), 6, "{problems:?}");
        assert!(problems[3].starts_with("entry 5: the same token"), "{problems:?}");
        assert!(problems.iter().all(|problem| !problem.contains("hun")), "{problems:?}");
    }

    #[cfg(unix)]
    #[test]
    fn world_readable_token_file_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        std::fs::write(&path, "read abc\n").unwrap();
        for (mode, right) in [(0o600, true), (0o400, true), (0o644, false), (0o604, false), (0o660, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(tokens_from_file(&path).is_ok(), right, "{mode:o}");
        }
        assert!(tokens_from_file(&folder.path().join("none")).unwrap_err()[0].contains("cannot be read"));
    }
}
