//! Stands between a program and its PostgreSQL server, and cuts a connection at its next `COMMIT`.
//!
//! Connections pass through as they are. Of what the program says the relay reads as much of the protocol (version 3)
//! as it takes to know a prepared `COMMIT` when it comes.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering},
    },
    thread,
};

/// Where the connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cut {
    /// The server never gets the `COMMIT`.
    Before = 1,
    /// The server gets it, and both sides see the connection end at once.
    At = 2,
    /// The server answers it, and the program never gets the answer.
    After = 3,
}

impl Cut {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Before, Self::At, Self::After];
}

#[derive(Debug, Default)]
struct Orders {
    /// A [`Cut`] as its number, or 0.
    next: AtomicU8,
    /// Whether those that come are turned away.
    closed: AtomicBool,
    stays_closed: AtomicBool,
    cuts: AtomicU32,
    over: AtomicBool,
}

impl Orders {
    /// What is to be done at a `COMMIT` that comes now.
    fn take(&self) -> u8 {
        let cut = self.next.swap(0, Ordering::SeqCst);
        if cut != 0 {
            self.closed.store(self.stays_closed.load(Ordering::SeqCst), Ordering::SeqCst);
            self.cuts.fetch_add(1, Ordering::SeqCst);
        }
        cut
    }
}

/// The relay, on a loopback port of its own. Dropping it takes no more connections.
#[derive(Debug)]
pub struct Relay {
    /// Its port.
    pub port: u16,
    orders: Arc<Orders>,
}

impl Relay {
    /// One in front of this loopback port.
    ///
    /// # Panics
    /// If there is no port for it.
    #[must_use]
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let orders = Arc::new(Orders::default());
        let of_thread = Arc::clone(&orders);
        thread::spawn(move || {
            for program in listener.incoming().map_while(Result::ok) {
                if of_thread.over.load(Ordering::SeqCst) {
                    return;
                }
                if of_thread.closed.load(Ordering::SeqCst) {
                    continue;
                }
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)) {
                    let orders = Arc::clone(&of_thread);
                    thread::spawn(move || pass(&orders, &program, &server));
                }
            }
        });
        Self { port, orders }
    }

    /// Cuts the connection that says `COMMIT` next; after that new connections are turned away if `closes` says so.
    pub fn cut_next(&self, cut: Cut, closes: bool) {
        self.orders.stays_closed.store(closes, Ordering::SeqCst);
        self.orders.next.store(cut as u8, Ordering::SeqCst);
    }

    /// Takes new connections again.
    pub fn open(&self) {
        self.orders.closed.store(false, Ordering::SeqCst);
    }

    /// How many connections were cut.
    #[must_use]
    pub fn cuts(&self) -> u32 {
        self.orders.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.orders.over.store(true, Ordering::SeqCst);
        // Wakes it up to see that.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// One connection, until either side ends it or it is cut.
fn pass(orders: &Orders, program: &TcpStream, server: &TcpStream) {
    let silent = Arc::new(AtomicBool::new(false));
    let answers = {
        let (mut from, mut to) = (server.try_clone().unwrap(), program.try_clone().unwrap());
        let silent = Arc::clone(&silent);
        thread::spawn(move || {
            let mut bytes = [0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                // The answer to a commit that is cut after it: it is there, and goes no further.
                if silent.load(Ordering::SeqCst) || to.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        })
    };
    // An error is the end of the connection, whoever made it.
    let _ended = listen(orders, &silent, program, server);
    if !silent.load(Ordering::SeqCst) {
        let _ = server.shutdown(Shutdown::Both);
        let _ = program.shutdown(Shutdown::Both);
    }
    let _ = answers.join();
}

/// Passes on what the program says.
fn listen(
    orders: &Orders,
    silent: &AtomicBool,
    mut program: &TcpStream,
    mut server: &TcpStream,
) -> io::Result<()> {
    let mut commits = BTreeSet::new();
    let (mut begun, mut cut) = (false, 0);
    loop {
        let message = Message::read(&mut program, begun)?;
        // What comes first has no kind; the server answers a wish for TLS, and is greeted after that.
        begun |= message.kind.is_none() && !message.body.starts_with(&80_877_103_u32.to_be_bytes());
        let mut words = message.body.split(|byte| *byte == 0);
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let commits_now = match message.kind {
            Some(b'P') if second == b"COMMIT" => {
                commits.insert(first.to_vec());
                false
            }
            // It is bound, executed and synced; the server commits when it is executed.
            Some(b'B') => commits.contains(second),
            _ => false,
        };
        if commits_now {
            cut = orders.take();
        }
        if cut == Cut::Before as u8 {
            return Ok(());
        }
        let is_over = cut != 0 && message.kind == Some(b'S');
        silent.fetch_or(is_over && cut == Cut::After as u8, Ordering::SeqCst);
        server.write_all(&message.whole)?;
        if is_over {
            return Ok(());
        }
    }
}

/// What a program says at once.
struct Message {
    kind: Option<u8>,
    body: Vec<u8>,
    whole: Vec<u8>,
}

impl Message {
    fn read(from: &mut impl Read, has_kind: bool) -> io::Result<Self> {
        let mut whole = vec![0; if has_kind { 5 } else { 4 }];
        from.read_exact(&mut whole)?;
        let kind = has_kind.then(|| whole[0]);
        let length = u32::from_be_bytes(whole[whole.len() - 4..].try_into().unwrap());
        let mut body = vec![0; usize::try_from(length).unwrap().saturating_sub(4)];
        from.read_exact(&mut body)?;
        whole.extend_from_slice(&body);
        Ok(Self { kind, body, whole })
    }
}
