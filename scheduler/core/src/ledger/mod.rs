//! The account: what every GPU was doing, and what that costs.
//!
//! Two ledgers, one truth. [`timeline`] cuts each GPU's life into intervals without gap or overlap,
//! from the events of leases and nodes, never from samples. [`rating`] multiplies them with the
//! [`book`]'s prices. Nothing is divided here: amounts leave as exact integers.

pub mod book; // which price holds when
pub mod rating;
pub mod timeline; // one class for each GPU at each instant // intervals times prices, grouped
