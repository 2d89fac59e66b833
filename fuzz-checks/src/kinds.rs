//! A `kinds.toml`.

use crate::within;
use protocol::{
    form::check_name,
    kinds_file::{self, MAX_KINDS, OwnKind},
};
use std::collections::BTreeSet;

/// What a TOML tree takes in memory beside its text: `a=1` is three bytes, and a key and a value in a map.
const TIMES: usize = 400;

/// What is taken is within the bounds, and what is told of it is read as the same by whoever is told.
pub fn kinds(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let own = match within(input, TIMES, || kinds_file::parse(text)) {
        Ok(own) => own,
        Err(error) => return assert!(error.to_string().starts_with("kinds.toml: ")),
    };
    assert!(own.len() <= MAX_KINDS);
    let names: BTreeSet<&str> = own.iter().map(|kind| kind.info.name.as_str()).collect();
    assert_eq!(names.len(), own.len(), "two of one name");
    own.iter().for_each(one);
}

fn one(kind: &OwnKind) {
    check_name("its name", &kind.info.name).expect("the master takes the name too");
    // What an operating system takes for a program, an argument and a variable.
    assert!(kind.command.first().is_some_and(|program| !program.is_empty()));
    assert!(kind.command.iter().all(|part| !part.contains('\0')));
    assert!(kind.env.iter().all(|(key, value)| {
        !key.is_empty()
            && !key.contains(['=', '\0'])
            && !key.starts_with("EVENKEEL_")
            && !value.contains('\0')
    }));
    assert_eq!(kind.info.resources.and_then(|resources| resources.first_fault()), None);
    serde_json::to_vec(&kind.info).expect("a kind can be told to the master");
}
