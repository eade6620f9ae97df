//! What was measured: lines with a baseline, as a table and as JSON.

use std::fmt::Write;

use serde::Serialize;

/// Where it was measured; figures from two machines are not compared.
#[derive(Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_mib: Option<u64>,
    pub kernel: String,
    /// debug or release.
    pub profile: &'static str,
    pub version: &'static str,
}

impl Machine {
    pub fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")?.split(':').nth(1));
        let meminfo = read("/proc/meminfo");
        let memory =
            meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next());
        Self {
            cpu: cpu.unwrap_or("unknown").trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: memory.and_then(|kib| kib.parse::<u64>().ok()).map(|kib| kib >> 10),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Figure {
    pub bench: &'static str,
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

#[derive(Debug, Serialize)]
pub struct Baseline {
    pub what: String,
    pub value: f64,
    /// Ours by the baseline.
    pub ratio: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub figures: Vec<Figure>,
}

impl Report {
    pub fn new(machine: Machine) -> Self {
        Self { machine, figures: Vec::new() }
    }

    pub fn add(
        &mut self,
        bench: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
    ) {
        self.figures.push(Figure { bench, what: what.into(), value, unit, baseline: None });
    }

    /// With what it is to be compared with, in the same unit.
    pub fn add_beside(
        &mut self,
        bench: &'static str,
        what: impl Into<String>,
        value: f64,
        unit: &'static str,
        baseline: (&str, f64),
    ) {
        let (name, base) = baseline;
        let baseline = Baseline { what: name.to_owned(), value: base, ratio: value / base };
        self.figures.push(Figure {
            bench,
            what: what.into(),
            value,
            unit,
            baseline: Some(baseline),
        });
    }

    pub fn table(&self) -> String {
        let m = &self.machine;
        let memory = m.memory_mib.map_or("unknown".to_owned(), |mib| format!("{} GiB", mib >> 10));
        let mut rows: Vec<[String; 5]> =
            vec![["BENCH", "WHAT", "VALUE", "BASELINE", "RATIO"].map(str::to_owned)];
        for f in &self.figures {
            let (base, ratio) = match &f.baseline {
                None => (String::new(), String::new()),
                Some(b) => (
                    format!("{} {} ({})", short(b.value), f.unit, b.what),
                    format!("{:.2}", b.ratio),
                ),
            };
            let value = format!("{} {}", short(f.value), f.unit);
            rows.push([f.bench.to_owned(), f.what.clone(), value, base, ratio]);
        }
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..5).map(width).collect();
        let mut out = format!(
            "tessera {} ({}), {} x {}, {memory}, Linux {}\n\n",
            m.version, m.profile, m.cores, m.cpu, m.kernel
        );
        for [bench, what, value, base, ratio] in &rows {
            let line = format!(
                "{bench:<0$}  {what:<1$}  {value:>2$}  {base:<3$}  {ratio:>4$}",
                widths[0], widths[1], widths[2], widths[3], widths[4]
            );
            // Writing to a String does not fail.
            let _ = writeln!(out, "{}", line.trim_end());
        }
        out
    }

    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.expect("figures are finite numbers and texts") + "\n"
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => {
            let digits = format!("{value:.0}");
            let mut out = String::new();
            for (i, c) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i).is_multiple_of(3) {
                    out.push(',');
                }
                out.push(c);
            }
            out
        }
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
