//! Columns: one field of all devices of a kind.
//!
//! Each table below lists the fields of one kind with how a device's value is taken out and put
//! in; writing and reading are the same loop for all of them. A field a table does not have comes
//! from a newer agent and is passed over. A column whose shape is wrong is refused.

use std::fmt::Debug;

use tessera_model::{
    Refusal,
    sample::{GpuSample, NicSample},
};

use crate::{
    door::Checked,
    v1::{CounterColumn, CounterField, FloatColumn, GaugeField},
};

/// A field, how it is taken out, and how it is put in; `put` is false for a value that cannot be.
pub(super) struct Field<K, D, V> {
    key: K,
    take: fn(&D) -> Option<V>,
    put: fn(&mut D, V) -> bool,
}

macro_rules! field {
    ($key:path, $name:ident: float) => {
        Field {
            key: $key,
            take: |d| d.$name.filter(|v| v.is_finite()),
            put: |d, v| {
                d.$name = Some(v);
                v.is_finite()
            },
        }
    };
    // Whole numbers as a float: exact up to 2^24, and none of these comes near.
    ($key:path, $name:ident: whole $int:ty) => {
        Field {
            key: $key,
            take: |d| d.$name.map(|v| v as f32),
            put: |d, v| {
                d.$name = Some(v as $int);
                (0.0..=<$int>::MAX as f32).contains(&v)
            },
        }
    };
    ($key:path, $name:ident: counter) => {
        Field {
            key: $key,
            take: |d| d.$name,
            put: |d, v| {
                d.$name = Some(v);
                true
            },
        }
    };
}

type Gauge<D> = Field<GaugeField, D, f32>;
type Counter<D> = Field<CounterField, D, u64>;

pub(super) const GPU_GAUGES: [Gauge<GpuSample>; 11] = [
    field!(GaugeField::GpuBusyPercent, busy_percent: float),
    field!(GaugeField::GpuSmPercent, sm_percent: float),
    field!(GaugeField::GpuTensorPercent, tensor_percent: float),
    field!(GaugeField::GpuDramPercent, dram_percent: float),
    field!(GaugeField::GpuPowerMw, power_mw: whole u32),
    field!(GaugeField::GpuTemperatureC, temperature_c: float),
    field!(GaugeField::GpuMemoryTemperatureC, memory_temperature_c: float),
    field!(GaugeField::GpuSmClockMhz, sm_clock_mhz: whole u32),
    field!(GaugeField::GpuMemoryClockMhz, memory_clock_mhz: whole u32),
    field!(GaugeField::GpuProcesses, processes: whole u32),
    // Always known, and nearly always 0, which is what it is where it is not sent.
    Field {
        key: GaugeField::GpuCounterEpoch,
        take: |d| (d.counter_epoch != 0).then_some(d.counter_epoch as f32),
        put: |d, v| {
            d.counter_epoch = v as u32;
            (0.0..=u32::MAX as f32).contains(&v)
        },
    },
];

pub(super) const GPU_COUNTERS: [Counter<GpuSample>; 6] = [
    field!(CounterField::GpuMemoryUsedBytes, memory_used_bytes: counter),
    field!(CounterField::GpuEnergyMj, energy_mj: counter),
    field!(CounterField::GpuClockEventReasons, clock_event_reasons: counter),
    field!(CounterField::GpuEccCorrected, ecc_corrected: counter),
    field!(CounterField::GpuEccUncorrected, ecc_uncorrected: counter),
    field!(CounterField::GpuPcieReplays, pcie_replays: counter),
];

pub(super) const NIC_GAUGES: [Gauge<NicSample>; 2] = [
    Field {
        key: GaugeField::NicUp,
        take: |d| d.up.map(|up| if up { 1.0 } else { 0.0 }),
        put: |d, v| {
            d.up = Some(v == 1.0);
            v == 0.0 || v == 1.0
        },
    },
    field!(GaugeField::NicSpeedMbps, speed_mbps: whole u64),
];

pub(super) const NIC_COUNTERS: [Counter<NicSample>; 10] = [
    field!(CounterField::NicReceiveBytes, receive_bytes: counter),
    field!(CounterField::NicTransmitBytes, transmit_bytes: counter),
    field!(CounterField::NicReceiveErrors, receive_errors: counter),
    field!(CounterField::NicTransmitErrors, transmit_errors: counter),
    field!(CounterField::NicCarrierChanges, carrier_changes: counter),
    field!(CounterField::NicTransmitWait, transmit_wait: counter),
    field!(CounterField::NicSymbolErrors, symbol_errors: counter),
    field!(CounterField::NicLinkDowned, link_downed: counter),
    field!(CounterField::NicCnpHandled, cnp_handled: counter),
    field!(CounterField::NicCnpSent, cnp_sent: counter),
];

pub(super) fn write_gauges<D>(table: &[Gauge<D>], devices: &[D]) -> Vec<FloatColumn> {
    let column = |field: &Gauge<D>| {
        let (present, values) = gather(field, devices)?;
        Some(FloatColumn { field: field.key.into(), present, values })
    };
    table.iter().filter_map(column).collect()
}

pub(super) fn write_counters<D>(table: &[Counter<D>], devices: &[D]) -> Vec<CounterColumn> {
    let column = |field: &Counter<D>| {
        let (present, values) = gather(field, devices)?;
        Some(CounterColumn { field: field.key.into(), present, values })
    };
    table.iter().filter_map(column).collect()
}

/// `None` where no device has a value. At most 64 devices.
fn gather<K, D, V: Default>(field: &Field<K, D, V>, devices: &[D]) -> Option<(u64, Vec<V>)> {
    let mut present = 0;
    let mut values = Vec::with_capacity(devices.len());
    for (i, device) in devices.iter().enumerate() {
        let value = (field.take)(device);
        present |= u64::from(value.is_some()) << i;
        values.push(value.unwrap_or_default());
    }
    (present != 0).then_some((present, values))
}

pub(super) fn read_gauges<D>(
    name: &str,
    table: &[Gauge<D>],
    columns: &[FloatColumn],
    devices: &mut [D],
) -> Checked {
    let mut seen = 0;
    for column in columns {
        let Ok(key) = GaugeField::try_from(column.field) else { continue };
        let field = find(name, table, |k| k == key, key, &mut seen)?;
        scatter(name, key, field.put, column.present, &column.values, devices)?;
    }
    Ok(())
}

pub(super) fn read_counters<D>(
    name: &str,
    table: &[Counter<D>],
    columns: &[CounterColumn],
    devices: &mut [D],
) -> Checked {
    let mut seen = 0;
    for column in columns {
        let Ok(key) = CounterField::try_from(column.field) else { continue };
        let field = find(name, table, |k| k == key, key, &mut seen)?;
        scatter(name, key, field.put, column.present, &column.values, devices)?;
    }
    Ok(())
}

/// The table's row for a column. `seen` has a bit for each row that was there before.
fn find<'a, K: Copy, D, V>(
    name: &str,
    table: &'a [Field<K, D, V>],
    is_key: impl Fn(K) -> bool,
    key: impl Debug,
    seen: &mut u64,
) -> Checked<&'a Field<K, D, V>> {
    let Some(row) = table.iter().position(|f| is_key(f.key)) else {
        return Err(malformed(name, format!("{key:?} is no field of {name}")));
    };
    if *seen >> row & 1 == 1 {
        return Err(malformed(name, format!("{key:?} is there twice")));
    }
    *seen |= 1 << row;
    Ok(&table[row])
}

fn scatter<D, V: Copy + Debug>(
    name: &str,
    key: impl Debug,
    put: fn(&mut D, V) -> bool,
    present: u64,
    values: &[V],
    devices: &mut [D],
) -> Checked {
    if values.len() != devices.len() {
        let (have, want) = (values.len(), devices.len());
        let message = format!("{key:?} has {have} values for {want} devices");
        return Err(malformed(name, message));
    }
    if values.len() < 64 && present >> values.len() != 0 {
        let message = format!("{key:?} marks a device beyond the last of {}", values.len());
        return Err(malformed(name, message));
    }
    for (i, (device, value)) in devices.iter_mut().zip(values).enumerate() {
        if present >> i & 1 == 1 && !put(device, *value) {
            return Err(malformed(name, format!("{key:?} of device {i} cannot be {value:?}")));
        }
    }
    Ok(())
}

fn malformed(name: &str, message: String) -> Refusal {
    Refusal::invalid(name, message, "use agent and scheduler of one release")
}
