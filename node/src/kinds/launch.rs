//! Starting a program without copying the node.
//!
//! `fork(2)` copies the page tables of the node, and each page that it then writes to is copied once more:
//! more work than a small program itself. Here the child shares the node's memory, and the thread that
//! starts it stands still until it has become its program: `clone(2)` with `CLONE_VM | CLONE_VFORK`, as
//! `posix_spawn(3)` does it, which cannot ask for the child's death with its parent.
//!
//! What the child does in the node's memory is bounded to system calls on data that was made before.

use super::fence;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr},
    io,
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicI32, Ordering},
    },
};

/// Stack of the child until it is its program, in units of 16 bytes: a few calls deep, and nothing recurses.
const STACK_UNITS: usize = 1_024;
/// Highest number of a signal.
const LAST_SIGNAL: libc::c_int = 64;
/// What runs a file that is executable and names no interpreter, as `execvp(3)` has it.
const SHELL: &std::ffi::CStr = c"/bin/sh";
/// Exit code of a child that never became its program; nobody sees it.
const EXIT_NO_PROGRAM: libc::c_int = 127;

/// A program that is ready to be started.
#[derive(Debug)]
pub(super) struct Program {
    /// The files that it may be, in the order in which they are tried.
    files: Vec<CString>,
    arguments: Vec<CString>,
    /// `NAME=value`.
    environment: Vec<CString>,
    directory: CString,
}

impl Program {
    /// The program `argv[0]` with all of `argv` as its arguments, in this directory and with this
    /// environment, whose `PATH` says where it is looked for.
    ///
    /// # Errors
    /// A text has a zero byte in it, or there is no program.
    pub(super) fn new(
        argv: &[&str],
        environment: &BTreeMap<&str, &OsStr>,
        directory: &Path,
    ) -> io::Result<Self> {
        let Some(name) = argv.first() else { return Err(io::ErrorKind::InvalidInput.into()) };
        let path = environment.get("PATH").map_or(&b""[..], |path| path.as_bytes());
        let files = if name.is_empty() || name.contains('/') {
            vec![CString::new(*name)?]
        } else {
            let in_folder = |folder: &[u8]| {
                // An empty part of PATH is the present directory.
                let between: &[u8] = if folder.is_empty() { b"" } else { b"/" };
                CString::new([folder, between, name.as_bytes()].concat())
            };
            path.split(|&byte| byte == b':').map(in_folder).collect::<Result<_, _>>()?
        };
        let variable = |(name, value): (&&str, &&OsStr)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        Ok(Self {
            files,
            arguments: argv.iter().map(|argument| CString::new(*argument)).collect::<Result<_, _>>()?,
            environment: environment.iter().map(variable).collect::<Result<_, _>>()?,
            directory: CString::new(directory.as_os_str().as_bytes())?,
        })
    }

    /// Starts it as the leader of a process group of its own, with these three as its standard input, output
    /// and error. It dies with the calling thread and has its nice value. The answer is its process id and,
    /// where the kernel knows them (5.2), a descriptor that becomes readable when it has ended.
    ///
    /// # Errors
    /// No room for another process, no such program, no permission.
    #[allow(
        unsafe_code,
        reason = "no safe library starts a child in shared memory that dies with its parent"
    )]
    pub(super) fn start(&self, stdio: [BorrowedFd<'_>; 3]) -> io::Result<(i32, Option<OwnedFd>)> {
        let arguments = pointers(&self.arguments);
        // The shell, the place for the file, and the arguments but for the first.
        let rest = arguments.get(1..).unwrap_or_default();
        let mut by_shell = [&[SHELL.as_ptr(), ptr::null()], rest].concat();
        let files = pointers(&self.files);
        let environment = pointers(&self.environment);
        let plan = Plan {
            stdio: stdio.map(|fd| fd.as_raw_fd()),
            directory: self.directory.as_ptr(),
            files: files.as_ptr(),
            arguments: arguments.as_ptr(),
            by_shell: by_shell.as_mut_ptr(),
            environment: environment.as_ptr(),
            is_fenced: fence::is_wanted(),
            handled: handled_signals(),
            error: AtomicI32::new(0),
        };
        let mut stack = [MaybeUninit::<u128>::uninit(); STACK_UNITS];
        let mut pidfd: libc::c_int = -1;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        let all_signals = signal_set(true);
        let mut before = signal_set(false);
        // SAFETY: the sets are live locals. A handler of ours must not run in the child, whose memory is ours.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all_signals, &raw mut before) };
        // SAFETY: the stack, the plan and all that it points to are live locals of this function, which stands
        // still until the child has left them (CLONE_VFORK). The stack grows down from its aligned end.
        let pid = unsafe {
            let top = stack.as_mut_ptr().add(STACK_UNITS);
            let plan = (&raw const plan).cast_mut();
            libc::clone(child, top.cast(), flags, plan.cast(), &raw mut pidfd)
        };
        let error = io::Error::last_os_error();
        // SAFETY: as above.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
        if pid < 0 {
            return Err(error);
        }
        // SAFETY: the kernel has just made it, and nobody else knows it.
        let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
        match plan.error.load(Ordering::SeqCst) {
            0 => Ok((pid, pidfd)),
            code => {
                // It is about to end, or has.
                while unsafe { libc::waitpid(pid, ptr::null_mut(), 0) } < 0
                    && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
                {}
                Err(io::Error::from_raw_os_error(code))
            }
        }
    }
}

/// What a child is to do; everything is made before it is there.
struct Plan {
    stdio: [libc::c_int; 3],
    directory: *const libc::c_char,
    /// Ends with null, as the following do.
    files: *const *const libc::c_char,
    arguments: *const *const libc::c_char,
    by_shell: *mut *const libc::c_char,
    environment: *const *const libc::c_char,
    is_fenced: bool,
    /// Signals that are not left as a program expects them, as bits from number 1 on.
    handled: u64,
    /// Set by a child that cannot become its program.
    error: AtomicI32,
}

/// Pointers to these texts, and null.
fn pointers(texts: &[CString]) -> Vec<*const libc::c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// All signals, or none.
#[allow(unsafe_code, reason = "sets of signals are in no safe library that we use")]
fn signal_set(all: bool) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: both initialise the set that they are given.
    unsafe {
        if all {
            libc::sigfillset(set.as_mut_ptr())
        } else {
            libc::sigemptyset(set.as_mut_ptr())
        };
        set.assume_init()
    }
}

/// The life of a child until it is its program. It has the node's memory: no allocation, no lock, no panic.
#[allow(unsafe_code, reason = "see the module")]
extern "C" fn child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `start` gives a plan that lives longer than this child uses it.
    let plan = unsafe { &*plan.cast::<Plan>() };
    // SAFETY: `start` made the plan.
    let code = unsafe { become_program(plan) };
    plan.error.store(code, Ordering::SeqCst);
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(EXIT_NO_PROGRAM) }
}

/// Returns only if it cannot; the error's number.
///
/// # Safety
/// To be called in a child, with a plan whose pointers are good.
#[allow(unsafe_code, reason = "see the module")]
unsafe fn become_program(plan: &Plan) -> libc::c_int {
    // SAFETY: system calls on what the plan points to. `errno` is that of the thread that stands still.
    unsafe {
        reset_signals(plan.handled);
        // A node that is killed takes its commands along. Best effort.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::setpgid(0, 0) < 0 || libc::chdir(plan.directory) < 0 {
            return errno();
        }
        for (target, &source) in (0..).zip(&plan.stdio) {
            if libc::dup2(source, target) < 0 {
                return errno();
            }
        }
        if plan.is_fenced {
            // Best effort too: there are kernels without.
            let _ = fence::fence();
        }
        let none = signal_set(false);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        let (mut file, mut result) = (plan.files, libc::ENOENT);
        while !(*file).is_null() {
            libc::execve(*file, plan.arguments, plan.environment);
            let mut code = errno();
            if code == libc::ENOEXEC {
                *plan.by_shell.add(1) = *file;
                libc::execve(SHELL.as_ptr(), plan.by_shell, plan.environment);
                code = libc::ENOEXEC;
            }
            match code {
                libc::EACCES => result = code,
                libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
                _ => return code,
            }
            file = file.add(1);
        }
        result
    }
}

/// Signals with a handler of ours, and the one that we ignore (SIGPIPE), as bits from number 1 on. Looked at
/// once, before the first program is started: the node has made its handlers by then, and makes no other.
fn handled_signals() -> u64 {
    static HANDLED: OnceLock<u64> = OnceLock::new();
    *HANDLED.get_or_init(|| {
        (1..=LAST_SIGNAL).filter(|&signal| is_handled(signal)).fold(0, |all, signal| all | bit(signal))
    })
}

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

#[allow(unsafe_code, reason = "what is done about a signal is told by no safe library that we use")]
fn is_handled(signal: libc::c_int) -> bool {
    // SAFETY: numbers and function pointers, for which all zeros (the default) is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is a live local; a number that is no signal of ours to look at is refused.
    let known = unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } == 0;
    let handler = action.sa_sigaction;
    known && handler != libc::SIG_DFL && (handler != libc::SIG_IGN || signal == libc::SIGPIPE)
}

/// Takes our handlers away, whose code would run on the node's memory, and lets a closed pipe end the
/// program, which we ourselves ignore.
///
/// # Safety
/// To be called in a child.
#[allow(unsafe_code, reason = "see the module")]
unsafe fn reset_signals(handled: u64) {
    // SAFETY: numbers and function pointers, for which all zeros (the default) is a value.
    let action: libc::sigaction = unsafe { std::mem::zeroed() };
    for signal in (1..=LAST_SIGNAL).filter(|&signal| handled & bit(signal) != 0) {
        // SAFETY: `action` is a live local.
        unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
    }
}

#[allow(unsafe_code, reason = "see the module")]
fn errno() -> libc::c_int {
    // SAFETY: it is always there.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use rustix::process::{Pid, WaitOptions, waitpid};
    use std::{
        fs::{File, Permissions, set_permissions, write},
        io::{Read, Seek},
        os::{fd::AsFd, unix::fs::PermissionsExt},
    };

    /// What a program prints, and its exit code.
    fn run(argv: &[&str], path: &str, directory: &Path) -> io::Result<(String, i32)> {
        let environment = BTreeMap::from([("PATH", OsStr::new(path))]);
        let program = Program::new(argv, &environment, directory)?;
        let (null, mut out) = (File::open("/dev/null")?, tempfile::tempfile()?);
        let (pid, pidfd) = program.start([null.as_fd(), out.as_fd(), out.as_fd()])?;
        assert!(pidfd.is_some());
        let ended = waitpid(Pid::from_raw(pid), WaitOptions::empty())?;
        let mut text = String::new();
        out.rewind()?;
        out.read_to_string(&mut text)?;
        Ok((text, ended.and_then(|(_, status)| status.exit_status()).unwrap_or(-1)))
    }

    fn script(path: &Path, text: &str, mode: u32) {
        write(path, text).unwrap();
        set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn it_is_a_group_of_its_own_in_its_directory_and_takes_signals_as_any_program() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "pwd; cut -d' ' -f5 /proc/$$/stat; echo $$; grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status";
        let (text, code) = run(&["sh", "-c", lines], "/usr/bin:/bin", folder.path()).unwrap();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!((lines[0], code), (folder.path().to_str().unwrap(), 0));
        assert_eq!(lines[1], lines[2], "the group is named after its leader");
        let sigpipe = 1_u64 << (libc::SIGPIPE - 1);
        let set = |name: &str| {
            let line = lines.iter().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.rsplit('\t').next().unwrap(), 16).unwrap()
        };
        assert_eq!((set("SigBlk"), set("SigIgn") & sigpipe), (0, 0));
    }

    #[test]
    fn it_is_looked_for_as_a_shell_does() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        script(&at("plain"), "echo $0 $1\n", 0o755);
        script(&at("locked"), "echo no\n", 0o644);
        let path = format!("/nonexistent:{}:/usr/bin:/bin", folder.path().display());
        let by_shell = run(&["plain", "one"], &path, folder.path()).unwrap();
        assert_eq!(by_shell, (format!("{} one\n", at("plain").display()), 0), "no interpreter is named");
        assert_eq!(run(&["./plain", "two"], "", folder.path()).unwrap().0, "./plain two\n");
        assert_eq!(run(&["plain", "three"], "", folder.path()).unwrap().0, "plain three\n");
        let kind = |argv: &[&str]| run(argv, &path, folder.path()).unwrap_err().kind();
        assert_eq!(kind(&["no such program"]), io::ErrorKind::NotFound);
        assert_eq!(kind(&["/no/such/program"]), io::ErrorKind::NotFound);
        assert_eq!(kind(&["locked"]), io::ErrorKind::PermissionDenied);
        assert_eq!(kind(&["zero\0byte"]), io::ErrorKind::InvalidInput);
        assert_eq!(kind(&[]), io::ErrorKind::InvalidInput);
        assert_eq!(kind(&[""]), io::ErrorKind::NotFound);
        let gone = run(&["true"], &path, &at("gone")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound, "its directory");
    }

    #[test]
    fn a_child_that_cannot_be_its_program_is_no_zombie() {
        let before = waitpid(None, WaitOptions::NOHANG);
        assert!(before.is_err(), "{before:?}");
        run(&["/no/such/program"], "", Path::new("/")).unwrap_err();
        let after = waitpid(None, WaitOptions::NOHANG);
        assert!(after.is_err(), "{after:?}");
    }
}
