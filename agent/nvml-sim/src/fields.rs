//! nvmlDeviceGetFieldValues: one number for each field id.
//!
//! In: field ids as the node's driver numbers them, and scopes (links). Out: a typed value or a
//! return code for each, never one for all. Drivers from 580.82 on number 251..273 differently; a
//! caller that asks by the wrong scheme gets another field, as it would from the real driver.

use nvml_wrapper_sys::bindings::field_id::*;

use crate::abi::Code;
use crate::call::Device;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    U32(u32),
    U64(u64),
    I32(i32),
}

/// From an id as the driver numbers it to one of CUDA 12's numbering, which the bindings use.
pub fn canonical(id: u32, driver: (u32, u32)) -> u32 {
    if driver < (580, 82) {
        return id;
    }
    match id {
        251..=268 => id + 5,
        269..=273 => id - 18,
        other => other,
    }
}

/// Scope that means "all links together".
const ALL_LINKS: u32 = u32::MAX;

