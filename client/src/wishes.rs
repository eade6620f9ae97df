//! How people write what a job wishes for: `4:leaf:preferred`, `ok:812`, `0-99:2%5`, `USR1`.
//!
//! In: one word of a command line or of a job file. Out: one of `model`'s values, or what to write
//! instead. Flags and job files share these, so a notation means the same in both.

use std::collections::BTreeSet;

use tessera_model::{
    AtMost, Dependency, DependencyKind, JobId, LabelOp, LabelRule, NodeId, Slice, Spread, Strength,
    Tier, Within,
};
use tessera_proto::v1;

/// `leaf`, `leaf:required` or `leaf:preferred`.
pub fn within(text: &str) -> Result<Within, String> {
    let (level, strength) = text.split_once(':').unwrap_or((text, "required"));
    if level.is_empty() {
        return Err("the level's name is missing; write leaf or leaf:preferred".to_owned());
    }
    Ok(Within { level: level.to_owned(), strength: self::strength(strength)? })
}

pub fn strength(text: &str) -> Result<Strength, String> {
    match text {
        "required" => Ok(Strength::Required),
        "preferred" => Ok(Strength::Preferred),
        other => Err(format!("{other:?} is neither \"required\" nor \"preferred\"")),
    }
}

/// `4:leaf` or `4:leaf:preferred`.
pub fn slice(text: &str) -> Result<Slice, String> {
    let (nodes, level) = sized(text, "4:leaf or 4:leaf:preferred")?;
    let Within { level, strength } = within(level)?;
    Ok(Slice { nodes, level, strength })
}

/// `2:block`.
pub fn at_most(text: &str) -> Result<AtMost, String> {
    let (domains, level) = sized(text, "2:block")?;
    Ok(AtMost { domains, level: level.to_owned() })
}

/// A number from 1 on, and the level behind the colon.
fn sized<'a>(text: &'a str, example: &str) -> Result<(u32, &'a str), String> {
    let bad = || format!("write it like {example}");
    let (number, level) = text.split_once(':').ok_or_else(bad)?;
    match number.parse() {
        Ok(0) => Err(format!("0 is too few; {}", bad())),
        Ok(n) if !level.is_empty() => Ok((n, level)),
        _ => Err(bad()),
    }
}

/// `leaf`, or `leaf:2` where one domain may have two nodes more than another.
pub fn spread(text: &str) -> Result<Spread, String> {
    let bad = || "write it like leaf or leaf:1".to_owned();
    let (level, skew) = text.split_once(':').unwrap_or((text, "1"));
    let max_skew: u32 = skew.parse().map_err(|_| bad())?;
    if level.is_empty() || max_skew == 0 {
        return Err(bad());
    }
    Ok(Spread { level: level.to_owned(), max_skew })
}

/// `key=value`, `key=a,b` (one of them), `key!=value`, `key` (it is there), `!key` (it is not).
pub fn label(text: &str) -> Result<LabelRule, String> {
    let bad = || "write key=value, key!=value, key or !key".to_owned();
    let values = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let (key, op, values) = if let Some((key, value)) = text.split_once("!=") {
        (key, LabelOp::NotIn, values(value))
    } else if let Some((key, value)) = text.split_once('=') {
        (key, LabelOp::In, values(value))
    } else if let Some(key) = text.strip_prefix('!') {
        (key, LabelOp::Absent, Vec::new())
    } else {
        (text, LabelOp::Exists, Vec::new())
    };
    if key.is_empty() || key.contains(['!', '=', ',']) || key.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok(LabelRule { key: key.to_owned(), op, values })
}

/// The same, back.
pub fn label_text(rule: &LabelRule) -> String {
    let values = rule.values.join(",");
    match rule.op {
        LabelOp::In => format!("{}={values}", rule.key),
        LabelOp::NotIn => format!("{}!={values}", rule.key),
        LabelOp::Exists => rule.key.clone(),
        LabelOp::Absent => format!("!{}", rule.key),
    }
}

/// More nodes than one would name by hand.
const NODES_MAX: usize = 10_000;

/// `n1,n2`, `n[01-16]`, `n[1,4-6].hall3`, and several of them.
pub fn nodes(text: &str) -> Result<BTreeSet<NodeId>, String> {
    let mut names = BTreeSet::new();
    for part in outside_brackets(text) {
        for name in expand(part)? {
            names.insert(NodeId::parse(&name).map_err(|bad| bad.to_string())?);
            if names.len() > NODES_MAX {
                return Err(format!("{text:?} names more than {NODES_MAX} nodes"));
            }
        }
    }
    Ok(names)
}

/// Split at the commas that stand in no bracket.
fn outside_brackets(text: &str) -> Vec<&str> {
    let (mut parts, mut begin, mut is_inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '[' => is_inside = true,
            ']' => is_inside = false,
            ',' if !is_inside => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

fn expand(part: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = part.split_once('[') else { return Ok(vec![part.to_owned()]) };
    let bad = || format!("{part:?} is no list of nodes; write n1,n2 or n[01-16]");
    let (inside, after) = rest.split_once(']').ok_or_else(bad)?;
    if after.contains('[') {
        return Err(bad());
    }
    let mut names = Vec::new();
    for piece in inside.split(',') {
        let (from, to) = piece.split_once('-').unwrap_or((piece, piece));
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(from) || !digits(to) {
            return Err(bad());
        }
        let (low, high): (u64, u64) =
            (from.parse().map_err(|_| bad())?, to.parse().map_err(|_| bad())?);
        if low > high || high - low >= NODES_MAX as u64 {
            return Err(format!("the range {piece} in {part:?} names no or too many nodes"));
        }
        let width = from.len();
        names.extend((low..=high).map(|n| format!("{before}{n:0width$}{after}")));
    }
    Ok(names)
}

/// `ok:812`, `any:812`, `notok:812`, `begun:812`, Slurm's words for them, several jobs behind one
/// word (`ok:812:813`) and several such (`ok:812,any:7`); a bare `812` means `ok:812`.
pub fn after(text: &str) -> Result<Vec<Dependency>, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let mut words = part.split(':');
        let first = words.next().unwrap_or_default();
        let (kind, jobs): (_, Vec<&str>) = match job(first) {
            Some(_) => (DependencyKind::AfterOk, part.split(':').collect()),
            None => (dependency_kind(first)?, words.collect()),
        };
        if jobs.is_empty() {
            return Err(format!("a job is missing behind {first:?}; write {first}:812"));
        }
        for text in jobs {
            let job = job(text).ok_or_else(|| format!("{text:?} is no job's id"))?;
            all.push(Dependency { job, kind });
        }
    }
    Ok(all)
}

fn job(text: &str) -> Option<JobId> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id > 0).map(JobId)
}

pub fn dependency_kind(word: &str) -> Result<DependencyKind, String> {
    let short = match word {
        "ok" => Some(DependencyKind::AfterOk),
        "any" => Some(DependencyKind::AfterAny),
        "notok" => Some(DependencyKind::AfterNotOk),
        "begun" => Some(DependencyKind::After),
        _ => None,
    };
    short.or_else(|| DependencyKind::parse(word)).ok_or_else(|| {
        format!("{word:?} is no kind of dependency; there are ok, any, notok and begun")
    })
}

/// The short word for it.
pub fn dependency_word(kind: DependencyKind) -> &'static str {
    match kind {
        DependencyKind::AfterOk => "ok",
        DependencyKind::AfterAny => "any",
        DependencyKind::AfterNotOk => "notok",
        DependencyKind::After => "begun",
    }
}

pub fn tier(text: &str) -> Result<Tier, String> {
    let words = Tier::ALL.map(Tier::word);
    Tier::parse(text).ok_or_else(|| format!("tiers are {}", words.join(", ")))
}

/// `0-99`, `1,3,7`, `0-99:2` (every second), `0-99%5` (five at once).
pub fn array(text: &str) -> Result<v1::ArraySpec, String> {
    let bad = || "write indices such as 0-99, 1,3,7 or 0-99:2, and %5 for five at once".to_owned();
    let number = |text: &str| -> Result<u32, String> {
        match text.bytes().all(|b| b.is_ascii_digit()) {
            true => text.parse().map_err(|_| bad()),
            false => Err(bad()),
        }
    };
    let (indices, throttle) = match text.split_once('%') {
        None => (text, 0),
        Some((indices, throttle)) => match number(throttle)? {
            0 => return Err(format!("%0 would let no task run; {}", bad())),
            n => (indices, n),
        },
    };
    let mut ranges = Vec::new();
    for part in indices.split(',') {
        let (range, step) = part.split_once(':').unwrap_or((part, "1"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last, step) = (number(first)?, number(last)?, number(step)?);
        if first > last {
            return Err(format!("the range {range} ends before it begins"));
        }
        if step == 0 {
            return Err(format!("a step of 0 goes nowhere; {}", bad()));
        }
        ranges.push(v1::IndexRange { first, last, step });
    }
    Ok(v1::ArraySpec { ranges, throttle })
}

/// `0.25` of one GPU, in thousandths.
pub fn gpu_share(text: &str) -> Result<u32, String> {
    let bad = || "write a part of one GPU such as 0.25, at most 1 and in thousandths".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 3 {
        return Err(bad());
    }
    let whole: u32 = whole.parse().map_err(|_| bad())?;
    let milli: u32 = format!("{part:0<3}").parse().map_err(|_| bad())?;
    let milli = whole.checked_mul(1_000).and_then(|w| w.checked_add(milli)).ok_or_else(bad)?;
    if (1..=1_000).contains(&milli) { Ok(milli) } else { Err(bad()) }
}

/// Linux's, in their order from 1 on.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// `USR1`, `SIGUSR1` or `10`.
pub fn signal(text: &str) -> Result<i32, String> {
    let bad = || format!("{text:?} is no signal; write USR1, TERM or a number from 1 to 64");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(bad()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let at = SIGNALS.iter().position(|s| *s == name).ok_or_else(bad)?;
    i32::try_from(at + 1).map_err(|_| bad())
}

/// `USR1`, or the bare number where it has no name.
pub fn signal_text(signal: i32) -> String {
    let at = usize::try_from(signal).ok().and_then(|n| n.checked_sub(1));
    match at.and_then(|at| SIGNALS.get(at)) {
        Some(name) => (*name).to_owned(),
        None => signal.to_string(),
    }
}

/// `leaf:leaf-3`.
pub fn domain(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((level, name)) if !level.is_empty() && !name.is_empty() => {
            Ok((level.to_owned(), name.to_owned()))
        }
        _ => Err("write a level and a domain of it, such as leaf:leaf-3".to_owned()),
    }
}

/// `h100=64`, `h100=64..128`, `h100=..128`, `h100=2:leaf`, `h100=2:leaf..64`; `any` for all models.
pub fn quota(text: &str) -> Result<v1::Quota, String> {
    let bad = || {
        "write MODEL=GUARANTEED, MODEL=GUARANTEED..LIMIT or MODEL=..LIMIT, such as h100=64..128; \
         2:leaf guarantees two whole leaves, and the model `any` means all GPUs"
            .to_owned()
    };
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    let (model, rest) = text.split_once('=').ok_or_else(bad)?;
    if model.is_empty() || rest.is_empty() {
        return Err(bad());
    }
    let (guaranteed, limit) = match rest.split_once("..") {
        None => (rest, None),
        Some((_, "")) => return Err(bad()),
        Some((guaranteed, limit)) => (guaranteed, Some(number(limit)?)),
    };
    let (guaranteed, cell) = match guaranteed.split_once(':') {
        Some((domains, level)) if !level.is_empty() => {
            (0, Some(v1::Cell { level: level.to_owned(), domains: number(domains)? }))
        }
        Some(_) => return Err(bad()),
        None if guaranteed.is_empty() => (0, None),
        None => (number(guaranteed)?, None),
    };
    let gpu_model = if model == "any" { String::new() } else { model.to_ascii_lowercase() };
    Ok(v1::Quota { gpu_model, guaranteed, limit, cell })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_about_the_place() {
        let slice = slice("4:leaf:preferred").unwrap();
        assert_eq!((slice.nodes, slice.level.as_str()), (4, "leaf"));
        assert_eq!(slice.strength, Strength::Preferred);
        for bad in ["0:leaf", "leaf", "4:", "-4:leaf", "4:leaf:must", "99999999999:leaf", ":leaf"] {
            assert!(super::slice(bad).is_err(), "{bad:?}");
        }
        assert_eq!(at_most("2:block"), Ok(AtMost { domains: 2, level: "block".to_owned() }));
        assert!(at_most("0:block").unwrap_err().contains("too few"));
        assert_eq!(spread("leaf"), Ok(Spread { level: "leaf".to_owned(), max_skew: 1 }));
        assert_eq!(spread("leaf:3").unwrap().max_skew, 3);
        for bad in ["", ":1", "leaf:0", "leaf:-1", "leaf:x"] {
            assert!(spread(bad).is_err(), "{bad:?}");
        }
        for text in ["pool=a", "pool=a,b", "pool!=a", "ssd", "!ssd", "a/b.c=x=y"] {
            assert_eq!(label_text(&label(text).unwrap()), text);
        }
        for bad in ["", "=a", "!=a", "!", "a b=c", "!a=b"] {
            assert!(label(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn lists_of_nodes() {
        let names = |text: &str| {
            nodes(text).map(|n| n.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(names("n1,n2").as_deref(), Ok("n1 n2"));
        assert_eq!(names("n[08-10],m1").as_deref(), Ok("m1 n08 n09 n10"));
        assert_eq!(names("n[1,4-5].hall").as_deref(), Ok("n1.hall n4.hall n5.hall"));
        for bad in ["", "n[", "n[a-b]", "n[3-1]", "n[0-99999999]", "n[1-2][1-2]", "a b", "n[]"] {
            assert!(names(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn dependencies_in_both_dialects() {
        let read = |text: &str| {
            after(text).map(|all| {
                let one = |d: &Dependency| format!("{}:{}", dependency_word(d.kind), d.job);
                all.iter().map(one).collect::<Vec<_>>().join(" ")
            })
        };
        assert_eq!(read("ok:812").as_deref(), Ok("ok:812"));
        assert_eq!(read("812").as_deref(), Ok("ok:812"));
        assert_eq!(read("afterany:7:8,notok:9").as_deref(), Ok("any:7 any:8 notok:9"));
        assert_eq!(read("after:1,begun:2").as_deref(), Ok("begun:1 begun:2"));
        for bad in ["", "ok", "ok:", "ok:0", "ok:x", "maybe:1", "ok:-1", "1,,2"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn arrays_as_in_slurm() {
        let read = |text: &str| {
            array(text).map(|a| {
                let range = |r: &v1::IndexRange| format!("{}-{}:{}", r.first, r.last, r.step);
                let ranges: Vec<String> = a.ranges.iter().map(range).collect();
                format!("{}%{}", ranges.join(","), a.throttle)
            })
        };
        assert_eq!(read("0-99:2%5").as_deref(), Ok("0-99:2%5"));
        assert_eq!(read("1,3,7-9").as_deref(), Ok("1-1:1,3-3:1,7-9:1%0"));
        // It is the scheduler who counts them, and refuses.
        assert_eq!(read("0-4294967295").as_deref(), Ok("0-4294967295:1%0"));
        for bad in ["", "-1", "5-2", "0-9:0", "0-9%0", "0-9%", "a", "0-4294967296", "+1", "1-2-3"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn shares_signals_quotas_and_domains() {
        assert_eq!(gpu_share("0.25"), Ok(250));
        assert_eq!(gpu_share("1"), Ok(1_000));
        assert_eq!(gpu_share("0.5"), Ok(500));
        for bad in ["0", "0.0", "1.001", "2", "-0.5", "0.0001", "x", "", ".", "4294968", "1e-1"] {
            assert!(gpu_share(bad).is_err(), "{bad:?}");
        }
        for text in ["USR1", "sigusr1", "10", "SIGUSR1"] {
            assert_eq!(signal(text), Ok(10), "{text}");
        }
        assert_eq!((signal("KILL"), signal("64"), signal("SYS")), (Ok(9), Ok(64), Ok(31)));
        assert_eq!((signal_text(12), signal_text(40)), ("USR2".to_owned(), "40".to_owned()));
        for bad in ["0", "65", "-1", "SIG", "USR3", ""] {
            assert!(signal(bad).is_err(), "{bad:?}");
        }
        let read = |text: &str| {
            quota(text).map(|q| (q.gpu_model, q.guaranteed, q.limit, q.cell.map(|c| c.domains)))
        };
        assert_eq!(read("H100=64"), Ok(("h100".to_owned(), 64, None, None)));
        assert_eq!(read("h100=64..128"), Ok(("h100".to_owned(), 64, Some(128), None)));
        assert_eq!(read("any=..8"), Ok((String::new(), 0, Some(8), None)));
        assert_eq!(read("h100=2:leaf..64"), Ok(("h100".to_owned(), 0, Some(64), Some(2))));
        for bad in ["", "h100", "=8", "h100=", "h100=-8", "h100=8..", "h100=2:", "h100=x:leaf"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert_eq!(domain("leaf:a:b"), Ok(("leaf".to_owned(), "a:b".to_owned())));
        assert!(domain("leaf").is_err() && domain(":x").is_err());
    }
}
