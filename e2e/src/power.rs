//! A disk of a test's own whose power can be cut: an ext4 file system on a loop device.
//!
//! [`Disk::cut`] shuts the file system down without writing its journal out, which the kernel has for exactly this
//! purpose: from then on nothing reaches the device, and every write and sync fails. After [`Disk::restore`] there
//! is what was synced, and of the rest what the kernel had written out by itself before, as after a real cut. What
//! a drive keeps in a cache of its own when it was told to flush is not played: the device is a file.
//!
//! The mount is in a mount namespace of the thread that made it, and of the processes it starts; the device and
//! the file behind it are released with their last user. So the kernel takes all of it away, however a test ends.

use crate::command::{run, try_run};
use rustix::{
    ioctl::{self, Setter, opcode},
    thread::{UnshareFlags, unshare_unsafe},
};
use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Its size; the file behind it has holes where nothing was written.
const BYTES: u64 = 1 << 30;
/// Who still has a file open when a disk is taken away ends within this.
const WITHIN: Duration = Duration::from_secs(30);
/// `EXT4_IOC_SHUTDOWN` of the kernel's ext4.h, with its flag to leave the journal unwritten.
const SHUTDOWN: ioctl::Opcode = opcode::read::<u32>(b'X', 125);
const WITHOUT_JOURNAL: u32 = 2;

/// The disk; dropping it takes it away. Its users have to be gone by then.
#[derive(Debug)]
pub struct Disk {
    folder: TempDir,
    device: PathBuf,
    /// Keeps the device while nothing is mounted.
    _held: File,
}

impl Disk {
    /// Makes one with an empty file system, and mounts it for this thread and what it starts from now on.
    ///
    /// # Panics
    /// If this is not root on a kernel with loop devices and ext4.
    #[must_use]
    #[allow(unsafe_code, reason = "a thread may be told apart from the others by the kernel")]
    pub fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "loop devices are made by root: run this test as root");
        let folder = tempfile::Builder::new().prefix("evenkeel-disk-").tempdir().unwrap();
        // A server that runs as another user has to get through.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(BYTES).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        // SAFETY: file descriptors stay shared; what this thread's mounts are concerns no memory.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        run(Command::new("mount").args(["--make-rprivate", "/"]));
        let device = PathBuf::from(run(Command::new("losetup").args(["--find", "--show"]).arg(&image)));
        let held = File::open(&device).unwrap();
        // It is in use: the kernel detaches it with its last user. The same is true of the file.
        run(Command::new("losetup").arg("--detach").arg(&device));
        fs::remove_file(image).unwrap();
        fs::create_dir(folder.path().join("disk")).unwrap();
        let disk = Self { folder, device, _held: held };
        disk.mount();
        disk
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// The loop device.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-t", "ext4"]).arg(&self.device).arg(self.path()));
    }

    /// Puts all that is written on the device. For what is not meant to be lost, as a server that was just made.
    ///
    /// # Panics
    /// If it cannot.
    pub fn sync(&self) {
        rustix::fs::syncfs(File::open(self.path()).unwrap()).unwrap();
    }

    /// Cuts the power: what was not synced by now never will be.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[allow(unsafe_code, reason = "there is no other way to say it to the kernel")]
    pub fn cut(&self) {
        let root = File::open(self.path()).unwrap();
        // SAFETY: ext4 reads one u32, and this is a directory of an ext4.
        unsafe { ioctl::ioctl(&root, Setter::<SHUTDOWN, u32>::new(WITHOUT_JOURNAL)) }.unwrap();
    }

    /// The power is back: takes the dead file system away, once its users are gone, and mounts what is on the device.
    ///
    /// # Panics
    /// If somebody goes on using it, or what is there cannot be mounted.
    pub fn restore(&mut self) {
        self.unmount().unwrap();
        self.mount();
    }

    fn unmount(&self) -> Result<(), String> {
        let end = Instant::now() + WITHIN;
        loop {
            let ran = try_run(Command::new("umount").arg(self.path()), "");
            match ran.code {
                0 => return Ok(()),
                _ if Instant::now() >= end => return Err(format!("{ran:?}")),
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = self.unmount();
        if !thread::panicking() {
            unmounted.unwrap();
        }
    }
}
