//! What a command may not do to the agent of its container, although both are the same user.
//!
//! Limits of a process can be lowered by any other of its user (prlimit(2)), also where it is hidden: no file
//! may be opened any more, and the node is of no use. In a container of its own a command is therefore started
//! with a system call filter (seccomp(2)) that lets it set the limits of nobody but itself. It stays with
//! all that the command starts.

use std::io;

/// Offsets in `struct seccomp_data`, see seccomp(2); numbers are little-endian where we run.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// `prlimit64` in each of the architectures whose programs run on this one.
#[cfg(target_arch = "x86_64")]
const CALLS: [(u32, u32); 2] = [(0xc000_003e, 302), (0x4000_0003, 340)];
#[cfg(target_arch = "aarch64")]
const CALLS: [(u32, u32); 2] = [(0xc000_00b7, 261), (0x4000_0028, 369)];
/// Bit of the numbers of x32, which is x86-64 with short pointers.
const X32: u32 = 0x4000_0000;

const LENGTH: usize = 13;

const fn statement(code: u32, value: u32) -> libc::sock_filter {
    // All codes are below 2¹⁶.
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

/// Goes on `yes` or `no` instructions further.
const fn compare(value: u32, yes: u8, no: u8) -> libc::sock_filter {
    let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k: value }
}

/// The filter of a command with this process id.
const fn filter(own: u32) -> [libc::sock_filter; LENGTH] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let [(native, of_native), (older, of_older)] = CALLS;
    [
        statement(LOAD, ARCHITECTURE),
        compare(native, 0, 3),
        statement(LOAD, NUMBER),
        statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, !X32),
        compare(of_native, 3, 6),
        compare(older, 0, 5),
        statement(LOAD, NUMBER),
        compare(of_older, 0, 3),
        // Whose limits: 0 is the caller.
        statement(LOAD, FIRST_ARGUMENT),
        compare(0, 1, 0),
        compare(own, 0, 1),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
        // The low bits are the error's number.
        statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ]
}

/// Whether the commands of this process are to be fenced in: it is the first of a container, so that nothing
/// there is a user's own.
pub(super) fn is_wanted() -> bool {
    std::process::id() == 1
}

/// Fences this process in, and all that it starts, for good. Allocates nothing and takes no lock, so that a
/// child can call it that is not its program yet.
///
/// # Errors
/// The kernel has no such filters.
#[allow(unsafe_code, reason = "system call filters are in no safe library that we use")]
pub(super) fn fence() -> io::Result<()> {
    let mut filter = filter(std::process::id());
    // 13 fits.
    let program = libc::sock_fprog { len: LENGTH as u16, filter: filter.as_mut_ptr() };
    // Without it only root may set a filter. A container of ours has it anyway.
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: the program and its instructions live until the kernel has copied them.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use std::{os::unix::process::CommandExt, process::Command};

    /// Whether a fenced shell can do this.
    fn can(script: &str) -> bool {
        let mut command = Command::new("sh");
        // SAFETY: what is called allocates nothing and takes no lock.
        unsafe { command.args(["-c", script]).pre_exec(fence) };
        command.status().unwrap().success()
    }

    #[test]
    fn a_command_sets_its_own_limits_and_those_of_nobody_else() {
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(can("ulimit -n 100 && sh -c 'ulimit -n 50'"));
        assert!(can("prlimit --pid $$ --nofile=100:100"));
        assert!(!can(&format!("prlimit --pid {} --nofile=100:100", other.id())));
        assert!(!can("sleep 5 & prlimit --pid $! --nofile=100:100; result=$?; kill $!; exit $result"));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
