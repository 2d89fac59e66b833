//! A program that a task would run to get further than it may: `hostile ATTACK [ARGUMENT…]`.
//!
//! It is static, so that it runs in the node's image, which holds nothing else; `e2e/tests/hostile.rs` mounts
//! it. What it tried and what came of it goes to standard output, a line each, as `what: outcome`, where the
//! outcome is `done`, or the name of the error.

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "an attacker is not tidy"
)]

use std::{
    ffi::CString,
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::{ffi::OsStrExt, net::UnixStream},
    path::{Path, PathBuf},
    process::exit,
    time::{Duration, Instant},
};

/// The agent, process 1 of its container.
const AGENT: i32 = 1;
const AGENT_FILES: [&str; 11] =
    ["environ", "mem", "maps", "auxv", "stack", "syscall", "io", "fd/0", "fd/3", "exe", "root/evenkeel"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |at: usize| arguments.get(at).map_or("", String::as_str);
    match argument(1) {
        "read-agent" => read_agent(),
        "search-tokens" => search_tokens(),
        "privileges" => privileges(),
        "network" => network(argument(2), argument(3)),
        "write-outside" => write_outside(),
        "signals" => signals(),
        "fork-bomb" => fork_bomb(),
        "fill-tmp" => fill_memory_files(),
        "allocate" => allocate(),
        "daemons" => daemons(),
        "respawn" => respawn(),
        "nap" => std::thread::sleep(Duration::from_secs(3_600)),
        "endless" => endless(),
        "deep" => deep(),
        "descriptors" => descriptors(),
        "system-v" => system_v(),
        "victim" => victim(argument(2)),
        "neighbours" => neighbours(argument(2)),
        "kill-all" => say("kill(-1)", check(unsafe { libc::kill(-1, libc::SIGKILL) })),
        "look-around" => look_around(),
        other => {
            eprintln!("no attack is called {other:?}");
            exit(2);
        }
    }
}

/// Says what came of something, and flushes: the next attack may be the last.
fn say<T>(what: impl std::fmt::Display, outcome: io::Result<T>) {
    let outcome = match outcome {
        Ok(_) => "done".to_owned(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), name_of),
    };
    println!("{what}: {outcome}");
    io::stdout().flush().unwrap();
}

fn name_of(errno: i32) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::EACCES, "EACCES"),
        (libc::ENOENT, "ENOENT"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::EMFILE, "EMFILE"),
        (libc::ESRCH, "ESRCH"),
        (libc::ENOTDIR, "ENOTDIR"),
    ];
    known
        .iter()
        .find(|(code, _)| *code == errno)
        .map_or_else(|| format!("errno {errno}"), |(_, n)| (*n).to_owned())
}

fn check<T: Into<i64>>(returned: T) -> io::Result<()> {
    if returned.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn parent() -> i32 {
    // SAFETY: no arguments.
    unsafe { libc::getppid() }
}

/// Memory, environment and files of the agent, by every door that the kernel has.
fn read_agent() {
    say(format!("parent is {}", parent()), Ok(()));
    let threads = fs::read_dir(format!("/proc/{AGENT}/task")).into_iter().flatten().flatten();
    let mut places = vec![format!("/proc/{AGENT}")];
    places.extend(threads.map(|thread| thread.path().display().to_string()));
    for place in &places {
        for file in AGENT_FILES {
            let path = format!("{place}/{file}");
            let read = || {
                let mut bytes = [0; 64];
                fs::File::open(&path)?.read(&mut bytes)
            };
            say(&path, read());
        }
        say(format!("{place}/fd"), fs::read_dir(format!("{place}/fd")).map(Iterator::count));
    }
    // SAFETY: plain system calls; the buffers live as long as the calls.
    unsafe {
        say("ptrace attach", check(libc::ptrace(libc::PTRACE_ATTACH, AGENT, 0, 0)));
        say("ptrace seize", check(libc::ptrace(libc::PTRACE_SEIZE, AGENT, 0, 0)));
        let mut bytes = [0_u8; 64];
        let here = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let there = libc::iovec { iov_base: 0x40_0000 as *mut _, iov_len: bytes.len() };
        say("process_vm_readv", check(libc::process_vm_readv(AGENT, &here, 1, &there, 1, 0) as i64));
        say("process_vm_writev", check(libc::process_vm_writev(AGENT, &here, 1, &there, 1, 0) as i64));
        let pidfd = libc::syscall(libc::SYS_pidfd_open, AGENT, 0);
        say("pidfd_getfd", check(libc::syscall(libc::SYS_pidfd_getfd, pidfd, 0, 0)));
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        say("prlimit", check(libc::prlimit(AGENT, libc::RLIMIT_NOFILE, &limit.clone(), &mut limit)));
    }
    let score = fs::write(format!("/proc/{AGENT}/oom_score_adj"), "1000");
    say("first to be killed for memory", score);
}

/// Texts of the form of a token in everything that can be read from here.
fn search_tokens() {
    let mut found = Vec::new();
    let mut looked = 0;
    let mut look = |place: String, bytes: &[u8]| {
        looked += 1;
        if has_token(bytes) {
            found.push(place);
        }
    };
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["environ", "cmdline", "comm", "status"] {
            let path = entry.path().join(file);
            if let Ok(bytes) = fs::read(&path) {
                look(path.display().to_string(), &bytes);
            }
        }
    }
    let mut folders = vec![PathBuf::from("/")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() && !["/proc", "/sys"].contains(&path.to_str().unwrap_or_default()) {
                folders.push(path);
            } else if kind.is_file() && entry.metadata().is_ok_and(|file| file.len() < 64 << 20) {
                look(path.display().to_string(), &fs::read(&path).unwrap_or_default());
            }
        }
    }
    let mut fds: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .map(|fd| fd.file_name().display().to_string())
        .collect();
    fds.sort();
    // The last is the one that lists them.
    fds.pop();
    println!("own descriptors: {}", fds.join(" "));
    println!("looked at {looked} files; tokens in: {found:?}");
}

fn has_token(bytes: &[u8]) -> bool {
    let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    bytes.windows(46).any(|text| text.starts_with(b"ek_") && text[3..].iter().all(is_inside))
}

/// What only root could do.
fn privileges() {
    let path = |text: &str| CString::new(text).unwrap();
    let (proc_, tmp, none) = (path("proc"), path("/tmp"), path("none"));
    // SAFETY: plain system calls with live strings.
    unsafe {
        say("setuid(0)", check(libc::setuid(0)));
        say("setgid(0)", check(libc::setgid(0)));
        say("new user namespace", check(libc::unshare(libc::CLONE_NEWUSER)));
        say("new mount namespace", check(libc::unshare(libc::CLONE_NEWNS)));
        say("mount", check(libc::mount(none.as_ptr(), tmp.as_ptr(), proc_.as_ptr(), 0, std::ptr::null())));
        say("chroot", check(libc::chroot(tmp.as_ptr())));
        say("host name", check(libc::sethostname(none.as_ptr(), 4)));
        say("raw socket", check(libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP)));
        say("packet socket", check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)));
        say("nice -20", check(libc::setpriority(libc::PRIO_PROCESS, 0, -20)));
        let real_time = libc::sched_param { sched_priority: 1 };
        say("real time", check(libc::sched_setscheduler(0, libc::SCHED_FIFO, &real_time)));
        let device = path("/tmp/device");
        say("mknod", check(libc::mknod(device.as_ptr(), libc::S_IFBLK | 0o600, libc::makedev(8, 0))));
        say("bpf", check(libc::syscall(libc::SYS_bpf, 0, 0, 0)));
        say("module", check(libc::syscall(libc::SYS_init_module, 0, 0, 0)));
        say("keyring", check(libc::syscall(libc::SYS_keyctl, 0, -3, 0)));
        say("reboot", check(libc::reboot(libc::LINUX_REBOOT_CMD_CAD_OFF)));
    }
    for file in ["/dev/mem", "/dev/kmsg", "/dev/sda", "/proc/kcore", "/proc/sysrq-trigger"] {
        say(file, fs::OpenOptions::new().write(true).open(file));
    }
    say("score below others", fs::write("/proc/self/oom_score_adj", "-1000"));
}

/// The status line of an answer to `request`.
fn ask(address: &SocketAddr, request: &str) -> io::Result<String> {
    let wait = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(address, wait)?;
    stream.set_read_timeout(Some(wait))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 512];
    let read = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..read]).split(' ').nth(1).unwrap_or_default().to_owned())
}

/// The master's API without a token, the Docker socket, and what else listens where it should not.
fn network(master: &str, node: &str) {
    let address = master.to_socket_addrs().expect("the master has an address").next().unwrap();
    let fake = r#"{"name":"fake","ip":"10.0.0.1","allotted_cores":64.0,"memory_bytes":1073741824,"kinds":[],"version":"1","boot_id":"01930000-0000-7000-8000-000000000000"}"#;
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: evenkeel.work.v1\r\n";
    let guessed = &*format!("authorization: Bearer ek_{}\r\n", "A".repeat(43));
    for (method, path, headers, body) in [
        ("GET", "/v1/nodes".to_owned(), "", ""),
        ("GET", "/v1/tokens".to_owned(), "", ""),
        ("GET", "/v1/tasks".to_owned(), guessed, ""),
        ("POST", "/v1/tokens".to_owned(), "", r#"{"scopes":["admin"]}"#),
        ("POST", "/v1/tasks".to_owned(), "", r#"{"kind":"fib","input":{"n":1}}"#),
        ("POST", "/v1/nodes".to_owned(), "", fake),
        ("POST", "/v1/nodes".to_owned(), guessed, fake),
        ("POST", format!("/v1/nodes/{node}/report"), "", "{}"),
        (
            "POST",
            format!("/v1/nodes/{node}/exited"),
            "",
            r#"{"exit_code":137,"oom_killed":true,"reason":""}"#,
        ),
        ("POST", format!("/v1/nodes/{node}/drain"), "", "{}"),
        ("DELETE", format!("/v1/nodes/{node}"), "", ""),
        ("GET", format!("/v1/nodes/{node}/work"), upgrade, ""),
        ("PUT", "/v1/pools/default".to_owned(), "", r#"{"desired":0}"#),
    ] {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        println!("{method} {path}: {}", ask(&address, &request).unwrap_or_else(|error| error.to_string()));
    }
    for socket in ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock"] {
        say(socket, UnixStream::connect(socket));
    }
    for port in [2375, 2376] {
        let connected =
            TcpStream::connect_timeout(&SocketAddr::from((gateway(), port)), Duration::from_secs(2));
        println!("docker at port {port} of the host: {}", connected.map_or("refused", |_| "done"));
    }
}

fn gateway() -> [u8; 4] {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let default = routes
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|line| line.get(1) == Some(&"00000000"));
    default.and_then(|line| u32::from_str_radix(line[2], 16).ok()).unwrap_or_default().to_le_bytes()
}

fn write_outside() {
    for path in [
        "/evenkeel",
        "/new",
        "/etc/passwd",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/hostile",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/overcommit_memory",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/pids/pids.max",
        "/sys/fs/cgroup/cpu/cpu.cfs_quota_us",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/release_agent",
    ] {
        say(path, fs::OpenOptions::new().write(true).create(true).truncate(false).open(path));
    }
    say("remove the program", fs::remove_file("/evenkeel"));
    say("own directory", fs::write("mine", "x"));
}

/// Every signal there is, to the agent and to each of its threads, and one that lies about its sender.
fn signals() {
    let threads: Vec<i32> = fs::read_dir(format!("/proc/{AGENT}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| thread.file_name().to_str()?.parse().ok())
        .collect();
    let mut sent = 0;
    for _ in 0..20 {
        for signal in 1..=64 {
            // SAFETY: plain system calls; the information of a signal is numbers only.
            unsafe {
                sent += u32::from(libc::kill(AGENT, signal) == 0);
                for thread in &threads {
                    sent += u32::from(libc::syscall(libc::SYS_tgkill, AGENT, *thread, signal) == 0);
                }
                // Queued with data of our own: from nobody that is seen here, like one from outside.
                let mut information = [0_u8; 128];
                information[..4].copy_from_slice(&signal.to_ne_bytes());
                information[8..12].copy_from_slice(&libc::SI_QUEUE.to_ne_bytes());
                let queued = libc::syscall(libc::SYS_rt_sigqueueinfo, AGENT, signal, information.as_ptr());
                sent += u32::from(queued == 0);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("sent {sent} signals to {} threads", threads.len());
}

fn fork_bomb() {
    loop {
        // SAFETY: fork in a program of one thread.
        if unsafe { libc::fork() } < 0 {
            std::thread::yield_now();
        }
    }
}

fn fill_memory_files() {
    let mut filled = 0_u64;
    for folder in ["/tmp", "/dev/shm", "."] {
        let mut file = fs::File::create(Path::new(folder).join("filler")).unwrap();
        let outcome = loop {
            match file.write(&[1; 65_536]) {
                Ok(written) => filled += written as u64,
                Err(error) => break Err::<(), _>(error),
            }
        };
        say(folder, outcome);
    }
    println!("filled {} MiB", filled >> 20);
}

fn allocate() {
    let mut kept = Vec::new();
    loop {
        kept.push(vec![1_u8; 16 << 20]);
        std::hint::black_box(&kept);
    }
}

/// Starts this program again without a trace of whose it is: no environment, a session and a group of its own.
fn start_hidden(attack: &str) {
    let (program, attack) = (CString::new("/proc/self/exe").unwrap(), CString::new(attack).unwrap());
    let (arguments, nothing) = ([program.as_ptr(), attack.as_ptr(), std::ptr::null()], [std::ptr::null()]);
    // SAFETY: fork in a program of one thread; the strings live until exec.
    unsafe {
        if libc::fork() == 0 {
            libc::setsid();
            if libc::fork() == 0 {
                for descriptor in 0..3 {
                    libc::close(descriptor);
                }
                libc::execve(program.as_ptr(), arguments.as_ptr(), nothing.as_ptr());
                libc::_exit(1);
            }
            libc::_exit(0);
        }
    }
}

fn daemons() {
    for _ in 0..10 {
        start_hidden("nap");
    }
    // SAFETY: fork in a program of one thread. The third is a child of the agent itself.
    unsafe {
        if libc::fork() == 0 {
            libc::signal(libc::SIGTERM, libc::SIG_IGN);
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            std::thread::sleep(Duration::from_secs(3_600));
        }
        let sibling = libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0);
        if sibling == 0 {
            libc::setsid();
            std::thread::sleep(Duration::from_secs(3_600));
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    println!("left 12 processes behind");
}

/// Is never there to be killed: each life forks the next and ends.
fn respawn() {
    start_hidden("respawn");
    if std::env::var_os("EVENKEEL_TASK_ID").is_some() {
        std::thread::sleep(Duration::from_millis(300));
        println!("a process goes from life to life");
    }
}

fn endless() {
    let line = [b'x'; 65_536];
    loop {
        let _closed = io::stdout().write_all(&line);
        let _closed = io::stderr().write_all(&line);
    }
}

/// A directory that is hard to remove: deep, without rights, full of names, with a link out of it.
fn deep() {
    std::os::unix::fs::symlink("/", "link").unwrap();
    fs::create_dir("many").unwrap();
    for number in 0..20_000 {
        fs::write(format!("many/{number}"), "").unwrap();
    }
    for _ in 0..5_000 {
        fs::create_dir("d").unwrap();
        std::env::set_current_dir("d").unwrap();
    }
    let here = CString::new(".").unwrap();
    // SAFETY: a live string.
    say("no rights", check(unsafe { libc::chmod(here.as_ptr(), 0) }));
    println!("made 5000 levels and 20000 files");
}

fn descriptors() {
    let mut kept = Vec::new();
    let outcome = loop {
        match io::pipe() {
            Ok(pipe) if kept.len() < 20_000 => kept.push(pipe),
            Ok(_) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    say(format!("{} pipes", kept.len()), outcome);
    std::thread::sleep(Duration::from_secs(3));
}

/// Memory that belongs to no process and no file.
fn system_v() {
    let mut bytes = 0_u64;
    for key in 1..=16 {
        // SAFETY: the segment is attached where the kernel says, and has this size.
        unsafe {
            let id = libc::shmget(key, 4 << 20, libc::IPC_CREAT | 0o600);
            let at = libc::shmat(id, std::ptr::null(), 0);
            if at as isize != -1 {
                std::ptr::write_bytes(at.cast::<u8>(), 1, 4 << 20);
                bytes += 4 << 20;
            }
        }
    }
    let (mut queues, mut semaphores) = (0, 0);
    for key in 0..2_000 {
        // SAFETY: numbers only.
        unsafe {
            queues += u32::from(libc::msgget(key, libc::IPC_CREAT | 0o600) >= 0);
            semaphores += u32::from(libc::semget(key, 200, libc::IPC_CREAT | 0o600) >= 0);
        }
    }
    println!("left {} MiB of shared memory, {queues} queues, {semaphores} sets of semaphores", bytes >> 20);
}

fn victim(secret: &str) {
    fs::write("secret", secret).unwrap();
    std::thread::sleep(Duration::from_secs(30));
    println!("{}", fs::read_to_string("secret").unwrap_or_default());
}

/// What a task can do to the other tasks of its node; waits until there is one.
fn neighbours(change: &str) {
    let own = std::env::current_dir().unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        for entry in fs::read_dir("/tmp").unwrap().flatten().filter(|entry| entry.path() != own) {
            let file = entry.path().join("secret");
            if let Ok(secret) = fs::read_to_string(&file) {
                println!("read: {secret}");
                say("changed", fs::write(&file, change));
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("no neighbour");
}

/// What is left here of others.
fn look_around() {
    let own = std::env::current_dir().unwrap();
    for folder in ["/tmp", "/dev/shm"] {
        for entry in fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path() != own) {
            println!("left: {}", String::from_utf8_lossy(entry.path().as_os_str().as_bytes()));
        }
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if pid.is_some_and(|pid| pid != 1 && pid != std::process::id()) {
            println!(
                "left: process {}",
                fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default()
            );
        }
    }
    let rows = |file: &str| fs::read_to_string(file).unwrap_or_default().lines().count().saturating_sub(1);
    println!("shared memory: {}", rows("/proc/sysvipc/shm"));
    println!("queues: {}", rows("/proc/sysvipc/msg"));
    fs::write("filler", vec![1; 8 << 20]).unwrap();
    println!("wrote 8 MiB");
}
