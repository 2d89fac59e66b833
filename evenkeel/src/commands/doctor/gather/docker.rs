//! Docker.

use super::{
    super::facts::{Docker, Image, Probe, Socket, Space},
    blocking, bounded, disk,
};
use node_manager::{
    docker::{DockerEngine, facts::DaemonFacts},
    image::{Program, REPOSITORY},
};
use std::{
    env, fs, io,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

const SOCKET: &str = "/var/run/docker.sock";

/// What was seen.
pub(super) struct Seen {
    pub(super) way: Docker,
    pub(super) image: Probe<Image>,
    pub(super) space: Option<Probe<Space>>,
}

pub(super) async fn look() -> Seen {
    let variable = env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
    let path = match &variable {
        None => Some(PathBuf::from(SOCKET)),
        Some(host) => host.strip_prefix("unix://").map(PathBuf::from),
    };
    let is_local = path.is_some();
    let (asked, socket) = tokio::join!(bounded(ask()), async {
        match path {
            Some(path) => blocking(move || socket(path)).await.ok(),
            None => None,
        }
    });
    let (daemon, image) = match asked {
        Ok((daemon, image)) => (Ok(daemon), image),
        Err(why) => (Err(why.clone()), Err(why)),
    };
    let space = match &daemon {
        Ok(daemon) if is_local => {
            let root = PathBuf::from(&daemon.root_dir);
            Some(blocking(move || disk::space(&root)).await.and_then(|space| space))
        }
        _ => None,
    };
    Seen { way: Docker { variable, socket, daemon }, image, space }
}

async fn ask() -> Probe<(DaemonFacts, Probe<Image>)> {
    let engine = DockerEngine::connect().await.map_err(|error| error.to_string())?;
    let daemon = engine.facts().await.map_err(|error| error.to_string())?;
    Ok((daemon, image(&engine).await))
}

async fn image(engine: &DockerEngine) -> Probe<Image> {
    let program = blocking(Program::running).await?.map_err(|error| error.to_string())?;
    let id = |reference: String| async move {
        engine.id_of_image(&reference).await.map_err(|error| error.to_string())
    };
    let reference = program.reference();
    let latest = id(format!("{REPOSITORY}:latest")).await?;
    Ok(Image { id: id(reference.clone()).await?, reference, latest })
}

fn socket(path: PathBuf) -> Socket {
    let file = fs::metadata(&path).ok().filter(|file| file.file_type().is_socket());
    let denied =
        matches!(UnixStream::connect(&path), Err(error) if error.kind() == io::ErrorKind::PermissionDenied);
    Socket { file: file.map(|file| (file.mode(), group_name(file.gid()))), path, denied }
}

/// The name of a group by its number, or the number (group(5)).
fn group_name(number: u32) -> String {
    let text = fs::read_to_string(Path::new("/etc/group")).unwrap_or_default();
    let wanted = number.to_string();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, found) = (fields.next()?, fields.next()?, fields.next()?);
        (found == wanted).then(|| name.to_owned())
    });
    name.unwrap_or(wanted)
}
