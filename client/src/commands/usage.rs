//! `tessera usage`: who held which GPUs for how long, and at what price.
//!
//! In: a period and columns. Out: a table in cents that adds up, CSV, or JSON with exact decimals.
//! Summing and rating is the scheduler's ledger's work; here amounts are only written down.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use serde::Serialize;
use serde_json::Number;
use tessera_model::usage::{UsageKey, UsageLine};
use tessera_model::{Amount, PartMillis, UnixMillis, cents, cents_text, hour_hundredths};
use tessera_proto::usage::{keys_to_wire, line_from_wire};
use tessera_proto::v1;

use crate::call::{Api, strange};
use crate::cli::{UsageArgs, UsageFormat};
use crate::failure::{Failure, Outcome};
use crate::output::{Grid, Screen, left, right, to_json};
use crate::when;

pub async fn run(api: &Api, args: &UsageArgs, screen: &Screen) -> Outcome<u8> {
    let now = when::now();
    let from = when::parse_flag("--from", &args.from, now)?;
    let to = when::parse_flag("--to", &args.to, now)?;
    if from >= to {
        return Err(Failure::usage(
            format!("the period ends at {to}, before it begins at {from}"),
            "--to is not included: a whole day is --from 2026-11-01 --to 2026-11-02",
        ));
    }
    let report = fetch(api, from, to, &args.by, &args.team).await?;
    if let Some(warning) = report.unpriced_warning() {
        screen.warning(&warning);
    }
    let format = if screen.json { UsageFormat::Json } else { args.format };
    let text = match format {
        UsageFormat::Table => report.table(screen),
        UsageFormat::Csv => report.csv(),
        UsageFormat::Json => format!("{}\n", to_json(&report.view())?),
    };
    match &args.output {
        None => screen.text(&text)?,
        Some(path) => {
            write_whole(path, &text)?;
            screen.note(&format!("wrote {} lines to {}", report.lines.len(), path.display()));
        }
    }
    Ok(0)
}

pub async fn fetch(
    api: &Api,
    from: UnixMillis,
    to: UnixMillis,
    by: &[UsageKey],
    teams: &[String],
) -> Outcome<Report> {
    let request = &v1::UsageRequest {
        from_unix_ms: from.0,
        to_unix_ms: to.0,
        by: keys_to_wire(by),
        teams: teams.to_vec(),
    };
    let reply = api.ask(|api| async move { api.usage().report(request.clone()).await }).await?;
    let lines = reply.lines.into_iter().map(|line| line_from_wire(line).map_err(strange));
    Ok(Report {
        from: UnixMillis(reply.from_unix_ms),
        to: UnixMillis(reply.to_unix_ms),
        by: reply.by,
        lines: lines.collect::<Outcome<_>>()?,
    })
}

/// A report as the scheduler gave it, its period cut to what has passed.
#[derive(Debug, Clone)]
pub struct Report {
    pub from: UnixMillis,
    pub to: UnixMillis,
    pub by: Vec<String>,
    pub lines: Vec<UsageLine>,
}

#[derive(Serialize)]
pub struct ReportView<'a> {
    from: String,
    to: String,
    by: &'a [String],
    lines: Vec<LineView<'a>>,
    total: TotalView,
}

#[derive(Serialize)]
struct LineView<'a> {
    #[serde(flatten)]
    keys: BTreeMap<&'a str, &'a str>,
    gpu_ms: Number,
    gpu_hours: String,
    amount_usd: String,
    unpriced_gpu_ms: Number,
}

#[derive(Serialize)]
struct TotalView {
    gpu_ms: Number,
    gpu_hours: String,
    amount_usd: String,
    unpriced_gpu_ms: Number,
}

impl Report {
    fn held(&self) -> PartMillis {
        self.lines.iter().map(|l| l.held).sum()
    }

    fn amount(&self) -> Amount {
        self.lines.iter().fold(Amount(0), |sum, line| sum + line.amount)
    }

    fn unpriced(&self) -> PartMillis {
        self.lines.iter().map(|l| l.unpriced).sum()
    }

    /// What was free to be given out, where the columns tell.
    pub fn idle(&self) -> Option<PartMillis> {
        let is_idle: Box<dyn Fn(&UsageLine) -> bool> =
            if let Some(at) = self.by.iter().position(|k| k == UsageKey::Class.word()) {
                Box::new(move |line| line.keys.get(at).is_some_and(|k| k == "idle"))
            } else {
                let at = self.by.iter().position(|k| k == UsageKey::Team.word())?;
                Box::new(move |line| line.keys.get(at).is_some_and(|k| k == "pool:idle"))
            };
        Some(self.lines.iter().filter(|l| is_idle(l)).map(|l| l.held).sum())
    }

    pub fn unpriced_warning(&self) -> Option<String> {
        let unpriced = self.unpriced();
        (unpriced.0 > 0).then(|| {
            format!(
                "{} GPU-hours have no price and count as nothing: publish one with `tessera \
                 prices set --gpu MODEL=USD --from DATE`",
                hours(unpriced)
            )
        })
    }

    pub fn table(&self, screen: &Screen) -> String {
        let mut columns: Vec<_> = self.by.iter().map(|k| left(k.to_uppercase())).collect();
        columns.extend([right("GPU-HOURS"), right("USD")]);
        let mut grid = Grid::new(columns);
        let amounts: Vec<Amount> = self.lines.iter().map(|l| l.amount).collect();
        let rounded = cents(&amounts);
        let held: Vec<PartMillis> = self.lines.iter().map(|l| l.held).collect();
        let shares = hour_hundredths(&held);
        for ((line, usd), share) in self.lines.iter().zip(&rounded).zip(&shares) {
            let mut row = line.keys.clone();
            row.push(cents_text(*share));
            // Nothing charged and no price are different facts.
            let priced = line.unpriced < line.held || line.held.0 == 0;
            row.push(if priced { cents_text(*usd) } else { "no price".to_owned() });
            grid.row(row);
        }
        if !self.by.is_empty() {
            let mut total = vec![String::new(); self.by.len()];
            total[0] = "total".to_owned();
            total.push(cents_text(shares.iter().sum()));
            total.push(cents_text(rounded.iter().sum()));
            grid.row(total);
        }
        let mut out = grid.render(screen);
        if screen.tty {
            out.push_str(&format!("{} to {}", self.from, self.to));
            if let Some(idle) = self.idle() {
                let all = self.held().0.max(1);
                let tenths = idle.0 * 1_000 / all;
                let share = format!("{}.{}%", tenths / 10, tenths % 10);
                out.push_str(&format!("; idle {} GPU-hours, {share}", hours(idle)));
            }
            out.push('\n');
        }
        out
    }

    /// RFC 4180: a header, CRLF, quotes where they are needed.
    pub fn csv(&self) -> String {
        let mut out = String::new();
        let fixed = ["gpu_ms", "gpu_hours", "amount_usd", "unpriced_gpu_ms"];
        let header: Vec<String> =
            self.by.iter().map(String::as_str).chain(fixed).map(csv_field).collect();
        out.push_str(&header.join(","));
        out.push_str("\r\n");
        for line in &self.lines {
            let mut row: Vec<String> = line.keys.iter().map(|k| csv_field(k)).collect();
            // Our own numbers are written as they are: a credit begins with a minus.
            row.push(line.held.gpu_ms());
            row.push(line.held.hours12());
            row.push(line.amount.usd12());
            row.push(line.unpriced.gpu_ms());
            out.push_str(&row.join(","));
            out.push_str("\r\n");
        }
        out
    }

    pub fn view(&self) -> ReportView<'_> {
        let line = |l: &'_ UsageLine| TotalView {
            gpu_ms: number(l.held),
            gpu_hours: l.held.hours12(),
            amount_usd: l.amount.usd12(),
            unpriced_gpu_ms: number(l.unpriced),
        };
        let lines = self.lines.iter().map(|l| {
            let TotalView { gpu_ms, gpu_hours, amount_usd, unpriced_gpu_ms } = line(l);
            let names = self.by.iter().map(String::as_str);
            let keys = names.zip(l.keys.iter().map(String::as_str)).collect();
            LineView { keys, gpu_ms, gpu_hours, amount_usd, unpriced_gpu_ms }
        });
        ReportView {
            from: self.from.rfc3339(),
            to: self.to.rfc3339(),
            by: &self.by,
            lines: lines.collect(),
            total: line(&UsageLine {
                keys: vec![],
                held: self.held(),
                amount: self.amount(),
                unpriced: self.unpriced(),
            }),
        }
    }
}

/// GPU-milliseconds as a JSON number: whole, or with the decimals its shares need.
fn number(held: PartMillis) -> Number {
    let text = held.gpu_ms();
    let whole = text.parse::<u64>().map(Number::from);
    let number = whole.ok().or_else(|| Number::from_f64(text.parse().ok()?));
    number.unwrap_or_else(|| Number::from(u64::MAX))
}

/// For people: hundredths of a GPU-hour, and "under" where that would hide something.
fn hours(held: PartMillis) -> String {
    let hour = PartMillis::whole(3_600_000).0;
    let hundredths = (held.0 * 100 + hour / 2) / hour;
    if hundredths == 0 && held.0 > 0 {
        return "<0.01".to_owned();
    }
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// A text no spreadsheet takes for a formula, quoted where RFC 4180 wants it.
fn csv_field(text: &str) -> String {
    let text = match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_owned(),
    };
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

/// All of the file or nothing of it: whoever reads it never sees half a bill.
fn write_whole(path: &Path, text: &str) -> Outcome {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let written = std::fs::File::create(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&part);
        Failure::file("write", path, &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_becomes_a_formula() {
        let cases = [
            ("nlp", "nlp"),
            ("pool:idle", "pool:idle"),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@x", "'@x"),
            ("a,b", "\"a,b\""),
            ("a\"b", "\"a\"\"b\""),
            ("=a,b", "\"'=a,b\""),
        ];
        for (text, want) in cases {
            assert_eq!(csv_field(text), want);
        }
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("oct.csv");
        write_whole(&path, "a\r\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a\r\n");
        assert!(write_whole(&dir.path().join("no/such.csv"), "a").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn hours_never_hide_what_was_held() {
        let cases = [(0, "0.00"), (1, "<0.01"), (18_000, "0.01"), (3_600_000, "1.00")];
        for (ms, want) in cases {
            assert_eq!(hours(PartMillis::whole(ms)), want);
        }
    }
}
