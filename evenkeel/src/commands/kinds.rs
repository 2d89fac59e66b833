//! `evenkeel kinds`: the kinds of work that are known, and what their tasks have unless they say otherwise.

use super::token::ListOutput;
use crate::{cli::Global, connect::ConnectArgs, exit::Failure, output};
use clap::Args;
use protocol::{
    node::KindInfo,
    task::{DEFAULT_MAX_ATTEMPTS, ErrorCode, Resources},
};
use service::duration::show_duration;
use std::time::Duration;

/// Arguments of `kinds`.
#[derive(Args, Debug)]
pub(crate) struct KindsArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// How to write them; only JSON has the schemas
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table)]
    output: ListOutput,
}

/// Does it.
///
/// # Errors
/// What the master says.
pub(crate) async fn run(global: &Global, args: KindsArgs) -> Result<(), Failure> {
    let kinds = args.connect.client(global)?.kinds().await?;
    if args.output == ListOutput::Json {
        return output::json(&kinds);
    }
    let rows: Vec<_> = kinds.items.iter().map(row).collect();
    output::table(&["NAME", "CORES", "MEMORY", "TIMEOUT", "ATTEMPTS", "RETRY ON", "DESCRIPTION"], &rows)
}

fn row(kind: &KindInfo) -> Vec<String> {
    let takes = Resources::from(kind.resources.unwrap_or_default());
    let memory = match takes.memory_bytes {
        0 => "-".to_owned(),
        bytes => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
    };
    let timeout = kind.timeout_ms.map_or("-".to_owned(), |ms| show_duration(Duration::from_millis(ms)));
    let retry_on: Vec<_> = kind.retry_on.iter().map(|code: &ErrorCode| code.as_str()).collect();
    vec![
        kind.name.clone(),
        takes.cores.to_string(),
        memory,
        timeout,
        kind.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS).to_string(),
        if retry_on.is_empty() { "-".to_owned() } else { retry_on.join(",") },
        kind.description.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::task::ResourceRequest;

    #[test]
    fn a_kind_is_shown_with_what_its_tasks_have() {
        let plain = KindInfo { name: "plain".to_owned(), ..KindInfo::default() };
        assert_eq!(row(&plain), ["plain", "1", "-", "-", "3", "-", ""]);
        let full = KindInfo {
            name: "full".to_owned(),
            description: "does much".to_owned(),
            resources: Some(ResourceRequest { cores: Some(2.5), memory_bytes: Some(3 << 19) }),
            timeout_ms: Some(60_000),
            max_attempts: Some(5),
            retry_on: vec![ErrorCode::Timeout, ErrorCode::TaskError],
            ..KindInfo::default()
        };
        let shown = row(&full);
        assert_eq!((shown[1].as_str(), shown[2].as_str(), shown[4].as_str()), ("2.5", "1.5 MiB", "5"));
        assert_eq!((shown[5].as_str(), shown[6].as_str()), ("timeout,task_error", "does much"));
    }
}
