//! What every door checks alike: lengths, counts, ranges and printable text.
//!
//! In: a field's name as the wire has it, and its value. Out: nothing, or a [`Refusal`] that names
//! value and limit. What a field means is for the module that owns it.

use std::fmt::Display;

use tessera_model::{BadId, Refusal};

pub(crate) type Checked<T = ()> = Result<T, Refusal>;

/// A bad name, as the refusal of one field.
pub(crate) fn bad_id(field: &str) -> impl FnOnce(BadId) -> Refusal {
    let field = field.to_owned();
    move |bad| {
        let example = match bad.kind {
            "team" | "project" | "user" => "such as `nlp` or `team-7`",
            "node" => "such as `gpu-a01`",
            "GPU" => "as `nvidia-smi -L` prints it, `GPU-5a1c8d2e-…`",
            _ => "as /proc/sys/kernel/random/boot_id has it",
        };
        let hint = format!("write a {} {example}", bad.kind);
        Refusal::invalid(field, bad.to_string(), hint)
    }
}

/// A message the sender had to fill in.
pub(crate) fn present<T>(field: &str, value: Option<T>) -> Checked<T> {
    value.ok_or_else(|| {
        Refusal::invalid(field, format!("{field} is missing"), format!("fill in `{field}`"))
    })
}

pub(crate) fn range<T: PartialOrd + Display>(
    field: &str,
    value: T,
    low: T,
    high: T,
    hint: &str,
) -> Checked {
    if value < low || value > high {
        let message = format!("{field} is {value}, it must be {low} to {high}");
        return Err(Refusal::invalid(field, message, hint));
    }
    Ok(())
}

/// No more than `max` of something.
pub(crate) fn count(field: &str, len: usize, max: usize, hint: &str) -> Checked {
    if len > max {
        let message = format!("{field} has {len} entries, at most {max} are allowed");
        return Err(Refusal::invalid(field, message, hint));
    }
    Ok(())
}

/// No more than `max` bytes together.
pub(crate) fn size(field: &str, bytes: usize, max: usize, hint: &str) -> Checked {
    if bytes > max {
        let message = format!("{field} has {bytes} bytes, at most {max} are allowed");
        return Err(Refusal::invalid(field, message, hint));
    }
    Ok(())
}

pub(crate) fn no_nul(field: &str, text: &str) -> Checked {
    if text.contains('\0') {
        let message = format!("{field} holds a NUL byte in {}", quote(text));
        return Err(Refusal::invalid(field, message, "take the NUL byte out"));
    }
    Ok(())
}

/// One line of at least one visible character, and at most `max` in all.
pub(crate) fn label(field: &str, text: &str, max: usize) -> Checked {
    if text.trim().is_empty() {
        let message = format!("{field} is empty");
        return Err(Refusal::invalid(field, message, format!("give 1 to {max} characters")));
    }
    line(field, text, max)
}

/// One line of printable characters, which may be empty.
pub(crate) fn line(field: &str, text: &str, max: usize) -> Checked {
    let length = text.chars().count();
    if length > max {
        let message =
            format!("{field} has {length} characters, at most {max} are allowed: {}", quote(text));
        return Err(Refusal::invalid(field, message, "shorten it"));
    }
    if let Some(bad) = text.chars().find(|c| !is_printable(*c)) {
        let message = format!("{field} holds the unprintable character {bad:?} in {}", quote(text));
        return Err(Refusal::invalid(field, message, "use printable characters only"));
    }
    Ok(())
}

/// Neither a control character nor one that changes how the rest of a line is shown: names end up
/// in tables, and must not be able to forge one.
pub(crate) fn is_printable(c: char) -> bool {
    !(c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}'))
}

/// The beginning of a text from outside, in quotes and with escapes.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Cut to at most `max` bytes, at a character's boundary.
pub(crate) fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}
