//! The cluster: its context, its token, its master.

use super::{
    super::{
        DoctorArgs,
        facts::{Master, Probe, Token, TokenAtMaster, TokenSource},
    },
    bounded,
};
use crate::{
    cli::Global,
    connect::{ConnectArgs, DEFAULT_MASTER},
    exit::Failure,
};
use client::{Client, ClientConfig, Error, Timeouts, Trust};
use service::{Secret, state::StateDir};
use session::retry::Policy;
use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

/// Nobody who is well takes longer.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), request: Duration::from_secs(3) };

/// What is to be looked at.
pub(super) struct Found {
    /// URL of the master, or several separated by commas.
    pub(super) url: String,
    /// Whether a flag or a context names it.
    pub(super) expected: bool,
    token: Option<Secret>,
    source: TokenSource,
    trust: Option<Trust>,
}

/// What was seen.
pub(super) struct Seen {
    pub(super) master: Master,
    pub(super) token: Token,
    /// By how much this host's clock is ahead of the master's, and how exactly that is known, in ms.
    pub(super) clock: Option<(i64, i64)>,
}

/// Finds master and token as every other command does; a token that cannot be read is a finding here.
pub(super) fn find(global: &Global, args: &DoctorArgs, state: &StateDir) -> Result<Found, Failure> {
    // A context that cannot be read is told as such by every command; the same here.
    let context = state.context()?;
    let variable = env::var("EVENKEEL_TOKEN").ok().filter(|token| !token.trim().is_empty());
    let ConnectArgs { master, token_file, .. } = &args.connect;
    let expected = master.is_some() || context.is_some() || token_file.is_some() || variable.is_some();
    // Without a context a cluster is simply not there yet, and this is where its master would be.
    let would_be =
        || args.listen.map_or_else(|| DEFAULT_MASTER.to_owned(), |listen| format!("http://{listen}"));
    let named = ConnectArgs {
        master: master.clone().or_else(|| context.is_none().then(would_be)),
        ..args.connect.clone()
    };
    let found = crate::connect::locate(&named, global)?;
    let (token, source) = match (variable, &found.token_file) {
        (Some(text), None) => {
            (service::token::parse("the variable EVENKEEL_TOKEN", &text).ok(), TokenSource::Variable)
        }
        (Some(text), Some(_)) if args.connect.token_file.is_none() => {
            (service::token::parse("the variable EVENKEEL_TOKEN", &text).ok(), TokenSource::Variable)
        }
        (_, Some(path)) => token_of_file(path),
        (None, None) => (None, TokenSource::Nowhere),
    };
    Ok(Found { trust: found.trust()?, url: found.master, expected, token, source })
}

fn token_of_file(path: &PathBuf) -> (Option<Secret>, TokenSource) {
    let read = service::token::read(path);
    let mode = fs::metadata(path).ok().map(|file| file.mode());
    let (token, read) = match read {
        Ok(token) => (Some(token), Ok(())),
        Err(error) => (None, Err(error.to_string())),
    };
    (token, TokenSource::File { path: path.clone(), mode, read })
}

/// A client that tries once.
pub(super) fn client_of(url: &str, token: Option<&Secret>, trust: Option<Trust>) -> Probe<Client> {
    let mut config = ClientConfig::new(url).with_retry(Policy::NEVER);
    config.timeouts = TIMEOUTS;
    config.token = token.map(|token| client::Token::new(token.expose()));
    if let Some(trust) = trust {
        config = config.with_trust(trust);
    }
    Client::new(config).map_err(|error| error.to_string())
}

pub(super) async fn look(found: &Found) -> Seen {
    let unknown = |why: String| Seen {
        master: Master {
            url: found.url.clone(),
            expected: found.expected,
            lives: Err(why.clone()),
            ready: Err(why),
            version: None,
        },
        token: Token { source: found.source.clone(), at_master: TokenAtMaster::NotAsked },
        clock: None,
    };
    let client = match client_of(&found.url, found.token.as_ref(), found.trust.clone()) {
        Ok(client) => client,
        Err(why) => return unknown(why),
    };
    let clock = match bounded(clock(&client)).await {
        Ok(clock) => clock,
        Err(why) => return unknown(why),
    };
    let (ready, version, token) = tokio::join!(
        bounded(async { client.readyz().await.map_err(|error| error.to_string()) }),
        bounded(async {
            client.status().await.map(|status| status.version).map_err(|error| error.to_string())
        }),
        bounded(async { Ok(ask_about_token(&client).await) }),
    );
    let (url, expected) = (found.url.clone(), found.expected);
    Seen {
        master: Master { url, expected, lives: Ok(()), ready, version: version.ok() },
        token: Token {
            source: found.source.clone(),
            at_master: token.unwrap_or_else(TokenAtMaster::Unclear),
        },
        clock,
    }
}

async fn ask_about_token(client: &Client) -> TokenAtMaster {
    match client.current_token().await {
        Ok(info) => TokenAtMaster::Known(Box::new(info)),
        Err(Error::Problem(problem)) if matches!(problem.status, 401 | 403) => {
            TokenAtMaster::Refused(problem.detail)
        }
        // Only a master without tokens lets anybody see the status.
        Err(Error::Problem(problem)) if problem.status == 404 && client.tokens().await.is_ok() => {
            TokenAtMaster::NotNeeded
        }
        Err(error) => TokenAtMaster::Unclear(error.to_string()),
    }
}

/// By how much this host's clock is ahead of the master's, in ms, and how exactly that is known: the master
/// tells whole seconds, at some moment between question and answer.
async fn clock(client: &Client) -> Probe<Option<(i64, i64)>> {
    let (began, asked) = (Instant::now(), SystemTime::now());
    let theirs = client.wall_clock().await.map_err(|error| error.to_string())?;
    let took_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    let ms = |time: SystemTime| match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(_) => 0,
    };
    // In the middle of the second that it tells, and of the way there and back.
    let ahead = |theirs| ms(asked).saturating_add(took_ms / 2).saturating_sub(ms(theirs)).saturating_sub(500);
    Ok(theirs.map(|theirs| (ahead(theirs), took_ms / 2 + 500)))
}
