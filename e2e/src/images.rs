//! Images for tests, made here: no registry is asked.

use crate::{docker, run, try_run};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// An image that is removed again; containers made from it have to be gone by then.
pub struct Image {
    /// Its name.
    pub name: String,
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = try_run(Command::new("docker").args(["rmi", "-f", &self.name]), "");
    }
}

/// An image from a folder with a Dockerfile, under a name of its own that begins with `t-`.
#[must_use]
pub fn build(name: &str, folder: &Path) -> Image {
    let name = format!("t-{name}-{}", std::process::id());
    // The classic builder: the other one is a plugin that need not be there.
    run(Command::new("docker").env("DOCKER_BUILDKIT", "0").args(["build", "-q", "-t", &name]).arg(folder));
    Image { name }
}

/// An image from nothing: these files, and lines of a Dockerfile for the rest.
///
/// # Panics
/// If a file cannot be read.
#[must_use]
pub fn from_scratch(name: &str, files: &[(&str, &str)], lines: &str) -> Image {
    let folder = tempfile::tempdir().unwrap();
    let mut dockerfile = "FROM scratch\n".to_owned();
    for (number, (file, inside)) in files.iter().enumerate() {
        // Follows links, as the loader of musl is one.
        fs::copy(file, folder.path().join(number.to_string())).unwrap_or_else(|e| panic!("{file}: {e}"));
        dockerfile.push_str(&format!("COPY {number} {inside}\n"));
    }
    fs::write(folder.path().join("Dockerfile"), dockerfile + lines).unwrap();
    build(name, folder.path())
}

/// BusyBox, static, on an empty root: a shell without any library. It says of its own program what must not
/// count for ours: a directory that only root may enter, a check of its health, another signal to stop.
#[must_use]
pub fn busybox(name: &str) -> Image {
    let lines = r#"RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -m 700 /root
WORKDIR /root
ENV PATH=/bin MEANT_FOR=another
HEALTHCHECK --interval=1s CMD exit 1
STOPSIGNAL SIGQUIT
ENTRYPOINT ["/bin/sleep"]
"#;
    from_scratch(name, &[("/bin/busybox", "/bin/busybox")], lines)
}

/// A small Debian with python3. Made once, by `e2e/images/debian-python3`, which keeps it as a file; its image
/// stays as well, because to import it takes longer than many a test.
#[must_use]
pub fn debian_python() -> &'static str {
    const NAME: &str = "evenkeel-test-debian-python3:1";
    if try_run(Command::new("docker").args(["image", "inspect", NAME]), "").code != 0 {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/debian-python3");
        let tar = run(Command::new(script).stdin(Stdio::null()));
        docker(&["import", &tar, NAME]);
    }
    NAME
}
