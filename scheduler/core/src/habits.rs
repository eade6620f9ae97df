//! What jobs are known to do: how much of their time limits they use, and which had to leave lately.
//!
//! In: ends of attempts and requests to leave, as events tell them. Out: quantiles of run times,
//! which move the shown time of arrival and never a promise, and counts that keep the same job from
//! being sent away again and again. Integers only, so the same journal gives the same answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tessera_model::{JobId, JobSpec, Millis, UnixMillis};

/// A limit is cut into so many parts; a job that ran is counted in the part it ended in.
const PARTS: usize = 20;
/// Ends of one kind after which older ones count half.
const FORGETS_AT: u32 = 1_000;
/// Fewer ends than this say nothing.
const ENOUGH: u32 = 5;
/// Kinds of jobs known by name; further names are counted with their project only.
const NAMES_MAX: usize = 10_000;
/// Names and projects in all; of further projects nothing is known.
const KINDS_MAX: usize = 2 * NAMES_MAX;

/// Work that may be lost in a day, in all, by jobs that are moved to make room for a larger gang:
/// 24 GPU-hours.
pub const MOVES_A_DAY_GPU_MS: u64 = 24 * 3_600_000;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Habits {
    /// By `team/project`, and by `team/project/name`.
    lengths: BTreeMap<String, Lengths>,
    /// When a waiting or running job had to leave, within the last day.
    left: BTreeMap<JobId, Vec<UnixMillis>>,
    /// What moves have cost in GPU-milliseconds, within the last day.
    moved: Vec<(UnixMillis, u64)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Lengths {
    parts: [u32; PARTS],
}

impl Habits {
    /// An attempt ended by itself after it had run so long.
    pub fn ran(&mut self, spec: &JobSpec, length: Millis) {
        let Some(limit) = spec.time_limit.filter(|l| l.0 > 0) else { return };
        let part = u128::from(length.0) * PARTS as u128 / u128::from(limit.0);
        let part = usize::try_from(part).unwrap_or(PARTS).min(PARTS - 1);
        let project = project(spec);
        let name = format!("{project}/{}", spec.name);
        self.count(name, part, NAMES_MAX);
        self.count(project, part, KINDS_MAX);
    }

    /// A kind that is not known yet is counted only while fewer than `most` are.
    fn count(&mut self, kind: String, part: usize, most: usize) {
        if self.lengths.contains_key(&kind) || self.lengths.len() < most {
            self.lengths.entry(kind).or_default().count(part);
        }
    }

    /// How long a job that has run for `elapsed` runs in all, in so many percent of cases at most.
    /// `None` where too little is known, or no limit is there to measure by.
    pub fn length(&self, spec: &JobSpec, elapsed: Millis, percent: u32) -> Option<Millis> {
        let limit = spec.time_limit.filter(|l| l.0 > 0)?;
        let project = project(spec);
        let known = [format!("{project}/{}", spec.name), project];
        let from = u128::from(elapsed.0) * PARTS as u128 / u128::from(limit.0);
        let from = usize::try_from(from).unwrap_or(PARTS).min(PARTS - 1);
        let part = known.iter().find_map(|k| self.lengths.get(k)?.quantile(from, percent))?;
        let length = u128::from(limit.0) * (part as u128 + 1) / PARTS as u128;
        Some(Millis(u64::try_from(length).unwrap_or(u64::MAX)).max(elapsed))
    }

    pub fn left(&mut self, job: JobId, now: UnixMillis) {
        let lately = |at: &UnixMillis| now.since(*at) < Millis::DAY;
        self.left.retain(|_, times| {
            times.retain(lately);
            !times.is_empty()
        });
        self.left.entry(job).or_default().push(now);
    }

    /// A job was moved, and lost so many GPU-milliseconds of work.
    pub fn moved(&mut self, cost: u64, now: UnixMillis) {
        self.moved.retain(|(at, _)| now.since(*at) < Millis::DAY);
        self.moved.push((now, cost));
    }

    /// GPU-milliseconds that moves have cost in the last day.
    pub fn moved_lately(&self, now: UnixMillis) -> u64 {
        let lately = self.moved.iter().filter(|(at, _)| now.since(*at) < Millis::DAY);
        lately.fold(0, |sum, (_, cost)| sum.saturating_add(*cost))
    }

    /// How often the job had to leave in the last day.
    pub fn left_lately(&self, job: JobId, now: UnixMillis) -> u32 {
        let times = self.left.get(&job).map_or(&[][..], Vec::as_slice);
        let lately = times.iter().filter(|at| now.since(**at) < Millis::DAY).count();
        u32::try_from(lately).unwrap_or(u32::MAX)
    }
}

impl Lengths {
    fn count(&mut self, part: usize) {
        self.parts[part] += 1;
        if self.parts.iter().sum::<u32>() >= FORGETS_AT {
            self.parts.iter_mut().for_each(|n| *n /= 2);
        }
    }

    /// The part in which so many percent of those have ended that did not end before `from`.
    fn quantile(&self, from: usize, percent: u32) -> Option<usize> {
        let all: u32 = self.parts[from..].iter().sum();
        if all < ENOUGH {
            return None;
        }
        let wanted = (u64::from(all) * u64::from(percent)).div_ceil(100);
        let mut so_far = 0u64;
        (from..PARTS).find(|part| {
            so_far += u64::from(self.parts[*part]);
            so_far >= wanted
        })
    }
}

fn project(spec: &JobSpec) -> String {
    format!("{}/{}", spec.team, spec.project)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(parts: &[(usize, u32)]) -> Lengths {
        let mut lengths = Lengths::default();
        for (part, count) in parts {
            (0..*count).for_each(|_| lengths.count(*part));
        }
        lengths
    }

    #[test]
    fn a_quantile_counts_those_that_did_not_end_before() {
        let known = lengths(&[(1, 10), (9, 10), (19, 10)]);
        assert_eq!(known.quantile(0, 50), Some(9));
        assert_eq!(known.quantile(0, 10), Some(1));
        assert_eq!(known.quantile(2, 50), Some(9));
        assert_eq!(known.quantile(10, 50), Some(19));
        assert_eq!(lengths(&[(3, 4)]).quantile(0, 50), None, "four ends say nothing");
    }

    #[test]
    fn what_was_long_ago_counts_less() {
        let mut known = lengths(&[(19, 999)]);
        (0..999).for_each(|_| known.count(1));
        assert_eq!(known.quantile(0, 50), Some(1));
        assert!(known.parts.iter().sum::<u32>() < FORGETS_AT);
    }

    #[test]
    fn what_is_known_of_kinds_is_bounded() {
        let mut habits = Habits::default();
        for i in 0..=KINDS_MAX {
            habits.count(i.to_string(), 3, KINDS_MAX);
        }
        assert_eq!(habits.lengths.len(), KINDS_MAX);
        habits.count("0".to_owned(), 3, NAMES_MAX);
        assert_eq!(habits.lengths["0"].parts[3], 2, "what is known goes on");
    }

    #[test]
    fn a_day_later_nobody_had_to_leave_lately() {
        let mut habits = Habits::default();
        let (job, start) = (JobId(7), UnixMillis(1_000));
        habits.left(job, start);
        habits.left(job, start.plus(Millis::HOUR));
        assert_eq!(habits.left_lately(job, start.plus(Millis::HOUR)), 2);
        assert_eq!(habits.left_lately(job, start.plus(Millis::DAY)), 1);
        habits.left(JobId(8), start.plus(Millis(Millis::DAY.0 * 3)));
        assert_eq!(habits.left.len(), 1, "what is over is forgotten");
    }
}
