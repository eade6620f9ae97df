//! Node states, told apart by number.
//!
//! In: what is left on a node, CPUs and memory rounded. Out: a small number, the same for every
//! node with the same left, whatever the order of its devices: what is known of one holds for all.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

use super::Left;

/// A node state. Good only with the packer that gave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassId(pub u32);

impl ClassId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Default)]
pub struct Classes {
    known: HashMap<Left, ClassId, Quick>,
    /// By number, devices ascending.
    lefts: Vec<Left>,
}

impl Classes {
    pub fn intern(&mut self, mut left: Left) -> ClassId {
        left.gpus.as_mut_slice().sort_unstable();
        if let Some(&id) = self.known.get(&left) {
            return id;
        }
        let id = ClassId(u32::try_from(self.lefts.len()).expect("is_full comes long before"));
        self.known.insert(left, id);
        self.lefts.push(left);
        id
    }

    pub fn get(&self, id: ClassId) -> &Left {
        &self.lefts[id.index()]
    }

    pub fn len(&self) -> usize {
        self.lefts.len()
    }
}

impl Hash for Left {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(u64::from(self.kind) << 32 | u64::from(self.cpus));
        state.write_u64(self.memory);
        for four in self.gpus.as_slice().chunks(4) {
            state.write_u64(four.iter().fold(0, |word, &m| word << 16 | u64::from(m)));
        }
    }
}

/// A multiplying hasher for keys of our own making. Maps that use it are never walked, so its
/// order reaches nothing.
pub type Quick = BuildHasherDefault<Multiply>;

#[derive(Default)]
pub struct Multiply(u64);

impl Hasher for Multiply {
    fn write(&mut self, bytes: &[u8]) {
        for eight in bytes.chunks(8) {
            self.write_u64(eight.iter().fold(0, |word, &b| word << 8 | u64::from(b)));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u16(&mut self, word: u16) {
        self.write_u64(u64::from(word));
    }

    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 29
    }
}
