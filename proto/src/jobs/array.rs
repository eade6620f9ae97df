//! Arrays: which indices, and how many at once.
//!
//! In: ranges from outside, which may say four billion in nine bytes. They are counted before one
//! of them is written out.

use tessera_model::Refusal;

use crate::{
    door::{Checked, count},
    v1,
};

/// Tasks of one array.
pub const ARRAY_TASKS_MAX: u64 = 100_000;
const RANGES_MAX: usize = 1_000;
/// As in Slurm.
const INDEX_MAX: u32 = 4_000_000;

/// The indices, each once and in rising order, and how many may run at once (0: all).
pub fn array_from_wire(wire: &v1::ArraySpec) -> Result<(Vec<u32>, u32), Refusal> {
    let field = "array";
    count(field, wire.ranges.len(), RANGES_MAX, "write neighbouring indices as one range")?;
    let tasks = wire.ranges.iter().try_fold(0u64, |sum, r| Ok(sum + length(r)?))?;
    if tasks == 0 {
        let message = "the array has no index";
        return Err(Refusal::invalid(field, message, "write indices such as 0-99 or 1,3,7"));
    }
    if tasks > ARRAY_TASKS_MAX {
        let message = format!("the array has {tasks} tasks, at most {ARRAY_TASKS_MAX} are allowed");
        let hint = "submit several arrays, or let one task do more of the work";
        return Err(Refusal::invalid(field, message, hint));
    }
    let mut indices: Vec<u32> = Vec::with_capacity(usize::try_from(tasks).unwrap_or(0));
    for range in &wire.ranges {
        let step = usize::try_from(range.step.max(1)).unwrap_or(usize::MAX);
        indices.extend((range.first..=range.last).step_by(step));
    }
    indices.sort_unstable();
    if let Some(twice) = indices.windows(2).find(|w| w[0] == w[1]) {
        let message = format!("the array names the index {} twice", twice[0]);
        return Err(Refusal::invalid(field, message, "name each index once"));
    }
    Ok((indices, wire.throttle))
}

fn length(range: &v1::IndexRange) -> Checked<u64> {
    let v1::IndexRange { first, last, step } = *range;
    if first > last {
        let message = format!("the array's range {first}-{last} ends before it begins");
        return Err(Refusal::invalid("array", message, format!("write {last}-{first}")));
    }
    let tasks = u64::from(last - first) / u64::from(step.max(1)) + 1;
    // How many there are is the better answer where both are too large.
    if last > INDEX_MAX && tasks <= ARRAY_TASKS_MAX {
        let message = format!("the array has the index {last}, at most {INDEX_MAX} are allowed");
        return Err(Refusal::invalid("array", message, "count from a lower number"));
    }
    Ok(tasks)
}

/// Rising indices as few ranges.
pub fn array_to_wire(indices: &[u32], throttle: u32) -> v1::ArraySpec {
    let mut ranges: Vec<v1::IndexRange> = Vec::new();
    for &index in indices {
        match ranges.last_mut() {
            Some(range) if range.last.checked_add(1) == Some(index) => range.last = index,
            _ => ranges.push(v1::IndexRange { first: index, last: index, step: 1 }),
        }
    }
    v1::ArraySpec { ranges, throttle }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Range = (u32, u32, u32);

    fn spec(ranges: &[Range]) -> v1::ArraySpec {
        let range = |&(first, last, step): &Range| v1::IndexRange { first, last, step };
        v1::ArraySpec { ranges: ranges.iter().map(range).collect(), throttle: 5 }
    }

    #[test]
    fn ranges_are_written_out_once() {
        let cases: [(&[Range], &[u32]); 4] = [
            (&[(0, 3, 1)], &[0, 1, 2, 3]),
            (&[(0, 7, 3)], &[0, 3, 6]),
            (&[(9, 9, 0), (1, 2, 0)], &[1, 2, 9]),
            (&[(4_000_000, 4_000_000, u32::MAX)], &[4_000_000]),
        ];
        for (ranges, want) in cases {
            assert_eq!(array_from_wire(&spec(ranges)), Ok((want.to_vec(), 5)), "{ranges:?}");
            assert_eq!(array_from_wire(&array_to_wire(want, 5)), Ok((want.to_vec(), 5)));
        }
        assert_eq!(array_to_wire(&[0, 1, 2, 9], 0).ranges.len(), 2);
    }

    #[test]
    fn an_array_of_four_billion_is_counted_and_refused() {
        let cases: [(&[Range], &str); 7] = [
            (&[(0, u32::MAX, 1)], "4294967296 tasks, at most 100000"),
            (&[(0, u32::MAX, 1), (0, u32::MAX, 1)], "8589934592 tasks"),
            (&[(0, 100_000, 1)], "100001 tasks"),
            (&[(5, 2, 1)], "ends before it begins"),
            (&[(0, 3, 1), (3, 3, 1)], "names the index 3 twice"),
            (&[(u32::MAX, u32::MAX, 1)], "the index 4294967295, at most 4000000"),
            (&[], "no index"),
        ];
        for (ranges, want) in cases {
            let refusal = array_from_wire(&spec(ranges)).expect_err(want);
            assert_eq!(refusal.field, "array");
            assert!(refusal.message.contains(want) && !refusal.hint.is_empty(), "{refusal:?}");
        }
        let many = v1::ArraySpec { ranges: vec![v1::IndexRange::default(); 1_001], throttle: 0 };
        assert!(array_from_wire(&many).unwrap_err().message.contains("1001 entries"));
    }
}
