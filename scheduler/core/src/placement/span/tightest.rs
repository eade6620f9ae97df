//! The parts of one domain: which of them, when all that counts is how many and how full.

/// Fewest of `sizes` that hold `need`, then those that together have the least too much, then the
/// first ones: which, and how much of each. What is too much stays in the largest.
pub(in crate::placement) fn tightest(sizes: &[u32], need: u32, unit: u32) -> Vec<(usize, u32)> {
    let used: Vec<usize> = (0..sizes.len()).filter(|i| sizes[*i] > 0).collect();
    let mut order = used.clone();
    order.sort_by_key(|i| (std::cmp::Reverse(sizes[*i]), *i));
    let (mut count, mut sum) = (0, 0);
    while sum < need {
        sum += sizes[order[count]];
        count += 1;
    }
    let mut chosen = order[..count].to_vec();
    if sum > need && count > 0 {
        if let Some(exact) = least_sum(sizes, &used, count, need / unit, sum / unit, unit) {
            chosen = exact;
        } else {
            // Too many ways: the largest but one, and the smallest that suffices for the rest.
            let last = chosen.pop().unwrap_or_default();
            let rest = need - (sum - sizes[last]);
            let small = order[count - 1..].iter().filter(|i| sizes[**i] >= rest);
            chosen.push(small.min_by_key(|i| (sizes[**i], **i)).copied().unwrap_or(last));
        }
    }
    chosen.sort_unstable();
    let mut over = chosen.iter().map(|i| sizes[*i]).sum::<u32>() - need;
    let largest = chosen.iter().copied().rev().max_by_key(|i| sizes[*i]);
    let give = |i: usize| {
        let less = if Some(i) == largest { std::mem::take(&mut over) } else { 0 };
        (i, sizes[i] - less)
    };
    chosen.into_iter().map(give).collect()
}

/// `count` of the sizes with the least sum that is no less than `need`, by sets of reachable sums;
/// `None` where that would be too much work.
fn least_sum(
    sizes: &[u32],
    used: &[usize],
    count: usize,
    need: u32,
    most: u32,
    unit: u32,
) -> Option<Vec<usize>> {
    const WORK: usize = 1 << 19;
    let words = most as usize / 64 + 1;
    if used.len() * (count + 1) * words > WORK {
        return None;
    }
    // reach[i][c]: sums of exactly c of the first i sizes, as bits.
    let row = (count + 1) * words;
    let mut reach = vec![0u64; (used.len() + 1) * row];
    reach[0] = 1;
    for (i, at) in used.iter().enumerate() {
        let size = (sizes[*at] / unit) as usize;
        let (old, new) = reach[i * row..(i + 2) * row].split_at_mut(row);
        new.copy_from_slice(old);
        let (jump, shift) = (size / 64, size % 64);
        for c in 0..count.min(i + 1) {
            let (from, to) = (&old[c * words..(c + 1) * words], (c + 1) * words);
            for w in jump..words {
                let mut word = from[w - jump] << shift;
                if shift > 0 && w > jump {
                    word |= from[w - jump - 1] >> (64 - shift);
                }
                new[to + w] |= word;
            }
        }
    }
    let has = |i: usize, c: usize, sum: u32| {
        reach[i * row + c * words + sum as usize / 64] >> (sum % 64) & 1 == 1
    };
    let mut sum = (need..=most).find(|s| has(used.len(), count, *s))?;
    let (mut c, mut chosen) = (count, Vec::new());
    for i in (0..used.len()).rev() {
        if has(i, c, sum) {
            continue;
        }
        chosen.push(used[i]);
        c -= 1;
        sum -= sizes[used[i]] / unit;
    }
    Some(chosen)
}
