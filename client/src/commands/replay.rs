//! `tessera replay`: what policies would have made of a recorded workload.
//!
//! In: a trace and nodes from files. Out: the policies' figures side by side, and on request where
//! every pod went and a chart. No scheduler is asked: the shipping core runs in here, in virtual time.

use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use tessera_model::Millis;
use tessera_sim::trace::{
    self, Format, Kind, NodesFrom, PolicyName, PolicyReport, Progress, Source, TraceError,
    TraceReport, Workload, chart, placements,
};

use crate::cli::ReplayArgs;
use crate::failure::{Failure, NO_ANSWER, Outcome};
use crate::output::{Grid, Screen, left, right};

pub fn run(args: &ReplayArgs, screen: &Screen) -> Outcome<u8> {
    let source = source(args);
    screen.note(&format!("reading {}", args.jobs.display()));
    let workload = source.load().map_err(failure)?;
    let named = policies(&args.policy, workload.kind)?;
    for remark in &workload.remarks {
        screen.warning(remark);
    }
    let mut reports = Vec::new();
    let mut curves = Curves::default();
    for (position, name) in named.iter().enumerate() {
        let mut policy = name.make(&workload).map_err(failure)?;
        let mut ticker = Ticker::new(name.word());
        let run = trace::replay(&workload, policy.as_mut(), &mut |at| ticker.show(at));
        ticker.clear();
        let run = run.map_err(failure)?;
        screen.note(&format!("{}: {:.1} s", name.word(), ticker.started.elapsed().as_secs_f64()));
        if position == 0
            && let Some(path) = &args.placements
        {
            write(path, |out| placements::write(&workload, &run, out))?;
            screen.note(&format!("placements of {} are in {}", name.word(), path.display()));
        }
        if args.plot.is_some() {
            curves.add(name.word(), &workload, &run);
        }
        let report = PolicyReport::of(&workload, &run);
        warn(&report, screen);
        reports.push(report);
    }
    if let Some(path) = &args.plot {
        let svg = curves.chart(workload.kind).svg();
        write(path, |out| out.write_all(svg.as_bytes()))?;
        screen.note(&format!("the chart is in {}", path.display()));
    }
    let view = ReplayView { trace: TraceReport::of(&workload), policies: &reports };
    if screen.json {
        screen.json(&view)?
    } else {
        screen.text(&tables(&view, screen))?
    }
    Ok(0)
}

fn source(args: &ReplayArgs) -> Source {
    Source {
        jobs: args.jobs.clone(),
        nodes: args.nodes.as_deref().map(NodesFrom::parse),
        topology: args.topology.clone(),
        format: args.format,
        seed: args.seed,
        inflate: args.inflate,
        cluster: args.cluster.clone(),
        load: args.load,
        limit_factor: args.limit_factor,
    }
}

/// `all` stands for every policy that suits the trace. A name given twice runs once.
fn policies(words: &[String], kind: Kind) -> Outcome<Vec<PolicyName>> {
    let mut named: Vec<PolicyName> = Vec::new();
    for word in words {
        let more: Vec<PolicyName> = match word.as_str() {
            "all" => PolicyName::ALL.into_iter().filter(|n| n.suits(kind)).collect(),
            word => PolicyName::parse(word).into_iter().collect(),
        };
        if more.is_empty() {
            let known = PolicyName::ALL.map(PolicyName::word).join(", ");
            return Err(Failure::usage(
                format!("there is no policy {word:?}"),
                format!("policies are {known}, or all"),
            ));
        }
        named.extend(more.into_iter().filter(|n| !named.contains(n)).collect::<Vec<_>>());
    }
    Ok(named)
}

fn failure(error: TraceError) -> Failure {
    let kind = match &error {
        TraceError::Broken { .. } => "internal",
        TraceError::Open { .. } | TraceError::Write { .. } => "file",
        _ => "trace",
    };
    Failure { exit: NO_ANSWER, ..Failure::no_answer(kind, error.to_string(), error.hint()) }
}

fn write(
    path: &Path,
    fill: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
) -> Outcome {
    let make = || {
        let mut out = BufWriter::new(File::create(path)?);
        fill(&mut out)?;
        out.flush()
    };
    make().map_err(|error| Failure::file("write", path, &error))
}

fn warn(report: &PolicyReport, screen: &Screen) {
    if report.refused_avoidably > 0 {
        let count = report.refused_avoidably;
        screen.warning(&format!("{} refused {count} jobs that would have fitted", report.policy));
    }
    if report.too_large > 0 {
        screen.warning(&format!("{} jobs ask for more than all nodes have", report.too_large));
    }
    if report.stranded > 0 {
        let count = report.stranded;
        screen.warning(&format!("{} left {count} jobs waiting for ever", report.policy));
    }
}

/// How far it is, on a terminal only, a few times a second.
struct Ticker {
    name: &'static str,
    started: Instant,
    shown: Option<Instant>,
    tty: bool,
}

impl Ticker {
    const EVERY: Duration = Duration::from_millis(200);

    fn new(name: &'static str) -> Self {
        Self { name, started: Instant::now(), shown: None, tty: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, at: Progress) {
        if self.tty && self.shown.is_none_or(|t| t.elapsed() >= Self::EVERY) {
            self.shown = Some(Instant::now());
            let percent = 100 * at.done / at.of.max(1);
            let _ = write!(std::io::stderr(), "\r{}: {percent} %\x1b[K", self.name);
        }
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[derive(Default)]
struct Curves {
    allocated: Vec<chart::Line>,
    waits: Vec<(String, Vec<f64>)>,
}

impl Curves {
    fn add(&mut self, name: &str, workload: &Workload, run: &trace::Run) {
        match workload.kind {
            Kind::Packing => {
                let points = trace::allocation_curve(workload, run);
                self.allocated.push(chart::Line { name: name.to_owned(), points });
            }
            Kind::Queue => self.waits.push((name.to_owned(), trace::waits_s(workload, run))),
        }
    }

    fn chart(self, kind: Kind) -> chart::Chart {
        match kind {
            Kind::Packing => chart::allocation(self.allocated),
            Kind::Queue => chart::waits(self.waits),
        }
    }
}

#[derive(Debug, Serialize)]
struct ReplayView<'a> {
    trace: TraceReport,
    policies: &'a [PolicyReport],
}

fn tables(view: &ReplayView<'_>, screen: &Screen) -> String {
    let trace = &view.trace;
    let mut out = if screen.tty { headline(trace) } else { String::new() };
    let mut part = |text: String| {
        if !text.is_empty() {
            if !out.is_empty() {
                out.push('\n');
            }
            out.push_str(&text);
        }
    };
    if trace.kind == "packing" {
        part(packing(view.policies, screen));
    } else {
        part(queueing(view.policies, screen));
        part(by_size(view.policies, screen));
        part(spans(view.policies, screen));
        part(promises(view.policies, screen));
    }
    out
}

fn headline(trace: &TraceReport) -> String {
    let mut line = format!("{} jobs, {} nodes, {} GPUs", trace.jobs, trace.nodes, trace.gpus);
    if let Some(load) = trace.offered_load {
        line.push_str(&format!(", offered load {load:.2}"));
    }
    line.push('\n');
    line
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"))
}

fn length(ms: f64) -> String {
    Millis(ms.round() as u64).to_string()
}

/// Allocated GPU at what has arrived, all in percent of the cluster.
fn packing(reports: &[PolicyReport], screen: &Screen) -> String {
    const SHOWN: [u32; 6] = [80, 90, 95, 100, 110, 130];
    let of = |r: &PolicyReport, arrived: u32| {
        r.packing.as_ref().and_then(|p| p.at.iter().find(|a| a.arrived_pct == arrived).cloned())
    };
    let shown: Vec<u32> = SHOWN
        .into_iter()
        .filter(|a| reports.iter().any(|r| of(r, *a).is_some_and(|x| x.allocated_pct.is_some())))
        .collect();
    let mut columns = vec![left("ALLOCATED")];
    columns.extend(shown.iter().map(|a| right(format!("@{a}"))));
    columns.extend(["END", "FRAG@100", "REFUSED", "AVOIDABLE"].map(right));
    let mut grid = Grid::new(columns);
    for report in reports {
        let mut row = vec![report.policy.clone()];
        row.extend(shown.iter().map(|a| percent(of(report, *a).and_then(|x| x.allocated_pct))));
        row.push(percent(report.packing.as_ref().map(|p| p.allocated_pct)));
        row.push(percent(of(report, 100).and_then(|x| x.fragment_pct)));
        row.push(report.refused.to_string());
        row.push(report.refused_avoidably.to_string());
        grid.row(row);
    }
    grid.render(screen)
}

fn queueing(reports: &[PolicyReport], screen: &Screen) -> String {
    let mut grid = Grid::new(vec![
        left("WAIT"),
        right("MEAN"),
        right("P50"),
        right("P99"),
        right("MAX"),
        right("JCT"),
        right("USED %"),
        right("FRAG %"),
    ]);
    for report in reports {
        let Some(queue) = &report.queue else { continue };
        grid.row([
            report.policy.clone(),
            length(queue.wait.wait_ms_mean),
            Millis(queue.wait.wait_ms_p50).to_string(),
            Millis(queue.wait.wait_ms_p99).to_string(),
            Millis(queue.wait.wait_ms_max).to_string(),
            length(queue.jct_ms_mean),
            percent(queue.utilisation_pct),
            percent(queue.fragment_pct),
        ]);
    }
    grid.render(screen)
}

/// Mean and p99 by GPUs of the job.
fn by_size(reports: &[PolicyReport], screen: &Screen) -> String {
    let Some(first) = reports.iter().find_map(|r| r.queue.as_ref()) else { return String::new() };
    let mut columns = vec![left("BY GPUS")];
    // On a narrow terminal the classes that are within 8+ go first.
    let inside = |gpus: &str| matches!(gpus, "8-15" | "16-31" | "32-63" | "64+");
    columns.extend(
        first.by_size.iter().map(|s| {
            right(format!("{} ({})", s.gpus, s.wait.jobs)).spare(u8::from(inside(s.gpus)))
        }),
    );
    let mut grid = Grid::new(columns);
    for report in reports {
        let Some(queue) = &report.queue else { continue };
        let cell = |size: &trace::SizeClass| {
            format!("{}/{}", length(size.wait.wait_ms_mean), Millis(size.wait.wait_ms_p99))
        };
        let mut row = vec![report.policy.clone()];
        row.extend(first.by_size.iter().map(|wanted| {
            queue.by_size.iter().find(|s| s.gpus == wanted.gpus).map_or("-".to_owned(), cell)
        }));
        grid.row(row);
    }
    grid.render(screen)
}

/// Domains used over the least possible.
fn spans(reports: &[PolicyReport], screen: &Screen) -> String {
    let Some(first) = reports.iter().find_map(|r| r.span.as_ref()) else { return String::new() };
    let mut columns = vec![left("SPAN"), right("GANGS"), right("OPTIMAL")];
    columns.extend(first.levels.iter().map(|l| right(format!("{} x", l.level.to_uppercase()))));
    let mut grid = Grid::new(columns);
    for report in reports {
        let Some(span) = &report.span else { continue };
        let mut row = vec![report.policy.clone(), span.gangs.to_string(), span.optimal.to_string()];
        row.extend(span.levels.iter().map(|l| format!("{:.3}", l.over_optimum_mean)));
        grid.row(row);
    }
    grid.render(screen)
}

fn promises(reports: &[PolicyReport], screen: &Screen) -> String {
    if reports.iter().all(|r| r.promises.is_none()) {
        return String::new();
    }
    let mut grid = Grid::new(vec![
        left("PROMISED"),
        right("JOBS"),
        right("BROKEN"),
        right("LATE BY"),
        right("ERROR"),
        right("PUT OFF"),
    ]);
    for report in reports {
        let Some(promises) = &report.promises else { continue };
        grid.row([
            report.policy.clone(),
            promises.jobs.to_string(),
            promises.broken.to_string(),
            promises.late_ms_mean.map_or("-".to_owned(), length),
            length(promises.error_ms_mean),
            promises.put_off.to_string(),
        ]);
    }
    grid.render(screen)
}

/// For the command line: a format by its word.
pub fn format(text: &str) -> Result<Format, String> {
    let words = Format::ALL.map(Format::word);
    Format::parse(text).ok_or_else(|| format!("formats are {}", words.join(", ")))
}
