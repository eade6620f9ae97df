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

/// Picks one counter of a meter.
type Counter = fn(&crate::meter::Totals) -> f64;

/// Scope that means "all links together".
const ALL_LINKS: u32 = u32::MAX;

/// A field of a GPU. `id` is the canonical one.
pub fn value(d: &Device, id: u32, scope: u32) -> Result<Value, Code> {
    let (spec, fx, node) = (d.hw().spec, &d.fx, d.node());
    let now = node.clock.secs();
    let milliwatts = |w: f64| Ok(Value::U32((w * 1000.0) as u32));
    let count = |n: u64| Ok(Value::U64(n));
    if let Some(answer) = link_field(d, id, scope, now) {
        return answer;
    }
    match id {
        NVML_FI_DEV_ECC_CURRENT | NVML_FI_DEV_ECC_PENDING => Ok(Value::U32(1)),
        NVML_FI_DEV_ECC_SBE_VOL_TOTAL | NVML_FI_DEV_ECC_SBE_VOL_DEV => count(fx.sbe.1),
        NVML_FI_DEV_ECC_DBE_VOL_TOTAL | NVML_FI_DEV_ECC_DBE_VOL_DEV => count(fx.dbe.1),
        NVML_FI_DEV_ECC_SBE_AGG_TOTAL | NVML_FI_DEV_ECC_SBE_AGG_DEV => count(fx.sbe.0),
        NVML_FI_DEV_ECC_DBE_AGG_TOTAL | NVML_FI_DEV_ECC_DBE_AGG_DEV => count(fx.dbe.0),
        NVML_FI_DEV_ECC_SBE_VOL_L1..=NVML_FI_DEV_ECC_DBE_AGG_CBU => count(0),
        // Ampere and later remap rows; pages are retired on older GPUs only.
        NVML_FI_DEV_RETIRED_SBE..=NVML_FI_DEV_RETIRED_PENDING => Err(Code::NOT_SUPPORTED),
        NVML_FI_DEV_REMAPPED_COR => Ok(Value::U32(0)),
        NVML_FI_DEV_REMAPPED_UNC => Ok(Value::U32(fx.remapped_rows as u32)),
        NVML_FI_DEV_REMAPPED_PENDING => Ok(Value::U32(fx.remap_pending.into())),
        NVML_FI_DEV_REMAPPED_FAILURE => Ok(Value::U32(fx.remap_failure.into())),
        NVML_FI_DEV_PERF_POLICY_POWER => {
            count(node.meter(d.index).totals.power_violation_ns as u64)
        }
        NVML_FI_DEV_PERF_POLICY_THERMAL => {
            count(node.meter(d.index).totals.thermal_violation_ns as u64)
        }
        NVML_FI_DEV_PERF_POLICY_SYNC_BOOST..=NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS => count(0),
        NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN
        | NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN => {
            let wanted =
                if id == NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN { 0x20 } else { 0x40 };
            let ns = node.meter(d.index).totals.thermal_violation_ns as u64;
            count(if fx.throttle & wanted != 0 { ns } else { 0 })
        }
        NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN => count(0),
        NVML_FI_PWR_SMOOTHING_ENABLED if spec.arch >= 10 => Ok(Value::U32(0)),
        NVML_FI_DEV_MEMORY_TEMP if spec.nvlinks > 0 => {
            Ok(Value::U32((node.meter(d.index).temp_c + 7.0) as u32))
        }
        NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION => count(node.meter(d.index).totals.energy_mj as u64),
        // Taken to be in millijoules as well; no driver was at hand to ask.
        NVML_FI_DEV_ENERGY => count(node.meter(d.index).totals.energy_mj as u64),
        NVML_FI_DEV_POWER_AVERAGE | NVML_FI_DEV_POWER_INSTANT => {
            let gpu = node.meter(d.index).power_mw;
            match scope {
                0 => Ok(Value::U32(gpu)),
                // The module: GPU, its share of the CPU and the memory.
                1 if spec.c2c_links > 0 => Ok(Value::U32(gpu + 150_000)),
                _ => Err(Code::NOT_SUPPORTED),
            }
        }
        NVML_FI_DEV_POWER_MIN_LIMIT => milliwatts(spec.min_limit_w),
        NVML_FI_DEV_POWER_MAX_LIMIT
        | NVML_FI_DEV_POWER_DEFAULT_LIMIT
        | NVML_FI_DEV_POWER_CURRENT_LIMIT
        | NVML_FI_DEV_POWER_REQUESTED_LIMIT => milliwatts(spec.limit_w),
        NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT => Ok(Value::I32(-7)),
        NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT => Ok(Value::I32(-2)),
        NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT | NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT => {
            Ok(Value::I32(0))
        }
        NVML_FI_DEV_PCIE_REPLAY_COUNTER
        | NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER
        | NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER
        | NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS..=NVML_FI_DEV_PCIE_COUNT_LANE_ERROR => {
            Ok(Value::U32(0))
        }
        // These two are 32 bits wide and wrap.
        NVML_FI_DEV_PCIE_COUNT_TX_BYTES => {
            Ok(Value::U32(node.meter(d.index).totals.pcie_tx as u64 as u32))
        }
        NVML_FI_DEV_PCIE_COUNT_RX_BYTES => {
            Ok(Value::U32(node.meter(d.index).totals.pcie_rx as u64 as u32))
        }
        NVML_FI_DEV_NVLINK_LINK_COUNT => Ok(Value::U32(spec.nvlinks)),
        NVML_FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT if spec.nvlinks > 0 => {
            Ok(Value::U32(spec.nvlinks - (fx.links_down & ((1 << spec.nvlinks) - 1)).count_ones()))
        }
        NVML_FI_DEV_C2C_LINK_COUNT if spec.c2c_links > 0 => Ok(Value::U32(spec.c2c_links)),
        NVML_FI_DEV_C2C_LINK_GET_STATUS if scope < spec.c2c_links => Ok(Value::U32(1)),
        NVML_FI_DEV_C2C_LINK_GET_MAX_BW if scope < spec.c2c_links => Ok(Value::U32(45_000)),
        NVML_FI_DEV_C2C_LINK_ERROR_INTR..=NVML_FI_DEV_C2C_LINK_ERROR_REPLAY_B2B
            if scope < spec.c2c_links =>
        {
            count(0)
        }
        NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED if spec.mig => {
            Ok(Value::U32((spec.arch >= 9).into()))
        }
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION if spec.arch >= 7 => Ok(Value::U32(recovery_action(d))),
        1..NVML_FI_MAX => Err(Code::NOT_SUPPORTED),
        _ => Err(Code::INVALID_ARGUMENT),
    }
}

/// 0 none, 1 reset the GPU, 4 drain it and reset.
fn recovery_action(d: &Device) -> u32 {
    match &d.fx {
        fx if fx.dbe.1 > 0 || fx.remap_failure => 1,
        fx if fx.remap_pending => 4,
        _ => 0,
    }
}

/// NVLink errors on one link, or on all, since the driver was loaded.
pub fn link_errors(d: &Device, link: Option<u32>, now: f64) -> u64 {
    let since = d.node().counting_since();
    d.fx.link_errors
        .iter()
        .filter(|r| link.is_none_or(|l| r.which == l))
        .map(|r| r.count(since, now))
        .sum()
}

/// Fields that take a link as their scope, and those that have the link in their name.
fn link_field(d: &Device, id: u32, scope: u32, now: f64) -> Option<Result<Value, Code>> {
    let (spec, fx, node) = (d.hw().spec, &d.fx, d.node());
    // (first id of links 0..5, total, first id of links 6..11)
    const BY_NAME: [(u32, u32, u32); 4] = [
        (
            NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L0,
            NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L6,
        ),
        (
            NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_L0,
            NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_L6,
        ),
        (
            NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L0,
            NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_L6,
        ),
        (
            NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_L0,
            NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
            NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_L6,
        ),
    ];
    let link_of = |first: u32, later: u32| match id {
        _ if (first..first + 6).contains(&id) => Some(id - first),
        _ if (later..later + 6).contains(&id) => Some(id - later + 6),
        _ => None,
    };
    let no_link = || Some(Err(Code::NOT_SUPPORTED));
    for (kind, (first, total, later)) in BY_NAME.into_iter().enumerate() {
        // Recoveries are rare, data errors rarer than flit errors.
        let share = [1, 4, 1, 16][kind];
        if id == total {
            return if spec.nvlinks == 0 {
                no_link()
            } else {
                Some(Ok(Value::U64(link_errors(d, None, now) / share)))
            };
        }
        if let Some(link) = link_of(first, later) {
            return if link < spec.nvlinks {
                Some(Ok(Value::U64(link_errors(d, Some(link), now) / share)))
            } else {
                no_link()
            };
        }
    }
    let speed = |link: u32| {
        let up = fx.links_down >> link & 1 == 0;
        Some(if link < spec.nvlinks {
            Ok(Value::U32(if up { spec.nvlink_mbps } else { 0 }))
        } else {
            Err(Code::NOT_SUPPORTED)
        })
    };
    if let Some(link) = link_of(NVML_FI_DEV_NVLINK_SPEED_MBPS_L0, NVML_FI_DEV_NVLINK_SPEED_MBPS_L6)
    {
        return speed(link);
    }
    let scoped = matches!(id,
        NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON
        | NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX..=NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX
        | NVML_FI_DEV_NVLINK_REMOTE_NVLINK_ID
        | NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY..=NVML_FI_DEV_NVLINK_GET_POWER_THRESHOLD
        | NVML_FI_DEV_NVLINK_COUNT_XMIT_PACKETS..=NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER);
    if !scoped {
        return None;
    }
    let all = scope == ALL_LINKS;
    if spec.nvlinks == 0 {
        return no_link();
    }
    if !all && scope >= spec.nvlinks {
        return Some(Err(Code::INVALID_ARGUMENT));
    }
    let link = (!all).then_some(scope);
    let part = if all { 1.0 } else { f64::from(spec.nvlinks) };
    let bytes =
        |f: fn(&crate::meter::Totals) -> f64| (f(&node.meter(d.index).totals) / part) as u64;
    let (tx, rx): (Counter, Counter) = (|t| t.nvlink_tx, |t| t.nvlink_rx);
    let errors = || link_errors(d, link, now);
    // The counters from 201 on came with the fifth generation of NVLink.
    if (NVML_FI_DEV_NVLINK_COUNT_XMIT_PACKETS..=NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER).contains(&id)
        && spec.nvlink_version < 5
    {
        return no_link();
    }
    let up = fx.links_down >> link.unwrap_or(0) & 1 == 0;
    Some(Ok(match id {
        NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON => Value::U32(spec.nvlink_mbps),
        // KiB.
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX => Value::U64(bytes(tx) / 1024),
        NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX => Value::U64(bytes(rx) / 1024),
        // Raw traffic is data with its protocol, about a tenth more.
        NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX => Value::U64(bytes(tx) / 1024 / 10 * 11),
        NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX => Value::U64(bytes(rx) / 1024 / 10 * 11),
        NVML_FI_DEV_NVLINK_REMOTE_NVLINK_ID => Value::U32(scope.min(spec.nvlinks - 1)),
        NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY | NVML_FI_DEV_NVLINK_ERROR_DL_CRC => {
            Value::U64(errors())
        }
        NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY => Value::U64(errors() / 16),
        NVML_FI_DEV_NVLINK_GET_SPEED => Value::U32(if up { spec.nvlink_mbps } else { 0 }),
        NVML_FI_DEV_NVLINK_GET_STATE => Value::U32(up.into()),
        NVML_FI_DEV_NVLINK_GET_VERSION => Value::U32(spec.nvlink_version),
        NVML_FI_DEV_NVLINK_GET_POWER_STATE => Value::U32(0),
        NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES => Value::U64(bytes(tx)),
        NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES => Value::U64(bytes(rx)),
        NVML_FI_DEV_NVLINK_COUNT_XMIT_PACKETS => Value::U64(bytes(tx) / 256),
        NVML_FI_DEV_NVLINK_COUNT_RCV_PACKETS => Value::U64(bytes(rx) / 256),
        NVML_FI_DEV_NVLINK_COUNT_RCV_ERRORS
        | NVML_FI_DEV_NVLINK_COUNT_LOCAL_LINK_INTEGRITY_ERRORS
        | NVML_FI_DEV_NVLINK_COUNT_EFFECTIVE_ERRORS
        | NVML_FI_DEV_NVLINK_COUNT_SYMBOL_ERRORS => Value::U64(errors()),
        NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS
        | NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_SUCCESSFUL_EVENTS => Value::U64(errors() / 16),
        NVML_FI_DEV_NVLINK_COUNT_VL15_DROPPED
            ..=NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_FAILED_EVENTS => Value::U64(0),
        _ => return no_link(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbering_follows_the_driver() {
        for (driver, id, canonical_id) in [
            ((570, 172), 251, 251),
            ((580, 65), 256, 256),
            ((580, 82), 251, 256),
            ((580, 95), 268, 273),
            ((580, 95), 269, 251),
            ((590, 1), 273, 255),
            ((580, 95), 250, 250),
        ] {
            assert_eq!(canonical(id, driver), canonical_id, "{driver:?} {id}");
        }
    }
}
