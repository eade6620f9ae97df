//! Which jobs are meant: `812`, `812-815`, `last`.
//!
//! In: words of the command line. Out: job ids, each once, in the order they were named. Asking for
//! the last job is `call`'s work.

use tessera_model::JobId;

use crate::failure::{Failure, Outcome};

/// A range that is longer than this is more likely a slip than a wish.
const RANGE_MAX: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector {
    Job(JobId),
    Range(JobId, JobId),
    Last,
}

pub fn parse(word: &str) -> Outcome<Selector> {
    let bad = || {
        Failure::usage(
            format!("{word:?} names no job"),
            "write an id (812), a range (812-815) or `last`; `tessera queue` lists ids",
        )
    };
    if word == "last" {
        return Ok(Selector::Last);
    }
    let id = |text: &str| -> Option<JobId> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(JobId)
    };
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

/// The ids, with `last` filled in.
pub fn ids(selectors: &[Selector], last: Option<JobId>) -> Vec<JobId> {
    let mut out: Vec<JobId> = Vec::new();
    for selector in selectors {
        match *selector {
            Selector::Job(id) => out.push(id),
            Selector::Range(from, to) => out.extend((from.0..=to.0).map(JobId)),
            Selector::Last => out.extend(last),
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    out.retain(|id| seen.insert(*id));
    out
}

/// The ids the words name; asks the scheduler only where `last` is among them.
pub async fn resolve(api: &crate::call::Api, words: &[String]) -> Outcome<Vec<JobId>> {
    let selectors = parse_all(words)?;
    let last = if selectors.contains(&Selector::Last) { Some(api.last_job().await?) } else { None };
    Ok(ids(&selectors, last))
}

pub async fn resolve_one(api: &crate::call::Api, word: &str) -> Outcome<JobId> {
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
        let read = |text: &str| {
            parse_all(&words(text))
                .map(|s| ids(&s, Some(JobId(9))).iter().map(|i| i.0).collect::<Vec<_>>())
                .map_err(|f| f.message)
        };
        assert_eq!(read("812"), Ok(vec![812]));
        assert_eq!(read("1-3 2 7"), Ok(vec![1, 2, 3, 7]));
        assert_eq!(read("last 9 4"), Ok(vec![9, 4]));
        for bad in ["", "x", "-3", "3-", "1-2-3", "+4", "1.1", "all", "99999999999999999999"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(read("3-1").unwrap_err().contains("ends before"));
        assert!(read("0-18446744073709551615").unwrap_err().contains("names"));
    }
}
