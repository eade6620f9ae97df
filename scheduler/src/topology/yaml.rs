//! As much of YAML as a map needs, with the line of every value.
//!
//! In: the text of one document. Out: lists, maps and scalars as text. Anchors, tags and a second
//! document are refused: no tool writes maps with them, and nothing here can then grow beyond its
//! file.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::draft::Wrong;

const DEPTH_MAX: usize = 32;

pub(super) struct Value {
    pub line: usize,
    pub what: What,
}

pub(super) enum What {
    /// What stands there; nothing and `null` are an empty text.
    Scalar(String),
    List(Vec<Value>),
    /// In the file's order, no key twice.
    Map(Vec<(String, Value)>),
}

impl Value {
    pub fn get(&self, key: &str) -> Option<&Value> {
        match &self.what {
            What::Map(fields) => fields.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// A scalar, or each of a list of scalars; `None` for what is neither.
    pub fn scalars(&self) -> impl Iterator<Item = Option<(&str, usize)>> {
        let scalar = |value: &Self| matches!(value.what, What::Scalar(_) | What::Map(_));
        let own = scalar(self).then_some(self);
        let list = match &self.what {
            What::List(list) => list.as_slice(),
            _ => &[],
        };
        own.into_iter().chain(list).map(|value| match &value.what {
            What::Scalar(text) => Some((text.as_str(), value.line)),
            _ => None,
        })
    }
}

/// `None` where the file holds nothing.
pub(super) fn parse(text: &str) -> Result<Option<Value>, Wrong> {
    let mut events = Parser::new_from_str(text);
    let mut root = None;
    while let Some(event) = events.next_event() {
        match event.map_err(broken)? {
            (Event::StreamStart | Event::StreamEnd | Event::Nothing, _) => {}
            (Event::DocumentStart(_), span) if root.is_some() => {
                let what = "the file has a second document";
                return Err(Wrong::new(span.start.line(), what, "give it a file of its own"));
            }
            (Event::DocumentStart(_) | Event::DocumentEnd, _) => {}
            (event, span) => root = Some(value(&mut events, event, span, 0)?),
        }
    }
    Ok(root)
}

fn broken(error: ScanError) -> Wrong {
    let hint = "the file is YAML, see https://yaml.org";
    Wrong::new(error.marker().line(), error.info().to_owned(), hint)
}

type Events<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

fn value(
    events: &mut Events<'_>,
    event: Event<'_>,
    span: Span,
    depth: usize,
) -> Result<Value, Wrong> {
    let line = span.start.line();
    if depth > DEPTH_MAX {
        let what = format!("more than {DEPTH_MAX} levels of nesting");
        return Err(Wrong::new(line, what, "a map needs five"));
    }
    let anchored = |anchor: usize, has_tag: bool| match anchor > 0 || has_tag {
        true => Err(Wrong::new(line, "anchors and tags are not read here", "write it out")),
        false => Ok(()),
    };
    let what = match event {
        Event::Scalar(text, style, anchor, tag) => {
            anchored(anchor, tag.is_some())?;
            let is_null = style == ScalarStyle::Plain && matches!(&*text, "~" | "null");
            What::Scalar(if is_null { String::new() } else { text.into_owned() })
        }
        Event::SequenceStart(anchor, tag) => {
            anchored(anchor, tag.is_some())?;
            let mut list = Vec::new();
            loop {
                match next(events, line)? {
                    (Event::SequenceEnd, _) => break,
                    (event, span) => list.push(value(events, event, span, depth + 1)?),
                }
            }
            What::List(list)
        }
        Event::MappingStart(anchor, tag) => {
            anchored(anchor, tag.is_some())?;
            let mut fields: Vec<(String, Value)> = Vec::new();
            loop {
                let (key, at) = match next(events, line)? {
                    (Event::MappingEnd, _) => break,
                    (Event::Scalar(key, ..), span) => (key.into_owned(), span.start.line()),
                    (_, span) => {
                        let what = "a key is no text";
                        return Err(Wrong::new(span.start.line(), what, "write key: value"));
                    }
                };
                if fields.iter().any(|(k, _)| *k == key) {
                    let what = format!("{key:?} is there twice");
                    return Err(Wrong::new(at, what, "give it once"));
                }
                let (event, span) = next(events, at)?;
                let mut field = value(events, event, span, depth + 1)?;
                // What is told of a field is told where its name stands, unless it is a list, whose
                // items have lines of their own.
                field.line = at;
                fields.push((key, field));
            }
            What::Map(fields)
        }
        Event::Alias(_) => {
            return Err(Wrong::new(line, "anchors and tags are not read here", "write it out"));
        }
        _ => return Err(Wrong::new(line, "the file ends too early", "see its last lines")),
    };
    Ok(Value { line, what })
}

fn next<'a>(events: &mut Events<'a>, line: usize) -> Result<(Event<'a>, Span), Wrong> {
    let ended = || Wrong::new(line, "the file ends too early", "see its last lines");
    events.next_event().ok_or_else(ended)?.map_err(broken)
}
