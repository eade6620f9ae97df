//! How a request is turned down: what is wrong with which value, what the limit is, what to do next.

/// The kinds of no; each is one gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    Invalid,
    NotFound,
    /// Right in itself, but not in the state things are in.
    Precondition,
    AlreadyExists,
    /// The caller may not.
    Denied,
    /// We do not know who is calling.
    Unauthenticated,
    /// A bound is reached.
    Exhausted,
    /// Try again: nothing was done.
    Unavailable,
    /// Our own fault.
    Internal,
}

/// A no with its reason. Rooms make these from their own error types; the door turns them into a
/// status, the command line prints `error:` and `hint:`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub kind: RefusalKind,
    /// The field at fault, `gang.gpus_per_node`; empty when it is none in particular.
    pub field: String,
    /// Names the value and the limit; lower case, no full stop.
    pub message: String,
    /// The next step for the person at the keyboard.
    pub hint: String,
}

impl Refusal {
    pub fn new(
        kind: RefusalKind,
        field: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { kind, field: field.into(), message: message.into(), hint: hint.into() }
    }

    pub fn invalid(
        field: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::new(RefusalKind::Invalid, field, message, hint)
    }

    pub fn not_found(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(RefusalKind::NotFound, "", message, hint)
    }
}

/// The known word nearest to what was typed, if it is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (typed.chars().count() / 3).max(2);
    known
        .into_iter()
        .map(|k| (edits(typed, k), k))
        .filter(|(d, _)| *d <= limit)
        .min()
        .map(|(_, k)| k)
}

/// Insertions, deletions and substitutions between two short words (Levenshtein distance).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let next = (diagonal + usize::from(ca != *cb)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_offered_only_when_it_is_near() {
        let known = ["gpus_per_node", "nodes", "time_limit"];
        assert_eq!(nearest("gpu_per_node", known), Some("gpus_per_node"));
        assert_eq!(nearest("node", known), Some("nodes"));
        assert_eq!(nearest("banana", known), None);
    }
}
