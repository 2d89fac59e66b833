//! `evenkeel image build`: the image of nodes, made from this very program.

use crate::{exit::Failure, output};
use clap::Subcommand;
use node_manager::{docker::DockerEngine, image};

/// What to do with the image.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build it, unless it is there
    Build,
}

/// Does it.
///
/// # Errors
/// What the daemon says, or that this program is not static.
pub(crate) async fn run(command: ImageCommand) -> Result<(), Failure> {
    let ImageCommand::Build = command;
    let engine = DockerEngine::connect().await?;
    let built = image::build(&engine, env!("CARGO_PKG_VERSION")).await?;
    output::say(if built.built { "image built" } else { "the image of this program is there already" });
    output::data(built.reference)
}
