//! `--filter`: conditions on columns, joined by commas, all of which have to hold.

use crate::columns::{Cell, Column, Row, column};

/// A condition on one column of rows of this kind.
pub struct Condition<R: Row> {
    column: &'static Column<R>,
    relation: Relation,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    NotEqual,
    AtLeast,
    AtMost,
    More,
    Less,
    Contains,
}

/// Longest first, so that `>=` is not read as `>`.
const RELATIONS: [(&str, Relation); 7] = [
    ("!=", Relation::NotEqual),
    (">=", Relation::AtLeast),
    ("<=", Relation::AtMost),
    ("=", Relation::Equal),
    (">", Relation::More),
    ("<", Relation::Less),
    ("~", Relation::Contains),
];

/// Reads conditions such as `status=ready,cpu%>50,name~big`.
///
/// # Errors
/// What cannot be read, and what could.
pub fn parse<R: Row>(text: &str) -> Result<Vec<Condition<R>>, String> {
    text.split(',').map(parse_one).collect()
}

fn parse_one<R: Row>(text: &str) -> Result<Condition<R>, String> {
    let at = text.find(['!', '>', '<', '=', '~']).ok_or_else(|| {
        format!("filter {text:?} has no relation: write COLUMN=VALUE, or use !=, >, >=, <, <=, ~ (contains)")
    })?;
    let (name, rest) = text.split_at(at);
    let found = RELATIONS.iter().find_map(|(sign, relation)| Some((*relation, rest.strip_prefix(sign)?)));
    let (relation, value) = found
        .ok_or_else(|| format!("filter {text:?}: {rest:?} is no relation; use =, !=, >, >=, <, <=, ~"))?;
    let column = column(name.trim())?;
    let value = value.trim().to_owned();
    let numeric = !matches!(relation, Relation::Equal | Relation::NotEqual | Relation::Contains);
    if numeric && value.parse::<f64>().is_err() {
        return Err(format!("filter {text:?} compares with {value:?}, which is no number"));
    }
    Ok(Condition { column, relation, value })
}

impl<R: Row> Condition<R> {
    /// The name of its column.
    #[must_use]
    pub fn column(&self) -> &'static str {
        self.column.name
    }

    /// Whether it holds for a row. What is not known is equal to nothing and neither more nor less. A
    /// number is equal to a value also if it is shown as that value.
    #[must_use]
    pub fn holds(&self, row: &R) -> bool {
        let cell = (self.column.cell)(row);
        if let (Cell::Number(number, _), Ok(value)) = (&cell, self.value.parse::<f64>()) {
            let equal = *number == value || cell.shown().parse() == Ok(value);
            return match self.relation {
                Relation::Equal => equal,
                Relation::NotEqual => !equal,
                Relation::AtLeast => *number >= value,
                Relation::AtMost => *number <= value,
                Relation::More => *number > value,
                Relation::Less => *number < value,
                Relation::Contains => cell.shown().contains(&self.value),
            };
        }
        match (&cell, self.relation) {
            (Cell::Text(text), Relation::Equal) => *text == self.value,
            (Cell::Text(text), Relation::NotEqual) => *text != self.value,
            (Cell::Text(text), Relation::Contains) => text.contains(&self.value),
            (Cell::Unknown, Relation::NotEqual) => true,
            _ => false,
        }
    }
}
