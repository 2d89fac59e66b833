//! The cluster: its master, and the token for it.

use super::{
    super::{
        facts::{Facts, TokenAtMaster, TokenSource},
        finding::Finding,
    },
    shell,
};
use crate::up::{runtime::RuntimeArg, specs::master_name};
use protocol::auth::TokenInfo;

/// A token that ends within this is worth a word.
const ENDS_SOON_MS: u64 = 24 * 3_600_000;

pub(super) fn master(facts: &Facts) -> Finding {
    const CHECK: &str = "master";
    let master = &facts.master;
    let url = &master.url;
    let flags = &facts.flags;
    if !master.expected {
        // Who has its port is told there.
        let text = format!("there is no cluster {} yet; `evenkeel up{flags}` starts one", facts.cluster);
        return Finding::ok(CHECK, text);
    }
    match (&master.lives, &master.ready) {
        (Ok(()), Ok(())) => match &master.version {
            Some(version) if version != env!("CARGO_PKG_VERSION") => Finding::warning(
                CHECK,
                format!(
                    "the master at {url} is version {version}, this program {}",
                    env!("CARGO_PKG_VERSION")
                ),
                "versions that are further than one apart do not understand each other",
                format!("evenkeel down{flags} && evenkeel up{flags} --detach   # forgets all tasks"),
            ),
            _ => Finding::ok(CHECK, format!("the master at {url} answers and serves")),
        },
        (Ok(()), Err(why)) => Finding::failure(
            CHECK,
            format!("the master at {url} answers, but does not serve: {why}"),
            "tasks are refused until it does; usually its disk is full or its store fails",
            log_of_master(facts),
        ),
        (Err(why), _) => Finding::failure(
            CHECK,
            why.clone(),
            "nothing can be submitted; nodes go on with what they have",
            // Never a `down`, which forgets what was accepted.
            format!("evenkeel up{flags} --detach"),
        ),
    }
}

fn log_of_master(facts: &Facts) -> String {
    match facts.runtime {
        Some(RuntimeArg::Docker) => format!("docker logs --tail 20 {}", master_name(&facts.cluster)),
        _ => format!("df -h {}", shell(&facts.state.path)),
    }
}

pub(super) fn token(facts: &Facts) -> Finding {
    const CHECK: &str = "token";
    let create = format!("evenkeel token create{} --scope submit,read", facts.flags);
    match &facts.token.source {
        TokenSource::Nowhere => match &facts.token.at_master {
            TokenAtMaster::NotNeeded => Finding::ok(CHECK, "this master serves without tokens"),
            TokenAtMaster::Refused(why) if facts.master.expected => Finding::failure(
                CHECK,
                format!("there is no token for {}: {why}", facts.master.url),
                "the master answers nothing without one",
                format!("evenkeel doctor{} --token-file FILE", facts.flags),
            ),
            _ => Finding::ok(CHECK, "none yet; `evenkeel up` makes one"),
        },
        TokenSource::File { path, read: Err(why), .. } => Finding::failure(
            CHECK,
            why.clone(),
            "the master answers nothing without a token",
            format!("sudo chown \"$USER\" {0} && chmod 600 {0}", shell(path)),
        ),
        TokenSource::File { path, mode: Some(mode), .. } if mode & 0o077 != 0 => Finding::failure(
            CHECK,
            format!("{} can be read by others (mode {:04o})", path.display(), mode & 0o7777),
            "who reads it may do on this cluster what you may",
            format!("chmod 600 {}", shell(path)),
        ),
        source => {
            let place = match source {
                TokenSource::File { path, .. } => path.display().to_string(),
                TokenSource::Variable | TokenSource::Nowhere => "the variable EVENKEEL_TOKEN".to_owned(),
            };
            at_master(facts, &place, &create)
        }
    }
}

fn at_master(facts: &Facts, place: &str, create: &str) -> Finding {
    const CHECK: &str = "token";
    match &facts.token.at_master {
        TokenAtMaster::NotAsked => {
            Finding::ok(CHECK, format!("{place} holds one; the master could not be asked about it"))
        }
        TokenAtMaster::NotNeeded => Finding::ok(CHECK, "this master serves without tokens"),
        TokenAtMaster::Known(info) => known(facts, info, place, create),
        TokenAtMaster::Unclear(why) => Finding::warning(
            CHECK,
            format!("the master does not tell what the token of {place} is good for: {why}"),
            "it is of another version",
            format!("evenkeel status{}", facts.flags),
        ),
        TokenAtMaster::Refused(why) => Finding::failure(
            CHECK,
            format!("the master does not take the token of {place}: {why}"),
            "the token is of an earlier cluster, was revoked, or has ended",
            format!("evenkeel down{0} && evenkeel up{0} --detach   # forgets all tasks", facts.flags),
        ),
    }
}

fn known(facts: &Facts, info: &TokenInfo, place: &str, create: &str) -> Finding {
    const CHECK: &str = "token";
    let scopes: Vec<&str> = info.scopes.iter().map(|scope| scope.as_str()).collect();
    let scopes = scopes.join(", ");
    match info.expires_at {
        Some(end) if end.ms_since(facts.clock.wall) < ENDS_SOON_MS => Finding::warning(
            CHECK,
            format!("the token of {place} (scope {scopes}) ends at {end}"),
            "after that the master answers nothing to it",
            create,
        ),
        Some(end) => Finding::ok(CHECK, format!("{place} is taken: scope {scopes}, until {end}")),
        None => Finding::ok(CHECK, format!("{place} is taken: scope {scopes}, without end")),
    }
}
