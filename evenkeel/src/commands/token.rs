//! `evenkeel token create|list|revoke`.

use crate::{
    cli::Global,
    connect::{ConnectArgs, Connection},
    exit::Failure,
    output,
};
use clap::{
    Args, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use client::{Fingerprint, Trust};
use protocol::auth::{Scope, TokenInfo, TokenRequest};
use service::duration::parse_ms;

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; it is shown this once
    Create(CreateArgs),
    /// List the tokens, without the secrets
    List(ListArgs),
    /// Make a token invalid
    Revoke(RevokeArgs),
}

/// Arguments of `token create`.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// What it allows, once or more often
    #[arg(long, required = true, value_delimiter = ',', value_parser = scope_parser())]
    scope: Vec<Scope>,
    /// How long it is valid, as 24h [default: without end; scope node: 24h]
    #[arg(long, value_parser = parse_ms, value_name = "DURATION")]
    ttl: Option<u64>,
    /// Good for one registration only (scope node)
    #[arg(long)]
    single_use: bool,
    /// Good only for a node of this name (scope node)
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// For people: what it is for
    #[arg(long, default_value = "")]
    note: String,
    /// Print the token alone, or all that is known of it
    #[arg(short, long, value_enum, default_value_t = CreateOutput::Token)]
    output: CreateOutput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CreateOutput {
    Token,
    /// The token, and below it the fingerprint of the master's CA: what a node needs to join by TLS
    Join,
    Json,
}

/// Arguments of `token list`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// How to write them
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table)]
    output: ListOutput,
}

/// How to write a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListOutput {
    /// For people.
    Table,
    /// The body of the API's answer.
    Json,
}

/// Arguments of `token revoke`.
#[derive(Args, Debug)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Id of the token, as `token list` shows it
    id: uuid::Uuid,
}

fn scope_parser() -> impl TypedValueParser<Value = Scope> {
    PossibleValuesParser::new(["read", "submit", "operate", "node", "manager", "admin"])
        .try_map(|text| text.parse::<Scope>())
}

/// Does it.
///
/// # Errors
/// What the master says.
pub(crate) async fn run(global: &Global, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Create(args) => {
            let connection = args.connect.resolve(global)?;
            let ca = authority(&connection)?;
            if args.output == CreateOutput::Join && (ca.is_none() || args.scope != [Scope::Node]) {
                return Err(Failure::Usage(
                    "-o join is for tokens of scope node of a master with TLS".to_owned(),
                ));
            }
            let client = connection.client()?;
            let request = TokenRequest {
                scopes: args.scope,
                ttl_ms: args.ttl,
                single_use: args.single_use,
                node_name: args.node_name,
                note: args.note,
            };
            let created = client.create_token(&request).await?;
            match args.output {
                CreateOutput::Token => {
                    if let Some(ca) = ca.filter(|_| created.info.scopes == [Scope::Node]) {
                        output::say(format_args!("a node also needs the master's CA: --ca {ca}"));
                    }
                    output::data(created.token)
                }
                CreateOutput::Join => {
                    let ca = ca.map(|ca| format!("\n{ca}")).unwrap_or_default();
                    output::data(format_args!("{}{ca}", created.token))
                }
                CreateOutput::Json => output::json(&created),
            }
        }
        TokenCommand::List(args) => {
            let page = args.connect.client(global)?.tokens().await?;
            match args.output {
                ListOutput::Json => output::json(&page),
                ListOutput::Table => {
                    let rows: Vec<_> = page.items.iter().map(row).collect();
                    output::table(&["ID", "SCOPES", "CREATED", "EXPIRES", "FOR", "NOTE"], &rows)
                }
            }
        }
        TokenCommand::Revoke(args) => Ok(args.connect.client(global)?.revoke_token(args.id).await?),
    }
}

/// The fingerprint of the CA of a master that is reached by TLS.
fn authority(connection: &Connection) -> Result<Option<Fingerprint>, Failure> {
    match connection.trust()?.filter(|_| connection.is_secure()) {
        Some(Trust::Pinned(fingerprint)) => Ok(Some(fingerprint)),
        Some(Trust::Certificates(pem)) => Ok(Some(Fingerprint::of_pem(&pem)?)),
        None => Ok(None),
    }
}

fn row(token: &TokenInfo) -> Vec<String> {
    let scopes: Vec<_> = token.scopes.iter().map(|scope| scope.as_str()).collect();
    let good_for = match (&token.node_name, token.single_use) {
        (Some(name), true) => format!("node {name}, once"),
        (Some(name), false) => format!("node {name}"),
        (None, true) => "one node".to_owned(),
        (None, false) => String::new(),
    };
    vec![
        token.id.to_string(),
        scopes.join(","),
        token.created_at.to_string(),
        token.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string()),
        good_for,
        token.note.clone(),
    ]
}
