//! Whom to talk to, with which token, for how long.

use crate::tls::Trust;
use session::retry::Policy;
use std::{fmt, time::Duration};

/// A bearer token. Never shown, not even by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token from its text, white space around it removed (files end with a line end).
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Token {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Configuration of a [`crate::Client`].
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The masters, `http://` or `https://`; the next is tried when one cannot be reached or refuses (503).
    pub urls: Vec<String>,
    /// Sent to these URLs and nowhere else.
    pub token: Option<Token>,
    /// Whose certificates are trusted. Needed for `https`.
    pub trust: Option<Trust>,
    /// Bounds of time.
    pub timeouts: Timeouts,
    /// Bounds of trying again.
    pub retry: Policy,
}

impl ClientConfig {
    /// One or several masters, separated by commas; everything else at its default. With several it is tried for
    /// longer than it takes until another one leads.
    #[must_use]
    pub fn new(urls: &str) -> Self {
        let urls: Vec<String> =
            urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
        let retry = if urls.len() > 1 { Policy::SEVERAL } else { Policy::default() };
        Self { urls, token: None, trust: None, timeouts: Timeouts::default(), retry }
    }

    /// With this token.
    #[must_use]
    pub fn with_token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }

    /// With this trust.
    #[must_use]
    pub fn with_trust(mut self, trust: Trust) -> Self {
        self.trust = Some(trust);
        self
    }

    /// With these bounds of trying again.
    #[must_use]
    pub const fn with_retry(mut self, retry: Policy) -> Self {
        self.retry = retry;
        self
    }
}

/// Bounds of time of one attempt.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To connect, TLS included; 3 s by default.
    pub connect: Duration,
    /// From connected to the whole answer, beside the `wait` that was asked for; 10 s by default.
    pub request: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(3), request: Duration::from_secs(10) }
    }
}
