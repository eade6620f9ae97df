//! A set of nodes, as bits in the order of a space.

/// Indices of nodes of one [`Space`](super::Space).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSet {
    words: Vec<u64>,
    len: usize,
}

impl NodeSet {
    /// None of `len` nodes.
    pub fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)], len }
    }

    /// All of `len` nodes.
    pub fn all(len: usize) -> Self {
        let mut set = Self { words: vec![u64::MAX; len.div_ceil(64)], len };
        if let Some(last) = set.words.last_mut().filter(|_| !len.is_multiple_of(64)) {
            *last = (1 << (len % 64)) - 1;
        }
        set
    }

    /// How many nodes there are to choose from, in the set or not.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    pub fn insert(&mut self, node: u32) {
        self.words[node as usize / 64] |= 1 << (node % 64);
    }

    pub fn remove(&mut self, node: u32) {
        self.words[node as usize / 64] &= !(1 << (node % 64));
    }

    /// False for a node beyond the set's length.
    pub fn contains(&self, node: u32) -> bool {
        self.words.get(node as usize / 64).is_some_and(|w| w >> (node % 64) & 1 == 1)
    }

    pub fn union(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
    }

    pub fn intersect(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= b);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= !b);
    }

    pub fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// How many of `first..end` are in it.
    pub fn count_in(&self, first: u32, end: u32) -> u32 {
        self.spans(first, end).map(|(_, w)| w.count_ones()).sum()
    }

    /// Those of `first..end` in it, ascending.
    pub fn iter_in(&self, first: u32, end: u32) -> impl Iterator<Item = u32> + '_ {
        self.spans(first, end).flat_map(|(at, word)| Bits(word).map(move |b| at + b))
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.words).flat_map(|(i, w)| Bits(*w).map(move |b| i * 64 + b))
    }

    pub(super) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// The words that `first..end` touches, cut to it.
    fn spans(&self, first: u32, end: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
        let words = first / 64..end.max(first).div_ceil(64);
        words.map(move |i| {
            let mut word = self.words[i as usize];
            if i * 64 < first {
                word &= u64::MAX << (first % 64);
            }
            if end < (i + 1) * 64 {
                word &= !(u64::MAX << (end % 64));
            }
            (i * 64, word)
        })
    }
}

impl FromIterator<u32> for NodeSet {
    fn from_iter<T: IntoIterator<Item = u32>>(nodes: T) -> Self {
        let mut set = Self::default();
        for node in nodes {
            set.len = set.len.max(node as usize + 1);
            set.words.resize(set.len.div_ceil(64), 0);
            set.insert(node);
        }
        set
    }
}

/// Positions of the bits of a word.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let bit = self.0.trailing_zeros();
        self.0 &= self.0 - 1;
        Some(bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_both_ends() {
        let set: NodeSet = [0, 5, 63, 64, 65, 127, 128, 200].into_iter().collect();
        for first in 0..=201 {
            for end in first..=201 {
                let want: Vec<u32> = set.iter().filter(|n| (first..end).contains(n)).collect();
                assert_eq!(set.iter_in(first, end).collect::<Vec<_>>(), want, "{first}..{end}");
                assert_eq!(set.count_in(first, end), want.len() as u32, "{first}..{end}");
            }
        }
        assert_eq!(NodeSet::all(70).count(), 70);
        assert!(!NodeSet::new(3).contains(70));
    }
}
