//! What is wrong with a TOML text, told without what stands there.

/// Where the mistake is and what it is, without the line itself: it may hold a password.
#[must_use]
pub fn place_and_message(text: &str, error: &toml::de::Error) -> String {
    let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}
