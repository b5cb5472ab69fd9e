//! Passwords in a file, as libpq has them: lines `host:port:database:user:password`.

use std::fs;
use std::path::Path;

use tokio_postgres::config::{Config, Host};

const MAX_FILE_BYTES: u64 = 1024 * 1024;
const DEFAULT_PORT: u16 = 5432;

/// Finds the password for all hosts of a database. Problems never contain a part of a line.
///
/// # Errors
///
/// If the file cannot be read, can be read by other users, or has no password or several.
pub fn read_password(path: &Path, config: &Config) -> Result<String, String> {
    let shown = path.display();
    check_private(path)?;
    let size = fs::metadata(path).map_err(|error| format!("passfile {shown}: {error}"))?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("passfile {shown} is longer than {MAX_FILE_BYTES} bytes: is it the right file?"));
    }
    let text = fs::read_to_string(path).map_err(|error| format!("passfile {shown}: {error}"))?;
    let mut found: Option<String> = None;
    for target in targets(config) {
        match find_password(&text, &target) {
            None => {
                let [host, port, database, user] = &target;
                return Err(format!(
                    "passfile {shown} has no line for {host}:{port}:{database}:{user}: add one that ends with the password"
                ));
            }
            Some(password) if found.as_ref().is_some_and(|before| *before != password) => {
                return Err(format!(
                    "passfile {shown} has different passwords for the hosts of one URL: they are one database, and need one"
                ));
            }
            Some(password) => found = Some(password),
        }
    }
    found.ok_or_else(|| format!("passfile {shown} is of no use without a host in the URL"))
}

#[cfg(unix)]
fn check_private(path: &Path) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    let shown = path.display();
    let metadata = fs::metadata(path).map_err(|error| format!("passfile {shown}: {error}"))?;
    // A file of root's may be readable by its group, as mounted secrets are.
    let allowed = if metadata.uid() == 0 { 0o740 } else { 0o700 };
    if metadata.mode() & 0o777 & !allowed != 0 {
        return Err(format!("passfile {shown} can be used by other users: chmod 600 {shown}"));
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_private(_: &Path) -> Result<(), String> {
    Ok(())
}

/// Host, port, database and user of each host.
fn targets(config: &Config) -> Vec<[String; 4]> {
    let user = config.get_user().unwrap_or_default().to_owned();
    let database = config.get_dbname().unwrap_or(&user).to_owned();
    let ports = config.get_ports();
    let target = |(i, host): (usize, &Host)| {
        let host = match host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(_) => "localhost".to_owned(),
        };
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
        [host, port.to_string(), database.clone(), user.clone()]
    };
    config.get_hosts().iter().enumerate().map(target).collect()
}

/// The password of the first line that fits.
fn find_password(text: &str, target: &[String; 4]) -> Option<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(split_line).find_map(|(fields, password)| {
        let fits = fields.iter().zip(target).all(|(field, value)| field == "*" || field == value);
        fits.then_some(password)
    })
}

/// Splits a line at its first four colons. `\` makes the next character a plain one.
fn split_line(line: &str) -> Option<([String; 4], String)> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        if c == ':' && fields.len() < 5 {
            fields.push(String::new());
            continue;
        }
        let c = if c == '\\' { chars.next()? } else { c };
        fields.last_mut()?.push(c);
    }
    let password = fields.pop()?;
    Some((fields.try_into().ok()?, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, url: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("passwords");
        fs::write(&path, text).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        read_password(&path, &url.parse().unwrap())
    }

    #[test]
    fn passfile_gives_the_password_of_the_first_line_that_fits() {
        let text =
            "# a comment\nother:5432:weather:swelter:no\na:*:weather:swelter:one\\:two\\\\\n*:*:*:*:rest\n";
        assert_eq!(read(text, "postgres://swelter@a:6000/weather").unwrap(), "one:two\\");
        assert_eq!(read(text, "postgres://swelter@b/weather").unwrap(), "rest");
        assert_eq!(
            read("localhost:5432:swelter:swelter:x\n", "host=/run/postgresql user=swelter").unwrap(),
            "x"
        );
    }

    #[test]
    fn passfile_without_the_password_is_refused_without_its_text() {
        let missing = read("a:5432:weather:swelter:hunter2\n", "postgres://swelter@b/weather").unwrap_err();
        assert!(missing.contains("has no line for b:5432:weather:swelter"), "{missing}");
        let differ =
            read("a:*:*:*:hunter2\nb:*:*:*:hunter3\n", "postgres://swelter@a,b/weather").unwrap_err();
        assert!(differ.contains("different passwords"), "{differ}");
        assert!(!missing.contains("hunter") && !differ.contains("hunter"));
        let path = Path::new("/nowhere/passwords");
        assert!(read_password(path, &"postgres://a/b".parse().unwrap()).unwrap_err().contains("/nowhere/"));
    }

    #[cfg(unix)]
    #[test]
    fn passfile_of_other_users_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let refused = read_password(file.path(), &"postgres://a/b".parse().unwrap()).unwrap_err();
        assert!(refused.contains("chmod 600"), "{refused}");
    }
}
