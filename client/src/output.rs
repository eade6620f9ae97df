//! What people and programs see.
//!
//! In: rows, values, failures. Out: on stdout the result (a table as wide as the terminal, tabs in
//! a pipe, or JSON), on stderr progress, warnings and hints. Meaning never hangs on colour, and no
//! byte from outside reaches a terminal as a control code.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::{Failure, Outcome};

/// What the output goes to. Everything here is decided once, when the command starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    pub json: bool,
    /// Whether stdout is a terminal; a pipe gets tabs and every byte.
    pub tty: bool,
    pub width: usize,
    pub colour: bool,
    pub stderr_colour: bool,
    /// Box and block characters may be used.
    pub unicode: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    Always,
    Never,
}

impl Screen {
    pub fn detect(json: bool, colour: Colour) -> Self {
        let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let allowed = |is_tty: bool| match colour {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                is_tty && env("NO_COLOR").is_none() && env("TERM").as_deref() != Some("dumb")
            }
        };
        let tty = io::stdout().is_terminal();
        // A terminal that does not know its width says 0.
        let measured = || Table::new().width().map(usize::from).filter(|w| *w > 0);
        let asked = env("COLUMNS").and_then(|c| c.parse::<usize>().ok());
        let width = asked.or_else(|| if tty { measured() } else { None }).unwrap_or(80);
        Self {
            json,
            tty,
            width: width.max(40),
            colour: allowed(tty),
            stderr_colour: allowed(io::stderr().is_terminal()),
            unicode: speaks_unicode(env("LC_ALL"), env("LC_CTYPE"), env("LANG")),
        }
    }

    /// A line of the result.
    pub fn line(&self, text: impl AsRef<str>) -> Outcome {
        let mut out = io::stdout().lock();
        out.write_all(text.as_ref().as_bytes())?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }

    /// Text that ends its own lines.
    pub fn text(&self, text: &str) -> Outcome {
        self.bytes(text.as_bytes())
    }

    pub fn bytes(&self, bytes: &[u8]) -> Outcome {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        Ok(out.flush()?)
    }

    pub fn json<T: Serialize + ?Sized>(&self, value: &T) -> Outcome {
        self.line(to_json(value)?)
    }

    /// One object a line, for answers that come piece by piece.
    pub fn json_line<T: Serialize + ?Sized>(&self, value: &T) -> Outcome {
        self.line(serde_json::to_string(value).map_err(io::Error::from)?)
    }

    pub fn hint(&self, text: &str) {
        self.aside("hint", "36", text);
    }

    pub fn warning(&self, text: &str) {
        self.aside("warning", "33", text);
    }

    /// Progress; not for programs.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{}", printable(text));
    }

    /// Says why the command ends. With `--json` it is one object on stdout, so that whoever asked
    /// for JSON reads one stream and always finds a value there.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let _ = self.json(&FailureView {
                error: FailureBody {
                    kind: failure.kind,
                    message: &failure.message,
                    hint: &failure.hint,
                    field: &failure.field,
                },
            });
            return;
        }
        self.aside("error", "31", &failure.message);
        if !failure.hint.is_empty() {
            self.aside("hint", "36", &failure.hint);
        }
    }

    fn aside(&self, word: &str, colour: &str, text: &str) {
        let text = printable(text);
        // A stderr that nobody reads is no reason to stop.
        let _ = if self.stderr_colour {
            writeln!(io::stderr(), "\x1b[1;{colour}m{word}:\x1b[0m {text}")
        } else {
            writeln!(io::stderr(), "{word}: {text}")
        };
    }
}

#[derive(Serialize)]
struct FailureView<'a> {
    error: FailureBody<'a>,
}

#[derive(Serialize)]
struct FailureBody<'a> {
    kind: &'a str,
    message: &'a str,
    hint: &'a str,
    field: &'a str,
}

pub fn to_json<T: Serialize + ?Sized>(value: &T) -> Outcome<String> {
    Ok(serde_json::to_string_pretty(value).map_err(io::Error::from)?)
}

fn speaks_unicode(all: Option<String>, ctype: Option<String>, lang: Option<String>) -> bool {
    let locale = all.or(ctype).or(lang).unwrap_or_default().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

/// The text with everything a terminal might obey made visible: control characters, line breaks,
/// and the marks that turn the reading direction.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        push_escaped(&mut out, c);
    }
    Cow::Owned(out)
}

pub fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

pub fn push_escaped(out: &mut String, c: char) {
    match c {
        '\n' => out.push_str("\\n"),
        '\t' => out.push_str("\\t"),
        '\r' => out.push_str("\\r"),
        c if !is_obeyed(c) => out.push(c),
        c if u32::from(c) < 0x100 => {
            let _ = write!(out, "\\x{:02x}", u32::from(c));
        }
        c => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

/// A column of a [`Grid`].
#[derive(Debug, Clone)]
pub struct Column {
    pub title: String,
    pub right: bool,
    /// 0: never left out. Else the highest goes first where the terminal is too narrow.
    pub spare: u8,
}

pub fn left(title: impl Into<String>) -> Column {
    Column { title: title.into(), right: false, spare: 0 }
}

pub fn right(title: impl Into<String>) -> Column {
    Column { title: title.into(), right: true, spare: 0 }
}

impl Column {
    pub fn spare(self, spare: u8) -> Self {
        Self { spare, ..self }
    }
}

/// A table. Its last column may be a remark: beside the others where there is room, else on lines
/// of its own below its row.
#[derive(Debug, Clone)]
pub struct Grid {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<String>>,
    pub remark: bool,
}

impl Grid {
    pub fn new(columns: Vec<Column>) -> Self {
        Self { columns, rows: Vec::new(), remark: false }
    }

    pub fn with_remark(columns: Vec<Column>) -> Self {
        Self { remark: true, ..Self::new(columns) }
    }

    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The lines, each ended.
    pub fn render(&self, screen: &Screen) -> String {
        if !screen.tty {
            return self.tabs();
        }
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let lines = self.lines(&all);
        if widest(&lines) <= screen.width {
            return finish(lines, screen);
        }
        let mut kept = all;
        let remark = if self.remark { kept.pop() } else { None };
        let mut lines = self.lines(&kept);
        while widest(&lines) > screen.width {
            let Some(place) = (0..kept.len())
                .filter(|&i| self.columns[kept[i]].spare > 0)
                .max_by_key(|&i| self.columns[kept[i]].spare)
            else {
                break;
            };
            kept.remove(place);
            lines = self.lines(&kept);
        }
        if let Some(remark) = remark {
            let mut with = vec![lines[0].clone()];
            for (line, row) in lines.into_iter().skip(1).zip(&self.rows) {
                with.push(line);
                let text = printable(&row[remark]).into_owned();
                with.extend(wrap(&text, screen.width - 4).into_iter().map(|l| format!("    {l}")));
            }
            lines = with;
        }
        finish(lines, screen)
    }

    fn tabs(&self) -> String {
        let mut out = String::new();
        let titles: Vec<&str> = self.columns.iter().map(|c| c.title.as_str()).collect();
        out.push_str(&titles.join("\t"));
        out.push('\n');
        for row in &self.rows {
            let cells: Vec<Cow<'_, str>> = row.iter().map(|c| printable(c)).collect();
            out.push_str(&cells.join("\t"));
            out.push('\n');
        }
        out
    }

    fn lines(&self, kept: &[usize]) -> Vec<String> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(kept.iter().map(|&i| self.columns[i].title.as_str()));
        for row in &self.rows {
            table.add_row(kept.iter().map(|&i| printable(&row[i]).into_owned()));
        }
        for (column, &i) in table.column_iter_mut().zip(kept) {
            column.set_padding((0, 2));
            if self.columns[i].right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.lines().map(|l| l.trim_end().to_owned()).collect()
    }
}

fn widest(lines: &[String]) -> usize {
    lines.iter().map(|l| l.chars().count()).max().unwrap_or(0)
}

fn finish(lines: Vec<String>, screen: &Screen) -> String {
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i == 0 && screen.colour {
            let _ = writeln!(out, "\x1b[1m{line}\x1b[0m");
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// Breaks at spaces; a word that is wider than a line keeps a line of its own.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// `1 job`, `2 jobs`.
pub fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCREEN: Screen = Screen {
        json: false,
        tty: true,
        width: 30,
        colour: false,
        stderr_colour: false,
        unicode: true,
    };

    fn grid() -> Grid {
        let mut grid =
            Grid::with_remark(vec![right("JOB"), left("NAME"), left("USER").spare(1), left("WHY")]);
        grid.row(["7", "a", "ada", ""]);
        grid.row(["812", "train\x1b[2J", "grace", "needs 4 nodes in one leaf, the best has 2"]);
        grid
    }

    #[test]
    fn a_long_remark_gets_its_own_lines_and_a_spare_column_goes() {
        assert_eq!(
            grid().render(&Screen { width: 40, ..SCREEN }),
            "JOB  NAME          USER\n  7  a             ada\n812  train\\x1b[2J  grace\n    \
             needs 4 nodes in one leaf, the best\n    has 2\n"
        );
        let narrow = grid().render(&Screen { width: 20, ..SCREEN });
        assert!(!narrow.contains("USER"), "{narrow}");
        assert!(narrow.contains("812"), "an id is never cut: {narrow}");
        let wide = grid().render(&Screen { width: 200, ..SCREEN });
        assert_eq!(wide.lines().count(), 3);
    }

    #[test]
    fn a_pipe_gets_tabs_and_one_line_a_row() {
        let text = grid().render(&Screen { tty: false, ..SCREEN });
        assert_eq!(text.lines().nth(1), Some("7\ta\tada\t"));
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn nothing_from_outside_steers_a_terminal() {
        let cases = [
            ("plain é ■", "plain é ■"),
            ("a\x1b[31mb", "a\\x1b[31mb"),
            ("two\nlines\t", "two\\nlines\\t"),
            ("\u{9b}2J", "\\x9b2J"),
            ("\u{202e}gpj", "\\u{202e}gpj"),
            ("\x07\x7f", "\\x07\\x7f"),
        ];
        for (text, want) in cases {
            assert_eq!(printable(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_locale_decides_about_block_characters() {
        let s = |t: &str| Some(t.to_owned());
        assert!(speaks_unicode(None, None, s("en_US.UTF-8")));
        assert!(speaks_unicode(None, s("C.utf8"), None));
        assert!(!speaks_unicode(s("C"), None, s("en_US.UTF-8")));
        assert!(!speaks_unicode(None, None, None));
    }
}
