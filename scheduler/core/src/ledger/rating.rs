//! Rating: intervals times prices, grouped as asked.
//!
//! A pure function of the intervals, the price book and the window: the same input gives the same
//! lines, byte for byte, however often and in whatever order the intervals come. An interval is cut
//! at UTC midnights (when days are asked for) and where prices change, and nowhere else.

use std::collections::BTreeMap;

use tessera_model::usage::{Interval, UsageClass, UsageKey, UsageLine};
use tessera_model::{Amount, Millis, PartMillis, UnixMillis};

use super::book::PriceBook;

/// The window `[from, to)` and how to group it.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    pub from: UnixMillis,
    pub to: UnixMillis,
    pub by: &'a [UsageKey],
}

/// Adds up intervals one by one, so that a year of them need not be in memory.
#[derive(Debug)]
pub struct Rating<'a> {
    question: Question<'a>,
    book: &'a PriceBook,
    lines: BTreeMap<Vec<String>, (PartMillis, Amount, PartMillis)>,
}

impl<'a> Rating<'a> {
    pub fn new(question: Question<'a>, book: &'a PriceBook) -> Self {
        Self { question, book, lines: BTreeMap::new() }
    }

    pub fn add(&mut self, interval: &Interval) {
        let start = interval.start.max(self.question.from);
        let end = interval.end.min(self.question.to);
        if start >= end {
            return;
        }
        let mut cuts: Vec<UnixMillis> = self.book.changes_between(start, end).collect();
        if self.question.by.contains(&UsageKey::Day) {
            let mut midnight = start.day_start().plus(Millis::DAY);
            while midnight < end {
                cuts.push(midnight);
                midnight = midnight.plus(Millis::DAY);
            }
            cuts.sort();
            cuts.dedup();
        }
        cuts.push(end);
        let mut from = start;
        for to in cuts {
            self.add_piece(interval, from, to);
            from = to;
        }
    }

    /// One piece, on one day and under one price.
    fn add_piece(&mut self, interval: &Interval, from: UnixMillis, to: UnixMillis) {
        let keys = self.question.by.iter().map(|key| value(*key, interval, from)).collect();
        let held = PartMillis::of(interval.parts, to.since(from));
        let line = self.lines.entry(keys).or_default();
        line.0 += held;
        match self.book.price_at(&interval.model, from) {
            Some(price) => line.1 += Amount::of(held, price),
            None => line.2 += held,
        }
    }

    /// The lines, in order of their keys.
    pub fn lines(self) -> Vec<UsageLine> {
        let line = |(keys, (held, amount, unpriced))| UsageLine { keys, held, amount, unpriced };
        self.lines.into_iter().map(line).collect()
    }
}

fn value(key: UsageKey, interval: &Interval, at: UnixMillis) -> String {
    // What is nobody's work has no project, user or job.
    const NOBODY: &str = "";
    match (key, &interval.class) {
        (UsageKey::Team, class) => class.account(),
        (UsageKey::Project, UsageClass::Allocated { project, .. }) => project.to_string(),
        (UsageKey::User, UsageClass::Allocated { user, .. }) => user.to_string(),
        (UsageKey::Job, UsageClass::Allocated { attempt, .. }) => attempt.job.to_string(),
        (UsageKey::Project | UsageKey::User | UsageKey::Job, _) => NOBODY.to_owned(),
        (UsageKey::GpuModel, _) => interval.model.clone(),
        (UsageKey::Gpu, _) => interval.gpu.to_string(),
        (UsageKey::Node, _) => interval.node.to_string(),
        (UsageKey::Class, class) => class.word().to_owned(),
        (UsageKey::Day, _) => at.date(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tessera_model::usage::{Price, PriceVersion};
    use tessera_model::{GpuId, MicroUsd, NodeId, PARTS_PER_GPU};

    use super::*;

    const DAY: i64 = 86_400_000;

    fn interval(gpu: u8, start: i64, end: i64) -> Interval {
        Interval {
            gpu: GpuId::parse(&format!("GPU-{gpu}")).unwrap(),
            node: NodeId::parse("n0").unwrap(),
            model: "NVIDIA H100 80GB HBM3".into(),
            start: UnixMillis(start),
            end: UnixMillis(end),
            parts: PARTS_PER_GPU,
            class: UsageClass::Idle,
        }
    }

    fn book(changes: &[(i64, i64)]) -> PriceBook {
        let mut book = PriceBook::default();
        for (i, (from, micro)) in changes.iter().enumerate() {
            book.publish(PriceVersion {
                version: u32::try_from(i).unwrap() + 1,
                effective_from: UnixMillis(*from),
                prices: vec![Price { gpu_model: "h100".into(), per_gpu_hour: MicroUsd(*micro) }],
                note: String::new(),
            });
        }
        book
    }

    fn rate(intervals: &[Interval], book: &PriceBook, by: &[UsageKey], to: i64) -> Vec<UsageLine> {
        let question = Question { from: UnixMillis(0), to: UnixMillis(to), by };
        let mut rating = Rating::new(question, book);
        intervals.iter().for_each(|i| rating.add(i));
        rating.lines()
    }

    #[test]
    fn usage_up_to_a_price_change_pays_the_old_price_and_from_it_the_new() {
        let lines = rate(
            &[interval(0, 0, 7_200_000)],
            &book(&[(0, 2_000_000), (3_600_000, 3_000_000)]),
            &[],
            DAY,
        );
        assert_eq!(lines[0].amount.usd12(), "5.000000000000");
    }

    #[test]
    fn a_quarter_of_a_gpu_costs_a_quarter() {
        let share = Interval { parts: PARTS_PER_GPU / 4, ..interval(0, 0, 3_600_000) };
        let lines = rate(&[share], &book(&[(0, 2_000_000)]), &[], DAY);
        assert_eq!(lines[0].amount.usd12(), "0.500000000000");
        assert_eq!(lines[0].held.gpu_ms(), "900000");
        assert_eq!(lines[0].held.hours12(), "0.250000000000");
    }

    #[test]
    fn time_before_the_first_price_is_shown_as_unpriced() {
        let lines = rate(&[interval(0, 0, 100)], &book(&[(60, 1_000_000)]), &[], DAY);
        assert_eq!(
            (lines[0].held, lines[0].unpriced),
            (PartMillis::whole(100), PartMillis::whole(60))
        );
    }

    proptest! {
        /// The month is the sum of its days, and the order of the intervals does not matter.
        #[test]
        fn days_sum_to_the_whole(
            spans in proptest::collection::vec((0u8..4, 0i64..10 * DAY, 1i64..3 * DAY), 1..40),
            change in 1i64..10 * DAY,
        ) {
            let mut spans: Vec<Interval> =
                spans.into_iter().map(|(g, start, len)| interval(g, start, start + len)).collect();
            let book = book(&[(0, 2_950_000), (change, 3_333_333)]);
            let whole = rate(&spans, &book, &[], 9 * DAY);
            let days = rate(&spans, &book, &[UsageKey::Day], 9 * DAY);
            spans.reverse();
            prop_assert_eq!(&days, &rate(&spans, &book, &[UsageKey::Day], 9 * DAY));
            let amount = |lines: &[UsageLine]| lines.iter().map(|l| l.amount.0).sum::<i128>();
            let held = |lines: &[UsageLine]| lines.iter().map(|l| l.held).sum::<PartMillis>();
            prop_assert_eq!(amount(&whole), amount(&days));
            prop_assert_eq!(held(&whole), held(&days));
        }
    }
}
