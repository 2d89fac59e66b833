//! The node image: this very program on an empty root.
//!
//! The image holds `/bin/evenkeel` (so that a volume mounted over `/bin` of a container made from it is
//! filled with the program), a link `/evenkeel` to it, an empty `/tmp` and an empty `/state` that belongs
//! to the user of our containers, so that a volume mounted there is writable. It is tagged by the hash of
//! what is in it, so that nothing is built twice.

use crate::{
    docker::DockerEngine,
    engine::{EngineError, Outcome},
};
use sha2::{Digest as _, Sha256};
use std::io;

/// Name of the image, before the tag.
pub const REPOSITORY: &str = "evenkeel";
/// Where a running program finds itself; also right when its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";

const DOCKERFILE: &str = "\
FROM scratch
COPY root/ /
COPY --chown=65532:65532 state/ /state/
ENV EVENKEEL_LISTEN=0.0.0.0:7400
USER 65532:65532
ENTRYPOINT [\"/evenkeel\"]
";

/// A program that can be the only file of an image.
#[derive(Clone)]
pub struct Program {
    bytes: Vec<u8>,
    hash: String,
}

/// The image that a program became.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Built {
    /// Tag by content, as `evenkeel:0123456789ab`.
    pub reference: String,
    /// Docker's id.
    pub id: String,
    /// Whether it had to be built; `false` if it was there.
    pub built: bool,
}

/// Why a program cannot be an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("the running program cannot be read from {SELF}: {0}")]
    Unreadable(#[from] io::Error),
    /// It is not what Linux on a 64-bit little-endian machine runs.
    #[error(
        "the program is no 64-bit little-endian ELF file: an image can only be made on Linux on x86-64 or arm64"
    )]
    NotElf,
    /// It needs a loader that an empty image does not have.
    #[error(
        "the program is linked dynamically (it needs {0}), which an image without any other file cannot run; \
         build it with `cargo build --release` in the project folder, without RUSTFLAGS in the environment, \
         because that would replace the flags that make it static"
    )]
    Dynamic(String),
}

impl Program {
    /// The program that is running.
    ///
    /// # Errors
    /// If it cannot be read or is not static.
    pub fn running() -> Result<Self, ImageError> {
        Self::from_bytes(std::fs::read(SELF)?)
    }

    /// A program from its file's content.
    ///
    /// # Errors
    /// If it is not a static program.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, ImageError> {
        if let Some(loader) = interpreter(&bytes)? {
            return Err(ImageError::Dynamic(loader));
        }
        // The recipe counts too: another recipe makes another image of the same program.
        let digest = Sha256::new().chain_update(&bytes).chain_update(DOCKERFILE).finalize();
        let hash = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { bytes, hash })
    }

    /// The first 12 hexadecimal digits of the SHA-256 of what is in the image.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The image's tag by content.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{REPOSITORY}:{}", self.hash)
    }
}

/// The loader that an ELF file asks for (its `PT_INTERP`; see elf(5)); `None` if it is static.
///
/// # Errors
/// If it is no 64-bit little-endian ELF file.
pub fn interpreter(elf: &[u8]) -> Result<Option<String>, ImageError> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| -> Result<u64, ImageError> {
        let field = elf.get(at..at.saturating_add(bytes)).ok_or(ImageError::NotElf)?;
        Ok(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let index = |value: u64| usize::try_from(value).map_err(|_| ImageError::NotElf);
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return Err(ImageError::NotElf);
    }
    let (table, size, count) = (index(number(32, 8)?)?, index(number(54, 2)?)?, index(number(56, 2)?)?);
    for entry in 0..count {
        let header = table.saturating_add(entry * size);
        if number(header, 4)? == PT_INTERP {
            let (start, length) = (index(number(header + 8, 8)?)?, index(number(header + 32, 8)?)?);
            let path = elf.get(start..start.saturating_add(length)).ok_or(ImageError::NotElf)?;
            return Ok(Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned()));
        }
    }
    Ok(None)
}

/// The build context: a tar archive, the same bytes for the same program.
pub(crate) fn context(program: &Program) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(program.bytes.len() + (64 << 10)));
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        if kind == tar::EntryType::Symlink {
            archive.append_link(&mut header, path, "bin/evenkeel")
        } else {
            archive.append_data(&mut header, path, content)
        }
    };
    add("Dockerfile", tar::EntryType::Regular, 0o644, DOCKERFILE.as_bytes())?;
    add("root/bin/", tar::EntryType::Directory, 0o755, b"")?;
    add("root/bin/evenkeel", tar::EntryType::Regular, 0o755, &program.bytes)?;
    add("root/evenkeel", tar::EntryType::Symlink, 0o777, b"")?;
    add("root/tmp/", tar::EntryType::Directory, 0o1777, b"")?;
    add("state/", tar::EntryType::Directory, 0o700, b"")?;
    archive.into_inner()
}

/// Makes the image of the running program, unless it is there; tagged by its hash, its version and `latest`.
///
/// # Errors
/// If the program is not static, or the daemon cannot build it.
pub async fn build(engine: &DockerEngine, version: &str) -> Outcome<Built> {
    let program = tokio::task::spawn_blocking(Program::running).await;
    let program =
        program.map_err(|error| error.to_string()).and_then(|read| read.map_err(|error| error.to_string()));
    engine.ensure_image(&program.map_err(EngineError::Refused)?, &[version, "latest"]).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    /// A minimal ELF header with one program header of this type, pointing at a path behind it.
    fn elf(kind: u8, path: &[u8]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[32], file[54], file[56]) = (64, 56, 1);
        file[64] = kind;
        (file[64 + 8], file[64 + 32]) = (120, u8::try_from(path.len()).unwrap());
        file.extend_from_slice(path);
        file
    }

    #[test]
    fn a_program_that_needs_a_loader_is_refused_with_what_to_do() {
        let Err(error) = Program::from_bytes(elf(3, b"/lib64/ld.so\0")) else { panic!("taken") };
        let text = error.to_string();
        assert!(text.contains("/lib64/ld.so") && text.contains("RUSTFLAGS"), "{text}");
    }

    #[test]
    fn a_static_program_is_taken_and_what_is_no_program_is_not() {
        assert_eq!(interpreter(&elf(1, b"x")).unwrap(), None);
        for bad in [&b""[..], b"#!/bin/sh", b"\x7fELF\x01\x01", &elf(3, b"x")[..100]] {
            assert!(interpreter(bad).is_err());
        }
    }

    #[test]
    fn the_same_program_has_the_same_reference_and_context() {
        let program = || Program::from_bytes(elf(1, b"x")).unwrap();
        assert_eq!(program().reference(), program().reference());
        assert_eq!(context(&program()).unwrap(), context(&program()).unwrap());
        assert_ne!(program().reference(), Program::from_bytes(elf(1, b"y")).unwrap().reference());
    }
}
