//! The shipping rule, driven by itself: it learns the mix from what it is asked, and knows nothing
//! beforehand.

use tessera_core::placement::packing::{Ask, ClassId, Kind, Left, Mix, Packer, Tuning};

use super::Rule;

pub struct Waste {
    kinds: Vec<Kind>,
    tuning: Tuning,
    mix: Mix,
    packer: Packer,
    /// By node.
    classes: Vec<ClassId>,
}

impl Waste {
    pub fn new(kinds: &[Kind], nodes: &[Left]) -> Self {
        Self::tuned(kinds, nodes, Tuning::default())
    }

    pub fn tuned(kinds: &[Kind], nodes: &[Left], tuning: Tuning) -> Self {
        let mix = Mix::default();
        let packer = Packer::new(&mix, kinds, tuning);
        let mut new = Self { kinds: kinds.to_vec(), tuning, mix, packer, classes: Vec::new() };
        new.class_all(nodes);
        new
    }

    fn class_all(&mut self, nodes: &[Left]) {
        self.classes = nodes.iter().map(|left| self.packer.class_of(left)).collect();
    }
}

impl Rule for Waste {
    fn name(&self) -> &'static str {
        "tessera"
    }

    fn choose(&mut self, ask: &Ask, nodes: &[Left]) -> Option<(usize, u64)> {
        if self.mix.observe(ask) || self.packer.is_full() {
            self.packer = Packer::new(&self.mix, &self.kinds, self.tuning);
            self.class_all(nodes);
        }
        let numbered = (0u32..).zip(self.classes.iter().copied());
        let able = numbered.filter(|&(at, _)| ask.fits(&nodes[at as usize]));
        let choice = self.packer.choose(ask, able)?;
        let at = choice.position as usize;
        let devices = choice.take.devices(&nodes[at].gpus);
        Some((at, devices.expect("a class says what its nodes have left")))
    }

    fn changed(&mut self, node: usize, left: &Left) {
        self.classes[node] = self.packer.class_of(left);
    }
}
