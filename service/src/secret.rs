//! A text that is never shown by accident.

use std::fmt;

/// A secret: no `Display`, and its `Debug` shows nothing of it. Comparing two goes through
/// [`crate::token::matches`].
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text secret.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for where it has to go.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_it() {
        let secret = Secret::new("ek_hidden".to_owned());
        assert!(!format!("{secret:?} {:?}", Some(&secret)).contains("hidden"));
        assert_eq!(secret.expose(), "ek_hidden");
    }
}
