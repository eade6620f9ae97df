//! A line chart as SVG.
//!
//! In: named lines and what the axes mean. Out: one self-contained file. It follows the reader's
//! light or dark setting; lines differ by colour (a palette that the colour-blind can tell apart), by
//! dashes, and by the name at their end, so that none of the three is needed alone.

use std::fmt::Write as _;

#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub name: String,
    /// Ascending in x.
    pub points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// Powers of ten; x below 1 stands at 1.
    Log,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    pub title: String,
    pub x_title: String,
    pub y_title: String,
    pub x_scale: Scale,
    pub y_range: (f64, f64),
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 72.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 64.0;

/// Okabe and Ito's palette, without its yellow, which is lost on white.
const COLOURS: [(&str, &str); 7] = [
    ("#0072B2", "#56B4E9"),
    ("#D55E00", "#E69F00"),
    ("#009E73", "#2FD6A5"),
    ("#CC79A7", "#E29CC4"),
    ("#56B4E9", "#9AD4F5"),
    ("#8A5A00", "#F0E442"),
    ("#555555", "#BBBBBB"),
];
const DASHES: [&str; 7] = ["", "8 4", "2 3", "10 3 2 3", "5 5", "12 4", "1 4"];

impl Chart {
    pub fn svg(&self) -> String {
        let mut out = String::new();
        let (w, h) = (WIDTH, HEIGHT);
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" \
             height=\"{h}\" role=\"img\" aria-label=\"{}\" font-family=\"system-ui, sans-serif\" \
             font-size=\"13\">\n<title>{}</title>\n",
            escape(&self.title),
            escape(&self.title)
        );
        out.push_str(&style(self.lines.len()));
        let _ = writeln!(out, "<rect class=\"paper\" width=\"{w}\" height=\"{h}\"/>");
        let _ = writeln!(
            out,
            "<text class=\"ink\" x=\"{LEFT}\" y=\"30\" font-size=\"17\" font-weight=\"600\">{}</text>",
            escape(&self.title)
        );
        self.axes(&mut out);
        self.draw(&mut out);
        out.push_str("</svg>\n");
        out
    }

    fn x_range(&self) -> (f64, f64) {
        let xs = self.lines.iter().flat_map(|l| l.points.iter().map(|p| p.0));
        let (low, high) =
            xs.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        match self.x_scale {
            Scale::Log => (1.0, 10f64.powf(high.max(10.0).log10().ceil())),
            Scale::Linear if low < high => (low, high),
            Scale::Linear if low.is_finite() => (low - 1.0, low + 1.0),
            Scale::Linear => (0.0, 1.0),
        }
    }

    fn x(&self, value: f64) -> f64 {
        let (low, high) = self.x_range();
        let share = match self.x_scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Log => value.max(1.0).log10() / high.log10(),
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.y_range;
        let share = (value - low) / (high - low);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn axes(&self, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let marks = match self.x_scale {
            Scale::Linear => ticks(self.x_range().0, self.x_range().1),
            Scale::Log => {
                let high = self.x_range().1.log10().round() as i32;
                (0..=high).map(|p| 10f64.powi(p)).collect()
            }
        };
        for value in marks {
            let x = self.x(value);
            let label = if self.x_scale == Scale::Log && value <= 1.0 {
                "≤ 1".to_owned()
            } else {
                number(value)
            };
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text class=\"ink\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 20.0
            );
        }
        for value in ticks(self.y_range.0, self.y_range.1) {
            let y = self.y(value);
            let _ = writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"ink\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.5,
                number(value)
            );
        }
        let middle_x = f64::midpoint(LEFT, right);
        let middle_y = f64::midpoint(TOP, bottom);
        let _ = writeln!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\n\
             <text class=\"ink\" x=\"{middle_x}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text class=\"ink\" transform=\"translate(20 {middle_y}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            bottom + 46.0,
            escape(&self.x_title),
            escape(&self.y_title)
        );
    }

    fn draw(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "<clipPath id=\"frame\"><rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/></clipPath>",
            WIDTH - LEFT - RIGHT,
            HEIGHT - TOP - BOTTOM
        );
        // The names stand in the order of the lines' ends, each with room of its own.
        let mut ends: Vec<(f64, usize)> = Vec::new();
        for (i, line) in self.lines.iter().enumerate() {
            let mut path = String::new();
            for (n, (x, y)) in line.points.iter().enumerate() {
                let verb = if n == 0 { 'M' } else { 'L' };
                let _ = write!(path, "{verb}{:.1} {:.1}", self.x(*x), self.y(*y));
            }
            let _ =
                writeln!(out, "<path class=\"line c{i}\" clip-path=\"url(#frame)\" d=\"{path}\"/>");
            let (low, high) = self.y_range;
            let end = line.points.last().map_or(low, |p| p.1.clamp(low, high));
            ends.push((self.y(end), i));
        }
        ends.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut free = TOP;
        let room = (ends.len() as f64) * 18.0;
        for (y, i) in ends {
            let latest = HEIGHT - BOTTOM - room + free - TOP;
            let at = y.min(latest.max(free)).max(free);
            free = at + 18.0;
            let (x1, x2) = (WIDTH - RIGHT + 8.0, WIDTH - RIGHT + 34.0);
            let _ = writeln!(
                out,
                "<line class=\"line c{i}\" x1=\"{x1}\" x2=\"{x2}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"ink\" x=\"{}\" y=\"{:.1}\">{}</text>",
                x2 + 6.0,
                at + 4.5,
                escape(&self.lines[i].name)
            );
        }
    }
}

fn style(lines: usize) -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for i in 0..lines {
        let (on_white, on_black) = COLOURS[i % COLOURS.len()];
        let dash = DASHES[i % DASHES.len()];
        let dash = if dash.is_empty() { "none" } else { dash };
        let _ = write!(light, ".c{i}{{stroke:{on_white};stroke-dasharray:{dash}}}");
        let _ = write!(dark, ".c{i}{{stroke:{on_black}}}");
    }
    format!(
        "<style>.paper{{fill:#ffffff}}.ink{{fill:#1a1a1a}}.grid{{stroke:#e2e2e2}}\
         .axis{{stroke:#1a1a1a;fill:none}}.line{{fill:none;stroke-width:2;stroke-linejoin:round}}{light}\
         @media (prefers-color-scheme: dark){{.paper{{fill:#16181c}}.ink{{fill:#e8e8e8}}\
         .grid{{stroke:#34373d}}.axis{{stroke:#e8e8e8}}{dark}}}</style>\n"
    )
}

/// Five to ten round numbers.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough);
    let step = step.unwrap_or(power * 10.0);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn number(value: f64) -> String {
    if value >= 1e6 {
        return format!("{}M", value / 1e6);
    }
    if value >= 1e4 {
        return format!("{}k", value / 1e3);
    }
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Allocated over arrived GPU, where the policies begin to differ.
pub fn allocation(curves: Vec<Line>) -> Chart {
    let last = curves.iter().flat_map(|l| l.points.last().map(|p| p.0)).fold(0.0, f64::max);
    let from = if last > 100.0 { 85.0 } else { 0.0 };
    let lines: Vec<Line> = curves
        .into_iter()
        .map(|l| Line {
            name: l.name,
            points: l.points.into_iter().filter(|p| p.0 >= from).collect(),
        })
        .collect();
    let ys = lines.iter().flat_map(|l| l.points.iter().map(|p| p.1));
    let (low, high) = ys.fold((100.0f64, 0.0f64), |(a, b), y| (a.min(y), b.max(y)));
    let low = (low.min(high) / 5.0).floor() * 5.0;
    let high = ((high / 2.0).ceil() * 2.0).clamp(low + 2.0, 102.0);
    Chart {
        title: "Allocated GPU over arrived GPU".to_owned(),
        x_title: "arrived, % of the cluster's GPU".to_owned(),
        y_title: "allocated, % of the cluster's GPU".to_owned(),
        x_scale: Scale::Linear,
        y_range: (low, high),
        lines,
    }
}

/// The share of jobs that waited at most so long. `waits`: by policy, seconds, ascending.
pub fn waits(waits: Vec<(String, Vec<f64>)>) -> Chart {
    let line = |(name, waits): (String, Vec<f64>)| {
        let count = waits.len() as f64;
        // A few hundred steps are more than the eye can part.
        let every = (waits.len() / 400).max(1);
        let kept = waits.iter().enumerate();
        let kept = kept.filter(|(i, _)| i % every == 0 || i + 1 == waits.len());
        let points = kept.map(|(i, w)| (w.max(1.0), 100.0 * (i + 1) as f64 / count));
        Line { name, points: points.collect() }
    };
    Chart {
        title: "How long jobs waited".to_owned(),
        x_title: "wait at most, seconds".to_owned(),
        y_title: "jobs, %".to_owned(),
        x_scale: Scale::Log,
        y_range: (0.0, 100.0),
        lines: waits.into_iter().map(line).collect(),
    }
}
