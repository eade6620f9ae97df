//! How a command ends when it does not end well.
//!
//! In: refusals of the scheduler, trouble with files, settings and the network. Out: one value with
//! the exit code, the sentence, and the next step. Printing it is `output`'s work.

use tessera_model::{Refusal, RefusalKind};

/// The answer is no.
pub const NO: u8 = 1;
/// There is no answer: nobody could be asked, or not in this way.
pub const NO_ANSWER: u8 = 2;

/// Why a command stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub exit: u8,
    /// One word for programs, `not_found`.
    pub kind: &'static str,
    /// The field at fault; empty when it is none in particular.
    pub field: String,
    /// Lower case, no full stop.
    pub message: String,
    /// The next step; empty when there is none to name.
    pub hint: String,
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// The answer is no.
    pub fn no(kind: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { exit: NO, kind, field: String::new(), message: message.into(), hint: hint.into() }
    }

    /// The question could not be asked: bad settings, a bad file, nobody there.
    pub fn no_answer(
        kind: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { exit: NO_ANSWER, ..Self::no(kind, message, hint) }
    }

    /// What was typed makes no sense.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::no_answer("usage", message, hint)
    }

    /// Something with a local file or folder.
    pub fn file(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "check the path",
            std::io::ErrorKind::PermissionDenied => "check who may read and write it",
            _ => "",
        };
        Self::no_answer("file", format!("could not {doing} {}: {error}", path.display()), hint)
    }

    /// The reader of our output has gone. That is no failure: `tessera queue | head -1` is fine.
    pub fn is_broken_pipe(&self) -> bool {
        self.kind == "broken_pipe"
    }

    /// Nothing was done, and asking again may help.
    pub fn is_unavailable(&self) -> bool {
        self.kind == word(RefusalKind::Unavailable)
    }
}

/// For writes to stdout and stderr only; files say which one through [`Failure::file`].
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self { exit: 0, ..Self::no("broken_pipe", "", "") }
        } else {
            Self::no_answer("output", format!("could not write the output: {error}"), "")
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let exit = match refusal.kind {
            RefusalKind::Unavailable | RefusalKind::Internal | RefusalKind::Unauthenticated => {
                NO_ANSWER
            }
            _ => NO,
        };
        Self {
            exit,
            kind: word(refusal.kind),
            field: refusal.field,
            message: refusal.message,
            hint: refusal.hint,
        }
    }
}

fn word(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::Invalid => "invalid",
        RefusalKind::NotFound => "not_found",
        RefusalKind::Precondition => "precondition",
        RefusalKind::AlreadyExists => "already_exists",
        RefusalKind::Denied => "denied",
        RefusalKind::Unauthenticated => "unauthenticated",
        RefusalKind::Exhausted => "exhausted",
        RefusalKind::Unavailable => "unavailable",
        RefusalKind::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_is_1_and_no_answer_is_2() {
        let cases = [
            (RefusalKind::Invalid, 1),
            (RefusalKind::NotFound, 1),
            (RefusalKind::Denied, 1),
            (RefusalKind::Exhausted, 1),
            (RefusalKind::Unauthenticated, 2),
            (RefusalKind::Unavailable, 2),
            (RefusalKind::Internal, 2),
        ];
        for (kind, exit) in cases {
            assert_eq!(Failure::from(Refusal::new(kind, "", "m", "h")).exit, exit, "{kind:?}");
        }
        let gone = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(gone).exit, 0);
    }
}
