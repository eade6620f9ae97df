//! The price book: immutable versions, each in force from one instant until the next begins.

use serde::{Deserialize, Serialize};
use tessera_model::usage::PriceVersion;
use tessera_model::{MicroUsd, UnixMillis};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PriceBook {
    /// In order of `effective_from`, which is also the order of publication.
    versions: Vec<PriceVersion>,
}

impl PriceBook {
    pub fn versions(&self) -> &[PriceVersion] {
        &self.versions
    }

    /// Adds a version. It must not begin before the last one: what was in force stays as it was.
    pub fn publish(&mut self, version: PriceVersion) {
        let last = self.versions.last();
        assert!(
            last.is_none_or(|l| l.effective_from < version.effective_from),
            "price versions begin one after another"
        );
        self.versions.push(version);
    }

    /// What a GPU model costs at an instant; `None` when no version covers it.
    pub fn price_at(&self, model: &str, at: UnixMillis) -> Option<MicroUsd> {
        let version = self.versions.iter().rev().find(|v| v.effective_from <= at)?;
        let model = model.to_ascii_lowercase();
        let price =
            version.prices.iter().find(|p| model.contains(&p.gpu_model.to_ascii_lowercase()))?;
        Some(price.per_gpu_hour)
    }

    /// Instants inside `(from, to)` at which prices change.
    pub fn changes_between(
        &self,
        from: UnixMillis,
        to: UnixMillis,
    ) -> impl Iterator<Item = UnixMillis> + '_ {
        self.versions.iter().map(|v| v.effective_from).filter(move |at| from < *at && *at < to)
    }
}
