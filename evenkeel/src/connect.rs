//! How a client finds its master and the token for it.

use crate::{cli::Global, exit::Failure};
use clap::Args;
use client::{Client, ClientConfig, Token, Trust};
use service::{
    Secret,
    state::{Context, is_fingerprint},
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where a master is when nobody says.
pub(crate) const DEFAULT_MASTER: &str = "http://127.0.0.1:7400";

/// The cluster when nobody names one.
pub(crate) const DEFAULT_CLUSTER: &str = "default";

/// ` --name value`, the value quoted for a shell where it needs to be.
pub(crate) fn flag(name: &str, value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return format!(" --{name} {value}");
    }
    format!(" --{name} '{}'", value.replace('\'', r"'\''"))
}

/// Which master, and with which token.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ConnectArgs {
    /// URL of the master, or several separated by commas [default: the cluster's context, else http://127.0.0.1:7400]
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// File with the token, '-' for standard input [default: the one of the cluster's context]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// CA to trust, a PEM file or the fingerprint sha256:…; needed for https [default: the one of the cluster's context]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// URLs of the masters, separated by commas.
    pub master: String,
    /// The token, if there is one.
    pub token: Option<Secret>,
    /// The file that it is from.
    pub token_file: Option<PathBuf>,
    /// The CA's file, or its fingerprint.
    pub ca: Option<PathBuf>,
}

impl ConnectArgs {
    /// Finds master and token: flags first, then the context. The context's token goes only to the
    /// context's URL.
    ///
    /// # Errors
    /// If the context or a file cannot be read.
    pub(crate) fn resolve(&self, global: &Global) -> Result<Connection, Failure> {
        let context = self.context(global)?;
        let variable = std::env::var("EVENKEEL_TOKEN").ok().filter(|token| !token.trim().is_empty());
        let found = self.merge(context)?;
        let token = match (&self.token_file, variable, &found.token_file) {
            (None, Some(text), _) => Some(service::token::parse("the variable EVENKEEL_TOKEN", &text)?),
            (Some(path), _, _) | (None, None, Some(path)) => Some(service::token::read(path)?),
            (None, None, None) => None,
        };
        Ok(Connection { token, ..found })
    }

    /// The cluster's context. A cluster that is named is not looked for at the default address.
    fn context(&self, global: &Global) -> Result<Option<Context>, Failure> {
        let state = global.state()?;
        let context = state.context()?;
        if context.is_none() && self.master.is_none() && global.cluster != DEFAULT_CLUSTER {
            return Err(Failure::NoCluster { name: global.cluster.clone(), known: state.siblings() });
        }
        Ok(context)
    }

    /// The flags by which another command finds the same master, each with a space before it; for hints.
    pub(crate) fn flags(&self, global: &Global) -> String {
        let paths = [("token-file", &self.token_file), ("ca", &self.ca)];
        let mut flags = global.flags();
        if let Some(master) = &self.master {
            flags.push_str(&flag("master", master));
        }
        for (name, path) in paths {
            if let Some(path) = path {
                flags.push_str(&flag(name, &path.display().to_string()));
            }
        }
        flags
    }

    fn merge(&self, context: Option<Context>) -> Result<Connection, Failure> {
        let asked = self.master.as_deref().map(|master| master.trim_end_matches('/'));
        if let (Some(asked), Some(context)) = (asked, &context)
            && let Some(url) = downgraded(asked, &context.master)
        {
            return Err(Failure::Usage(format!(
                "--master {url}: the cluster's context names this master by https://, and by http:// tokens and tasks would go over the network in clear text; use {}",
                context.master
            )));
        }
        let context = context.filter(|context| asked.is_none_or(|asked| all_among(asked, &context.master)));
        let master = self.master.clone().or_else(|| context.as_ref().map(|context| context.master.clone()));
        let (token_file, ca) = context.map_or((None, None), |context| (context.token_file, context.ca));
        Ok(Connection {
            master: master.unwrap_or_else(|| DEFAULT_MASTER.to_owned()),
            token: None,
            token_file: self.token_file.clone().or(token_file),
            ca: self.ca.clone().or(ca),
        })
    }

    /// A client of what was found.
    ///
    /// # Errors
    /// As [`ConnectArgs::resolve`], and if the URLs or the CA cannot be used.
    pub(crate) fn client(&self, global: &Global) -> Result<Client, Failure> {
        self.resolve(global)?.client()
    }
}

/// Finds the master and the CA, and reads no token.
///
/// # Errors
/// If the context cannot be read.
pub(crate) fn locate(args: &ConnectArgs, global: &Global) -> Result<Connection, Failure> {
    args.merge(args.context(global)?)
}

/// The URL among these that is one of the context's, but by `http` where the context has `https`.
fn downgraded<'a>(asked: &'a str, context: &str) -> Option<&'a str> {
    let trimmed = |url: &'a str| url.trim().trim_end_matches('/');
    let secure: Vec<_> = context.split(',').filter_map(|url| url.trim().strip_prefix("https://")).collect();
    asked.split(',').map(trimmed).find(|url| {
        let plain = url.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
        plain.is_some()
            && secure.iter().any(|host| host.trim_end_matches('/').eq_ignore_ascii_case(&url[7..]))
    })
}

/// Whether the first of these masters is named by `https`; a client refuses a list that has both.
pub(crate) fn is_https(masters: &str) -> bool {
    masters.trim_start().get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

/// Whether all of these masters are the context's: its token goes to none that it does not name.
fn all_among(asked: &str, context: &str) -> bool {
    let list = |text: &str| {
        let urls = text.split(',').map(|url| url.trim().trim_end_matches('/').to_owned());
        urls.filter(|url| !url.is_empty()).collect::<std::collections::BTreeSet<_>>()
    };
    list(asked).is_subset(&list(context))
}

/// Trust in a CA's file, or in its fingerprint.
///
/// # Errors
/// If the file cannot be read, or the fingerprint is none.
pub(crate) fn trust_of(ca: &Path) -> Result<Trust, Failure> {
    if is_fingerprint(ca) {
        return Ok(Trust::Pinned(ca.to_string_lossy().parse()?));
    }
    let wrong = |error| Failure::Usage(format!("the CA {} cannot be read: {error}", ca.display()));
    fs::read(ca).map(Trust::Certificates).map_err(wrong)
}

impl Connection {
    /// A client.
    ///
    /// # Errors
    /// If the URLs or the CA cannot be used.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let mut config = ClientConfig::new(&self.master);
        if let Some(token) = &self.token {
            config = config.with_token(Token::new(token.expose()));
        }
        if let Some(trust) = self.trust()? {
            config = config.with_trust(trust);
        }
        Ok(Client::new(config)?)
    }

    /// Whose certificates are trusted.
    ///
    /// # Errors
    /// If the CA's file cannot be read, or the fingerprint is none.
    pub(crate) fn trust(&self) -> Result<Option<Trust>, Failure> {
        self.ca.as_deref().map(trust_of).transpose()
    }

    /// Whether the master is reached by TLS.
    pub(crate) fn is_secure(&self) -> bool {
        is_https(&self.master)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn context() -> Option<Context> {
        Some(Context {
            master: "http://127.0.0.1:7400".to_owned(),
            token_file: Some("/state/admin.token".into()),
            ca: None,
        })
    }

    #[test]
    fn values_in_hints_are_quoted_where_a_shell_needs_it() {
        assert_eq!(flag("cluster", "c-1"), " --cluster c-1");
        assert_eq!(flag("state-dir", "/a b/it's"), r" --state-dir '/a b/it'\''s'");
    }

    #[test]
    fn a_master_of_the_context_is_not_addressed_in_clear_text() {
        let context = Context { master: "https://127.0.0.1:7400".to_owned(), ..context().unwrap() };
        let to = |master: &str| {
            // Not even with a token that is named.
            let token_file = Some("mine".into());
            let args = ConnectArgs { master: Some(master.to_owned()), token_file, ca: None };
            args.merge(Some(context.clone()))
        };
        for downgraded in [
            "http://127.0.0.1:7400",
            "http://127.0.0.1:7400/",
            "HTTP://127.0.0.1:7400",
            "http://a:1,http://127.0.0.1:7400",
        ] {
            let refused = to(downgraded).unwrap_err();
            assert!(
                refused.code() == 2 && refused.message().contains("clear text"),
                "{downgraded}: {refused}"
            );
        }
        to("http://127.0.0.1:7401").unwrap();
        to("https://127.0.0.1:7400").unwrap();
    }

    #[test]
    fn without_flags_the_context_counts() {
        let found = ConnectArgs::default().merge(context()).unwrap();
        assert_eq!(found.master, "http://127.0.0.1:7400");
        assert_eq!(found.token_file, Some("/state/admin.token".into()));
        assert_eq!(ConnectArgs::default().merge(None).unwrap().master, DEFAULT_MASTER);
    }

    #[test]
    fn the_contexts_token_goes_to_no_other_url() {
        let to = |master: &str| ConnectArgs { master: Some(master.to_owned()), ..ConnectArgs::default() };
        assert_eq!(to("http://192.0.2.1:7400").merge(context()).unwrap().token_file, None);
        assert_eq!(
            to("http://127.0.0.1:7400,http://192.0.2.1:7400").merge(context()).unwrap().token_file,
            None
        );
        assert_eq!(to("https://127.0.0.1:7400").merge(context()).unwrap().token_file, None);
        assert!(to("http://127.0.0.1:7400/").merge(context()).unwrap().token_file.is_some());
    }

    #[test]
    fn the_token_of_a_context_with_several_masters_goes_to_any_of_them() {
        let several = || Some(Context { master: "http://a:1, http://b:1/".to_owned(), ..context().unwrap() });
        for (master, known) in [
            ("http://b:1", true),
            ("http://b:1,http://a:1/", true),
            ("http://b:1,http://c:1", false),
            ("http://b:1,https://a:1", false),
        ] {
            let args = ConnectArgs { master: Some(master.to_owned()), ..ConnectArgs::default() };
            let found = args.merge(several()).unwrap();
            assert_eq!(found.token_file.is_some(), known, "{master}");
        }
    }

    #[test]
    fn a_token_that_is_named_goes_where_it_is_told_to() {
        let args = ConnectArgs { token_file: Some("mine".into()), ..ConnectArgs::default() };
        let found = args.merge(context()).unwrap();
        assert_eq!((found.master.as_str(), found.token_file), ("http://127.0.0.1:7400", Some("mine".into())));
    }
}
