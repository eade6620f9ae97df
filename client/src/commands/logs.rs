//! `tessera logs`: what a job's ranks write.
//!
//! In: a job and ranks. Out: their bytes, merged line by line where there are several. Offsets say
//! where to go on after a broken connection, so nothing is lost or printed twice.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use tessera_model::JobId;
use tessera_proto::{status::from_status, v1};

use super::wait::{BREAK_PAUSE, BREAKS_MAX};
use crate::call::Api;
use crate::cli::{LogsArgs, Ranks};
use crate::failure::{Failure, Outcome};
use crate::output::{Screen, is_obeyed, push_escaped};
use crate::selector;

pub async fn run(api: &Api, args: &LogsArgs, screen: &Screen) -> Outcome<u8> {
    let id = selector::resolve_one(api, &args.job).await?;
    stream(api, id, &args.rank, args.follow, screen).await?;
    Ok(0)
}

/// Prints the job's output to its end, or to where it is now.
pub async fn stream(api: &Api, id: JobId, ranks: &Ranks, follow: bool, screen: &Screen) -> Outcome {
    let several = match ranks.0.len() {
        0 => api.job(id).await?.spec.gang.ranks() > 1,
        n => n > 1,
    };
    let mut merger = Merger::new(several, screen);
    let json = screen.json;
    let request =
        v1::LogsRequest { job_id: id.0, ranks: ranks.0.clone(), follow, ..Default::default() };
    pull(api, request, |piece| match piece {
        Piece::Bytes { rank, offset, data } if json => {
            screen.json_line(&PieceView { rank, offset, text: &String::from_utf8_lossy(data) })
        }
        Piece::Bytes { rank, data, .. } => screen.bytes(&merger.push(rank, data)),
        Piece::Gap { rank, why } => {
            screen.warning(&format!("rank {rank}: {why}"));
            Ok(())
        }
    })
    .await?;
    screen.bytes(&merger.finish())
}

#[derive(Serialize)]
struct PieceView<'a> {
    rank: u32,
    offset: u64,
    text: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    Bytes { rank: u32, offset: u64, data: &'a [u8] },
    Gap { rank: u32, why: &'a str },
}

/// Every byte once and in order within its rank, over broken connections.
pub async fn pull(
    api: &Api,
    mut request: v1::LogsRequest,
    mut take: impl FnMut(Piece<'_>) -> Outcome,
) -> Outcome {
    let mut breaks = 0;
    loop {
        let opened = api.once(api.jobs().logs(request.clone())).await;
        let failure: Failure = match opened {
            Err(failure) => failure,
            Ok(mut stream) => loop {
                match stream.message().await {
                    Ok(None) => return Ok(()),
                    Ok(Some(chunk)) => {
                        breaks = 0;
                        one_chunk(&mut request.offsets, &chunk, &mut take)?;
                    }
                    Err(status) => break from_status(&status).into(),
                }
            },
        };
        breaks += 1;
        if !failure.is_unavailable() || breaks > BREAKS_MAX {
            return Err(failure);
        }
        tokio::time::sleep(BREAK_PAUSE).await;
    }
}

fn one_chunk(
    offsets: &mut BTreeMap<u32, u64>,
    chunk: &v1::LogChunk,
    take: &mut impl FnMut(Piece<'_>) -> Outcome,
) -> Outcome {
    let rank = chunk.rank;
    let next = offsets.entry(rank).or_insert(0);
    if !chunk.gap.is_empty() {
        take(Piece::Gap { rank, why: &chunk.gap })?;
    } else if chunk.offset > *next && !chunk.data.is_empty() {
        let why = format!("bytes {next} to {} are missing", chunk.offset);
        take(Piece::Gap { rank, why: &why })?;
    }
    // What comes again was printed already.
    let known = usize::try_from(next.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
    let data: &[u8] = chunk.data.get(known..).unwrap_or_default();
    *next = (*next).max(chunk.offset + chunk.data.len() as u64);
    if !data.is_empty() {
        let offset = *next - data.len() as u64;
        take(Piece::Bytes { rank, offset, data })?;
    }
    Ok(())
}

/// Makes one stream of several. A rank's line is printed when it is whole; on a terminal nothing in
/// it is obeyed but colours.
pub struct Merger {
    prefix: bool,
    tty: bool,
    colour: bool,
    pending: BTreeMap<u32, Vec<u8>>,
}

/// A line longer than this is printed in parts.
const LINE_BYTES_MAX: usize = 1 << 20;

impl Merger {
    pub fn new(prefix: bool, screen: &Screen) -> Self {
        Self { prefix, tty: screen.tty, colour: screen.colour, pending: BTreeMap::new() }
    }

    /// What may be printed now.
    pub fn push(&mut self, rank: u32, data: &[u8]) -> Vec<u8> {
        if !self.prefix && !self.tty {
            return data.to_vec();
        }
        let mut held = self.pending.remove(&rank).unwrap_or_default();
        held.extend_from_slice(data);
        let whole = match held.iter().rposition(|b| *b == b'\n') {
            // One rank's unfinished line, a prompt or a progress bar, is shown as it grows; only
            // what may be the first half of a character or of a colour waits.
            _ if !self.prefix => printable_end(&held),
            Some(at) => at + 1,
            None if held.len() > LINE_BYTES_MAX => held.len(),
            None => 0,
        };
        let rest = held.split_off(whole);
        if !rest.is_empty() {
            self.pending.insert(rank, rest);
        }
        self.format(rank, &held)
    }

    /// Lines that never ended.
    pub fn finish(&mut self) -> Vec<u8> {
        let pending = std::mem::take(&mut self.pending);
        let mut out = Vec::new();
        for (rank, bytes) in pending {
            out.extend(self.format(rank, &bytes));
        }
        out
    }

    /// With a prefix each piece is ended, so that no rank's words stand in another's line.
    fn format(&self, rank: u32, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len() + 16);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            if self.prefix {
                out.extend_from_slice(format!("[{rank}] ").as_bytes());
            }
            if self.tty {
                out.extend_from_slice(self.escape(line).as_bytes());
            } else {
                out.extend_from_slice(line);
            }
            if self.prefix && !line.ends_with(b"\n") {
                out.push(b'\n');
            }
        }
        out
    }

    fn escape(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        let mut out = String::with_capacity(text.len());
        let mut rest: &str = &text;
        while let Some(c) = rest.chars().next() {
            let colour = colour_code(rest).filter(|_| self.colour);
            if let Some(length) = colour {
                out.push_str(&rest[..length]);
                rest = &rest[length..];
                continue;
            }
            rest = &rest[c.len_utf8()..];
            match c {
                '\n' | '\t' => out.push(c),
                // A progress bar goes back to the line's beginning: harmless while it is alone.
                '\r' if !self.prefix => out.push(c),
                '\r' if rest.starts_with('\n') => {}
                c if is_obeyed(c) => push_escaped(&mut out, c),
                c => {
                    let _ = out.write_char(c);
                }
            }
        }
        out
    }
}

/// Length of a colour sequence, `ESC [ 1;31 m`, at the beginning of the text.
fn colour_code(text: &str) -> Option<usize> {
    let inner = text.strip_prefix("\x1b[")?;
    let end = inner.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    inner[end..].starts_with('m').then_some(2 + end + 1)
}

/// Where the bytes that can be shown end: before half a character and before half a colour code.
fn printable_end(bytes: &[u8]) -> usize {
    let mut end = bytes.len();
    let tail = end.saturating_sub(32);
    if let Some(at) = bytes[tail..].iter().rposition(|b| *b == 0x1b) {
        let after = &bytes[tail + at + 1..];
        let open = match after {
            [] => true,
            [b'[', rest @ ..] => rest.iter().all(|b| b.is_ascii_digit() || *b == b';'),
            _ => false,
        };
        if open {
            end = tail + at;
        }
    }
    for back in 1..=3usize.min(end) {
        let byte = bytes[end - back];
        if byte & 0b1100_0000 == 0b1000_0000 {
            continue;
        }
        let want = match byte {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            _ => 1,
        };
        return if want > back { end - back } else { end };
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(tty: bool, colour: bool) -> Screen {
        Screen { json: false, tty, width: 80, colour, stderr_colour: false, unicode: true }
    }

    fn merged(prefix: bool, screen: &Screen, pieces: &[(u32, &[u8])]) -> String {
        let mut merger = Merger::new(prefix, screen);
        let mut out = Vec::new();
        for (rank, bytes) in pieces {
            out.extend(merger.push(*rank, bytes));
        }
        out.extend(merger.finish());
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn ranks_are_merged_by_whole_lines() {
        let pieces: [(u32, &[u8]); 4] =
            [(0, b"one\ntw"), (1, b"eins\nzwei\n"), (0, b"o\n"), (1, b"drei")];
        let want = "[0] one\n[1] eins\n[1] zwei\n[0] two\n[1] drei\n";
        assert_eq!(merged(true, &screen(false, false), &pieces), want);
        assert_eq!(merged(true, &screen(true, false), &pieces), want);
    }

    #[test]
    fn a_pipe_gets_every_byte_and_a_terminal_obeys_none() {
        let raw: &[u8] = b"a\x1b[2J\x07\xffb\x1b[31mred\x1b[0m\r\n";
        let mut merger = Merger::new(false, &screen(false, false));
        assert_eq!(merger.push(0, raw), raw);
        let shown = merged(false, &screen(true, false), &[(0, raw)]);
        assert_eq!(shown, "a\\x1b[2J\\x07\u{fffd}b\\x1b[31mred\\x1b[0m\r\n");
        let coloured = merged(false, &screen(true, true), &[(0, raw)]);
        assert_eq!(coloured, "a\\x1b[2J\\x07\u{fffd}b\x1b[31mred\x1b[0m\r\n");
        let crlf = merged(true, &screen(true, false), &[(3, b"x\r\n")]);
        assert_eq!(crlf, "[3] x\n");
    }

    #[test]
    fn a_character_cut_in_two_is_shown_whole() {
        let text = "fünf ■ \x1b[31mrot";
        for at in 1..text.len() {
            let (a, b) = text.as_bytes().split_at(at);
            let got = merged(false, &screen(true, true), &[(0, a), (0, b)]);
            assert_eq!(got, text, "cut at {at}");
        }
    }
}
