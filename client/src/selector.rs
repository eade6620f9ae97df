//! Which jobs are meant: `812`, `812-815`, `812_7`, `last`.
//!
//! In: words of the command line. Out: job ids, each once, in the order they were named. Asking for
//! the last job is `call`'s work.

use tessera_model::JobId;

use crate::call::Api;
use crate::failure::{Failure, Outcome};

/// A range that is longer than this is more likely a slip than a wish.
const RANGE_MAX: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector {
    Job(JobId),
    /// The task of an array with this index.
    Task(JobId, u32),
    Range(JobId, JobId),
    Last,
}

pub fn parse(word: &str) -> Outcome<Selector> {
    let bad = || {
        Failure::usage(
            format!("{word:?} names no job"),
            "write an id (812), a range (812-815), a task of an array (812_7) or `last`; `tessera \
             queue` lists ids",
        )
    };
    if word == "last" {
        return Ok(Selector::Last);
    }
    let id = |text: &str| -> Option<JobId> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(JobId)
    };
    if let Some((array, index)) = word.split_once('_') {
        let index = id(index).and_then(|i| u32::try_from(i.0).ok());
        let (Some(array), Some(index)) = (id(array), index) else { return Err(bad()) };
        return Ok(Selector::Task(array, index));
    }
    match word.split_once('-') {
        None => id(word).map(Selector::Job).ok_or_else(bad),
        Some((from, to)) => {
            let (Some(from), Some(to)) = (id(from), id(to)) else { return Err(bad()) };
            if from > to {
                return Err(Failure::usage(
                    format!("the range {word} ends before it begins"),
                    format!("write {to}-{from}"),
                ));
            }
            if to.0 - from.0 >= RANGE_MAX {
                return Err(Failure::usage(
                    format!("the range {word} names {} jobs", (to.0 - from.0).saturating_add(1)),
                    format!("name at most {RANGE_MAX} at once"),
                ));
            }
            Ok(Selector::Range(from, to))
        }
    }
}

pub fn parse_all(words: &[String]) -> Outcome<Vec<Selector>> {
    words.iter().map(|w| parse(w)).collect()
}

/// What a verb that changes jobs is to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub job: JobId,
    /// The task of the array `job` with this index.
    pub index: Option<u32>,
    /// `job` alone, even where it is the first task of an array.
    pub only: bool,
}

impl Target {
    pub fn job(job: JobId) -> Self {
        Self { job, index: None, only: false }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.index {
            Some(index) => write!(f, "{}_{index}", self.job),
            None => write!(f, "{}", self.job),
        }
    }
}

/// What the selectors mean, each once, with `last` filled in: of an array it is the whole array.
pub fn fill_in(selectors: &[Selector], last: Option<JobId>) -> Vec<Target> {
    let mut out: Vec<Target> = Vec::new();
    for selector in selectors {
        match *selector {
            Selector::Job(id) => out.push(Target::job(id)),
            Selector::Task(array, index) => {
                out.push(Target { index: Some(index), ..Target::job(array) });
            }
            // Who counts jobs one by one means them one by one.
            Selector::Range(from, to) => {
                let each = |id| Target { only: true, ..Target::job(JobId(id)) };
                out.extend((from.0..=to.0).map(each));
            }
            Selector::Last => out.extend(last.map(Target::job)),
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    out.retain(|target| seen.insert((target.job, target.index)));
    out
}

/// What the words mean for a verb that changes jobs.
pub async fn targets(api: &Api, words: &[String]) -> Outcome<Vec<Target>> {
    let selectors = parse_all(words)?;
    let last = match selectors.contains(&Selector::Last) {
        true => {
            let newest = api.job(api.last_job().await?).await?;
            Some(newest.array.map_or(newest.id, |a| a.array))
        }
        false => None,
    };
    Ok(fill_in(&selectors, last))
}

/// The ids the words name; asks the scheduler only where `last` or a task of an array is among them.
pub async fn resolve(api: &Api, words: &[String]) -> Outcome<Vec<JobId>> {
    let selectors = parse_all(words)?;
    let last = if selectors.contains(&Selector::Last) { Some(api.last_job().await?) } else { None };
    let mut ids = Vec::new();
    for target in fill_in(&selectors, last) {
        ids.push(match target.index {
            Some(_) => api.get(target.job, target.index).await?.id,
            None => target.job,
        });
    }
    Ok(ids)
}

/// The same, and of an array all its tasks.
pub async fn resolve_tasks(api: &Api, words: &[String]) -> Outcome<Vec<JobId>> {
    let mut ids = Vec::new();
    for target in targets(api, words).await? {
        if target.index.is_some() {
            ids.push(api.get(target.job, target.index).await?.id);
            continue;
        }
        ids.push(target.job);
        if target.only || api.job(target.job).await?.array.map(|a| a.array) != Some(target.job) {
            continue;
        }
        // The ids of an array's tasks follow each other.
        for id in target.job.0 + 1.. {
            match api.job(JobId(id)).await {
                Ok(job) if job.array.is_some_and(|a| a.array == target.job) => ids.push(job.id),
                Ok(_) => break,
                Err(failure) if failure.kind == "not_found" => break,
                Err(failure) => return Err(failure),
            }
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

pub async fn resolve_one(api: &Api, word: &str) -> Outcome<JobId> {
    match resolve(api, &[word.to_owned()]).await?.as_slice() {
        [id] => Ok(*id),
        _ => Err(Failure::usage(
            format!("{word:?} names several jobs, and one is wanted"),
            "write one id",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_jobs() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let read = |typed: &str| {
            let text = |s: Vec<Selector>| {
                let named = fill_in(&s, Some(JobId(9)));
                let only = |t: &Target| if t.only { "!" } else { "" };
                let each = named.iter().map(|t| format!("{t}{}", only(t)));
                each.collect::<Vec<_>>().join(" ")
            };
            parse_all(&words(typed)).map(text).map_err(|f| f.message)
        };
        assert_eq!(read("812"), Ok("812".to_owned()));
        assert_eq!(read("1-3 2 7"), Ok("1! 2! 3! 7".to_owned()));
        assert_eq!(read("last 9 4"), Ok("9 4".to_owned()));
        assert_eq!(read("812_7 812_0 812"), Ok("812_7 812_0 812".to_owned()));
        for bad in [
            "",
            "x",
            "_7",
            "8_",
            "8_x",
            "8_99999999999",
            "8_7_1",
            "-3",
            "3-",
            "1-2-3",
            "+4",
            "1.1",
            "all",
            "99999999999999999999",
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(read("3-1").unwrap_err().contains("ends before"));
        assert!(read("0-18446744073709551615").unwrap_err().contains("names"));
    }
}
