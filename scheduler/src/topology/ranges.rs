//! Lists of names as clusters write them: `gpu-a[01-16,20],head`.
//!
//! In: text. Out: every name it stands for, in order, or what is wrong with it. Leading zeros are
//! kept, `[01-10]` has two digits throughout.

use tessera_core::topology::NODES_MAX;

/// `a[1-2],b` -> `a1`, `a2`, `b`: a list parted by commas, each part with any number of brackets.
pub(super) fn expand_list(text: &str) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for part in split_outside_brackets(text) {
        if part.is_empty() {
            return Err("has a comma with no name beside it".into());
        }
        names.extend(expand(part)?);
        if names.len() > NODES_MAX {
            return Err(format!("names more than {NODES_MAX} nodes"));
        }
    }
    Ok(names)
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut is_inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '[' => is_inside = true,
            ']' => is_inside = false,
            ',' if !is_inside => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts
}

/// `n[0-2]x` -> `n0x`, `n1x`, `n2x`.
pub(super) fn expand(text: &str) -> Result<Vec<String>, String> {
    let Some(open) = text.find('[') else {
        return match text.contains(']') {
            true => Err("has a ] without a [".into()),
            false => Ok(vec![text.to_owned()]),
        };
    };
    let close = text[open..].find(']').ok_or("has a [ without a ]")? + open;
    let (head, list, tail) = (&text[..open], &text[open + 1..close], &text[close + 1..]);
    if head.contains(']') || list.contains('[') {
        return Err("has brackets that do not pair".into());
    }
    let tails = expand(tail)?;
    let mut out = Vec::new();
    for part in list.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(low, part)?, number(high, part)?);
        if first > last {
            return Err(format!("has {part:?}, which counts down"));
        }
        if ((last - first) as usize + 1).saturating_mul(tails.len()) > NODES_MAX {
            return Err(format!("names more than {NODES_MAX} nodes"));
        }
        let width = if low.starts_with('0') { low.len() } else { 1 };
        for n in first..=last {
            out.extend(tails.iter().map(|tail| format!("{head}{n:0width$}{tail}")));
        }
        if out.len() > NODES_MAX {
            return Err(format!("names more than {NODES_MAX} nodes"));
        }
    }
    Ok(out)
}

fn number(text: &str, part: &str) -> Result<u32, String> {
    let is_short = text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    let parsed = if is_short { text.parse().ok() } else { None };
    parsed.ok_or_else(|| format!("has {part:?}, which is no number or range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_out() {
        for (text, want) in [
            ("n", Ok("n")),
            ("n[08-10,2]-ib", Ok("n08-ib n09-ib n10-ib n2-ib")),
            ("a[1-2]b[3-4]", Ok("a1b3 a1b4 a2b3 a2b4")),
            ("a[1-2],b, c[7]", Ok("a1 a2 b c7")),
            ("a[1-2,9],b", Ok("a1 a2 a9 b")),
            ("a,,b", Err("has a comma with no name")),
            ("", Err("has a comma with no name")),
            ("a]", Err("has a ] without a [")),
            ("a[1", Err("has a [ without a ]")),
            ("a[1[2]", Err("has brackets that do not pair")),
            ("a[]", Err("has \"\", which is no number")),
            ("a[x-y]", Err("has \"x-y\", which is no number")),
            ("a[3-1]", Err("has \"3-1\", which counts down")),
            ("a[1--3]", Err("has \"1--3\", which is no number")),
            ("a[0-999999999]", Err("names more than")),
            ("a[0-9999999999]", Err("which is no number")),
            ("a[1-1000][1-1000]", Err("names more than")),
            ("a[1-150000],b[1-150000]", Err("names more than")),
        ] {
            let got = expand_list(text).map(|names| names.join(" "));
            match want {
                Ok(want) => assert_eq!(got.as_deref(), Ok(want), "{text}"),
                Err(want) => assert!(got.as_ref().is_err_and(|e| e.contains(want)), "{got:?}"),
            }
        }
    }
}
