//! Where the store is, as `--store` says it. What may hold a password is never shown.

use super::{StoreError, sqlite::DATABASE};
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// What may be said of a PostgreSQL server, named as libpq names it.
const PARAMETERS: [&str; 8] =
    ["host", "hostaddr", "port", "user", "password", "dbname", "sslmode", "application_name"];
/// Statements that a connection keeps ready: those of one task each, and those of many rows.
pub(super) const STATEMENTS: usize = 200;

/// Where the store is.
#[derive(Clone)]
pub struct Place(pub(super) Inner);

#[derive(Clone)]
pub(super) enum Inner {
    /// This file.
    Sqlite(PathBuf),
    /// This server and database.
    Postgres(Box<PgConnectOptions>),
}

impl Place {
    /// The database in a state directory.
    #[must_use]
    pub fn in_directory(dir: &Path) -> Self {
        Self(Inner::Sqlite(dir.join(DATABASE)))
    }

    /// Reads `sqlite:PATH` (a file, or a directory that has or gets `evenkeel.db`), `postgres://…` (a URL as
    /// PostgreSQL's own programs take it), or `postgres:` and pairs as in `host=db dbname=evenkeel`. What is not
    /// said is taken from the variables `PGHOST`, `PGPASSWORD` …, and the password from the file `.pgpass`.
    ///
    /// # Errors
    /// [`StoreError::Place`].
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
        match scheme {
            "sqlite" if rest.is_empty() => Err(wrong("sqlite: without a path")),
            "sqlite" => Ok(sqlite(Path::new(rest))),
            "postgres" | "postgresql" if rest.starts_with("//") => from_url(&format!("postgres:{rest}")),
            "postgres" | "postgresql" => from_url(&url_of_pairs(rest)?),
            _ => Err(wrong("it begins with neither sqlite: nor postgres:")),
        }
    }

    /// The directory of a database that is a file.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.0 {
            Inner::Sqlite(file) => Some(file),
            Inner::Postgres(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Sqlite(file) => file.display().fmt(f),
            Inner::Postgres(options) => {
                let database = options.get_database().unwrap_or(options.get_username());
                let (host, port) = (options.get_host(), options.get_port());
                match options.get_socket() {
                    Some(socket) => write!(f, "PostgreSQL database {database} at {}", socket.display()),
                    None => write!(f, "PostgreSQL database {database} at {host}:{port}"),
                }
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

fn wrong(why: impl Into<String>) -> StoreError {
    StoreError::Place { why: why.into() }
}

fn sqlite(path: &Path) -> Place {
    if path.is_dir() { Place::in_directory(path) } else { Place(Inner::Sqlite(path.to_owned())) }
}

fn check_parameter(name: &str) -> Result<(), StoreError> {
    if PARAMETERS.contains(&name) {
        return Ok(());
    }
    Err(wrong(format!("{name:?} is not known of a PostgreSQL server; known are {}", PARAMETERS.join(", "))))
}

fn from_url(url: &str) -> Result<Place, StoreError> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        check_parameter(pair.split('=').next().unwrap_or_default())?;
    }
    let options: PgConnectOptions =
        url.parse().map_err(|error: sqlx::Error| wrong(format!("this is no PostgreSQL URL: {error}")))?;
    if !matches!(options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer) {
        return Err(wrong(
            "TLS is asked for, which is not spoken to PostgreSQL yet; use a socket, a tunnel or a network of your own",
        ));
    }
    let named = options.get_application_name().is_some();
    let options = if named { options } else { options.application_name("evenkeel") };
    Ok(Place(Inner::Postgres(Box::new(
        options.statement_cache_capacity(STATEMENTS).disable_statement_logging(),
    ))))
}

/// Pairs as libpq takes them: `name=value`, a value with spaces in single quotes, `\` before a quote or `\`.
fn url_of_pairs(text: &str) -> Result<String, StoreError> {
    let mut url = "postgres:///?".to_owned();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) =
            rest.split_once('=').ok_or_else(|| wrong("a pair has no '='; write host=… dbname=…"))?;
        let name = name.trim();
        check_parameter(name)?;
        let (value, after) = pair_value(after.trim_start())?;
        url.push_str(name);
        url.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() {
                url.push(char::from(byte));
            } else {
                url.push_str(&format!("%{byte:02X}"));
            }
        }
        url.push('&');
        rest = after.trim_start();
    }
    Ok(url)
}

/// The value at the beginning of this, and what follows it.
fn pair_value(text: &str) -> Result<(String, &str), StoreError> {
    let (quoted, text) = text.strip_prefix('\'').map_or((false, text), |text| (true, text));
    let (mut value, mut letters) = (String::new(), text.char_indices());
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\'' if quoted => return Ok((value, text.get(at + 1..).unwrap_or_default())),
            '\\' => value.extend(letters.next().map(|(_, letter)| letter)),
            letter if letter.is_whitespace() && !quoted => {
                return Ok((value, text.get(at..).unwrap_or_default()));
            }
            letter => value.push(letter),
        }
    }
    if quoted { Err(wrong("a quoted value has no end")) } else { Ok((value, "")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn options(text: &str) -> PgConnectOptions {
        match Place::parse(text).unwrap().0 {
            Inner::Postgres(options) => *options,
            Inner::Sqlite(file) => unreachable!("{file:?}"),
        }
    }

    #[test]
    fn a_url_and_pairs_say_the_same() {
        for text in [
            "postgres://me:p%27w%20d@db.example:5433/work?sslmode=disable",
            "postgresql://me:p%27w%20d@db.example:5433/work?sslmode=disable",
            r"postgres:host=db.example port=5433 user=me password='p\'w d' dbname=work sslmode=disable",
        ] {
            let options = options(text);
            assert_eq!((options.get_host(), options.get_port()), ("db.example", 5433), "{text}");
            assert_eq!((options.get_username(), options.get_database()), ("me", Some("work")));
            assert!(options.to_url_lossy().as_str().contains("p%27w%20d"), "{text}");
        }
        assert_eq!(options("postgres:host=/run/pg").get_socket(), Some(&PathBuf::from("/run/pg")));
    }

    #[test]
    fn a_password_is_never_shown() {
        for text in ["postgres://me:hunter2@db/work", "postgres:host=db password=hunter2"] {
            let place = Place::parse(text).unwrap();
            assert!(!format!("{place} {place:?}").contains("hunter2"));
        }
        for text in [
            "postgres://me:hunter2@db:port/work",
            "postgres://me:hunter2@db/work?passwort=hunter2",
            "postgres:password='hunter2",
            "mysql://me:hunter2@db",
            "hunter2",
            "postgres://me:hunter2@db/work?sslmode=require",
        ] {
            let refused = Place::parse(text).unwrap_err();
            assert!(!format!("{refused} {refused:?}").contains("hunter2"), "{refused}");
        }
    }

    #[test]
    fn sqlite_is_a_file_or_the_usual_one_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: String| Place::parse(&text).unwrap().file().unwrap().to_owned();
        assert_eq!(of(format!("sqlite:{}", dir.path().display())), dir.path().join(DATABASE));
        assert_eq!(of(format!("sqlite:{}/a.db", dir.path().display())), dir.path().join("a.db"));
        assert!(Place::parse("sqlite:").is_err());
    }
}
