//! Random samples there and back, what a tick costs, and columns that are broken on purpose.

use prost::Message as _;
use tessera_model::sample::HostSample;

use super::*;
use crate::v1::{CounterColumn, CounterField, FloatColumn, GaugeField};

/// splitmix64: small, seeded, the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Absent once in three, and 0 quite often: the two must never be mixed up.
    fn maybe<T>(&mut self, value: impl Fn(u64) -> T) -> Option<T> {
        match self.below(6) {
            0 | 1 => None,
            2 => Some(value(0)),
            _ => Some(value(self.next())),
        }
    }

    fn float(&mut self) -> Option<f32> {
        self.maybe(|r| (r % 100_001) as f32 / 1_000.0)
    }
    fn small(&mut self) -> Option<u32> {
        self.maybe(|r| (r % (1 << 24)) as u32)
    }
    fn count(&mut self) -> Option<u64> {
        self.maybe(|r| r)
    }

    fn gpu(&mut self, i: usize) -> GpuSample {
        GpuSample {
            gpu: (self.below(20) != 0).then(|| GpuId::parse(&format!("GPU-{i:032x}")).unwrap()),
            counter_epoch: self.below(3) as u32,
            busy_percent: self.float(),
            sm_percent: self.float(),
            tensor_percent: self.float(),
            dram_percent: self.float(),
            memory_used_bytes: self.count(),
            power_mw: self.small(),
            energy_mj: self.count(),
            temperature_c: self.float(),
            memory_temperature_c: self.float(),
            sm_clock_mhz: self.small(),
            memory_clock_mhz: self.small(),
            clock_event_reasons: self.count(),
            ecc_corrected: self.count(),
            ecc_uncorrected: self.count(),
            pcie_replays: self.count(),
            processes: self.small(),
        }
    }

    fn nic(&mut self, i: usize) -> NicSample {
        NicSample {
            name: format!("mlx5_{i}"),
            up: self.maybe(|r| r % 2 == 1),
            speed_mbps: self.maybe(|r| r % (1 << 24)),
            receive_bytes: self.count(),
            transmit_bytes: self.count(),
            receive_errors: self.count(),
            transmit_errors: self.count(),
            carrier_changes: self.count(),
            transmit_wait: self.count(),
            symbol_errors: self.count(),
            link_downed: self.count(),
            cnp_handled: self.count(),
            cnp_sent: self.count(),
        }
    }

    fn sample(&mut self, sequence: u64, gpus: usize, nics: usize) -> NodeSample {
        NodeSample {
            node: node(),
            boot: boot(),
            sequence,
            at: UnixMillis(1_790_000_000_000 + sequence as i64 * 1_000),
            gpus: (0..gpus).map(|i| self.gpu(i)).collect(),
            nics: (0..nics).map(|i| self.nic(i)).collect(),
            host: HostSample {
                cpu_percent: self.float(),
                memory_used_bytes: self.count(),
                load_1m: self.float(),
                agent_rss_bytes: self.count(),
                skew_ms: self.float(),
                samples_dropped: self.below(9),
            },
        }
    }
}

fn node() -> NodeId {
    NodeId::parse("n0").unwrap()
}

fn boot() -> BootId {
    BootId::parse("5a1c8d2e-0000").unwrap()
}

/// Through bytes, as over the wire.
fn travel(tick: v1::Tick) -> v1::Tick {
    v1::Tick::decode(tick.encode_to_vec().as_slice()).unwrap()
}

#[test]
fn samples_survive_the_round_trip_and_absent_stays_absent() {
    for seed in 0..300 {
        let mut dice = Dice(seed);
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(node()));
        let (mut gpus, mut nics) = (dice.below(65) as usize, dice.below(65) as usize);
        for sequence in 0..6 {
            // Devices come and go, at times all of them.
            match dice.below(4) {
                0 => (gpus, nics) = (dice.below(9) as usize, dice.below(9) as usize),
                1 if sequence > 2 => (gpus, nics) = (0, 0),
                _ => {}
            }
            let sample = dice.sample(sequence, gpus, nics);
            let tick = travel(encoder.encode(&sample));
            assert_eq!(decoder.decode(&boot(), tick), Ok(sample), "seed {seed}, tick {sequence}");
        }
    }
}

/// All values of all fields there, and large.
fn full(sequence: u64) -> NodeSample {
    let mut dice = Dice(sequence);
    let mut sample = dice.sample(sequence, 8, 8);
    for (i, g) in sample.gpus.iter_mut().enumerate() {
        let r = dice.next();
        *g = GpuSample {
            gpu: Some(GpuId::parse(&format!("GPU-5a1c8d2e-0000-1111-2222-{i:012x}")).unwrap()),
            counter_epoch: 1,
            busy_percent: Some(99.0),
            sm_percent: Some(91.5),
            tensor_percent: Some(64.25),
            dram_percent: Some(55.0),
            memory_used_bytes: Some(r),
            power_mw: Some(698_123),
            energy_mj: Some(r),
            temperature_c: Some(64.0),
            memory_temperature_c: Some(71.0),
            sm_clock_mhz: Some(1_980),
            memory_clock_mhz: Some(2_619),
            clock_event_reasons: Some(4),
            ecc_corrected: Some(1),
            ecc_uncorrected: Some(0),
            pcie_replays: Some(0),
            processes: Some(1),
        };
    }
    for n in &mut sample.nics {
        let r = dice.next();
        let name = n.name.clone();
        *n = NicSample {
            name,
            up: Some(true),
            speed_mbps: Some(400_000),
            receive_bytes: Some(r),
            transmit_bytes: Some(r),
            receive_errors: Some(0),
            transmit_errors: Some(0),
            carrier_changes: Some(2),
            transmit_wait: Some(r),
            symbol_errors: Some(0),
            link_downed: Some(0),
            cnp_handled: Some(r),
            cnp_sent: Some(r),
        };
    }
    sample.host = HostSample {
        cpu_percent: Some(12.5),
        memory_used_bytes: Some(1 << 40),
        load_1m: Some(96.0),
        agent_rss_bytes: Some(20 << 20),
        skew_ms: Some(0.25),
        samples_dropped: 7,
    };
    sample
}

#[test]
fn a_tick_of_8_gpus_and_8_nics_takes_at_most_4_kb() {
    let mut encoder = Encoder::new();
    let first = encoder.encode(&full(1)).encoded_len();
    let later = encoder.encode(&full(2)).encoded_len();
    println!("8 GPUs + 8 NICs, every field: first tick {first} bytes, later ones {later} bytes");
    assert!(first <= 4_000 && later < first, "{first}, {later}");
    assert!(later <= 2_000, "{later}");
}

#[test]
fn names_travel_once_and_again_when_they_change() {
    let mut encoder = Encoder::new();
    let named = |encoder: &mut Encoder, sample: &NodeSample| {
        let tick = encoder.encode(sample);
        (tick.gpu_uuids.len(), tick.nic_names.len())
    };
    let mut sample = full(1);
    assert_eq!(named(&mut encoder, &sample), (8, 8));
    assert_eq!(named(&mut encoder, &sample), (0, 0));
    sample.gpus.swap(0, 1);
    assert_eq!(named(&mut encoder, &sample), (8, 8), "another order is another list");
    sample.nics.clear();
    assert_eq!(named(&mut encoder, &sample), (8, 0));
    sample.gpus.clear();
    assert_eq!(named(&mut encoder, &sample), (0, 1), "no devices at all");
    assert_eq!(named(&mut encoder, &sample), (0, 0));
    let mut crowd = full(1);
    crowd.gpus = vec![crowd.gpus[0].clone(); 70];
    assert_eq!(named(&mut encoder, &crowd), (64, 8));
}

#[test]
fn what_is_no_number_was_not_measured() {
    let mut sample = full(1);
    sample.gpus[3].sm_percent = Some(f32::NAN);
    sample.gpus[4].temperature_c = Some(f32::INFINITY);
    sample.host.load_1m = Some(f32::NAN);
    let tick = Encoder::new().encode(&sample);
    let back = Decoder::new(node()).decode(&boot(), travel(tick)).unwrap();
    assert_eq!((back.gpus[3].sm_percent, back.gpus[4].temperature_c), (None, None));
    assert_eq!((back.gpus[2].sm_percent, back.host.load_1m), (Some(91.5), None));
}

#[test]
fn malformed_columns_are_refused_and_leave_the_decoder_as_it_was() {
    fn gauge(field: GaugeField, present: u64, values: &[f32]) -> FloatColumn {
        FloatColumn { field: field.into(), present, values: values.to_vec() }
    }
    fn counter(field: CounterField, present: u64, values: &[u64]) -> CounterColumn {
        CounterColumn { field: field.into(), present, values: values.to_vec() }
    }
    type Spoil = fn(&mut v1::Tick);
    let cases: &[(&str, &str, Spoil)] = &[
        ("gpu_gauges", "7 values for 8", |t| {
            t.gpu_gauges[0].values.pop();
        }),
        ("gpu_gauges", "0 values for 8", |t| t.gpu_gauges[0].values.clear()),
        ("gpu_gauges", "beyond the last", |t| t.gpu_gauges[0].present = 1 << 8),
        ("gpu_counters", "beyond the last", |t| t.gpu_counters[0].present = u64::MAX),
        ("gpu_gauges", "twice", |t| t.gpu_gauges.push(t.gpu_gauges[0].clone())),
        ("nic_counters", "twice", |t| t.nic_counters.push(t.nic_counters[3].clone())),
        ("gpu_gauges", "cannot be NaN", |t| t.gpu_gauges[0].values[5] = f32::NAN),
        ("gpu_gauges", "no field of", |t| {
            t.gpu_gauges.push(gauge(GaugeField::NicUp, 1, &[1.0; 8]));
        }),
        ("gpu_gauges", "no field of", |t| {
            t.gpu_gauges.push(gauge(GaugeField::Unspecified, 1, &[1.0; 8]));
        }),
        ("nic_gauges", "cannot be 0.5", |t| {
            t.nic_gauges = vec![gauge(GaugeField::NicUp, 1, &[0.5; 8])];
        }),
        ("gpu_gauges", "cannot be -1", |t| {
            t.gpu_gauges = vec![gauge(GaugeField::GpuPowerMw, 1, &[-1.0; 8])];
        }),
        ("nic_counters", "0 values for 8", |t| {
            t.nic_counters = vec![counter(CounterField::NicCnpSent, 0, &[])];
        }),
        ("gpu_uuids", "65 entries", |t| t.gpu_uuids = vec!["GPU-1".to_owned(); 65]),
        ("gpu_uuids", "may hold", |t| t.gpu_uuids[0] = "GPU 1".to_owned()),
        ("nic_names", "65 entries", |t| t.nic_names = vec!["eth0".to_owned(); 65]),
        ("nic_names", "empty", |t| t.nic_names[0].clear()),
    ];
    let mut decoder = Decoder::new(node());
    let mut encoder = Encoder::new();
    decoder.decode(&boot(), encoder.encode(&full(1))).unwrap();
    for (field, message, spoil) in cases {
        let mut tick = Encoder::new().encode(&full(2));
        spoil(&mut tick);
        let refusal = decoder.decode(&boot(), travel(tick)).expect_err(message);
        assert_eq!(refusal.field, *field, "{refusal:?}");
        assert!(refusal.message.contains(message), "{message}: {refusal:?}");
    }
    // A refused list of names was not taken over.
    let sample = full(3);
    assert_eq!(decoder.decode(&boot(), encoder.encode(&sample)), Ok(sample));
}

#[test]
fn random_columns_never_panic() {
    for seed in 0..20_000 {
        let mut dice = Dice(seed);
        let mut column = |fields: u64| {
            let present = dice.next() >> dice.below(64);
            (dice.below(fields) as i32 - 1, present, dice.below(70) as usize, dice.next())
        };
        let floats = |c: (i32, u64, usize, u64)| FloatColumn {
            field: c.0,
            present: c.1,
            values: vec![f32::from_bits(c.3 as u32); c.2],
        };
        let counts = |c: (i32, u64, usize, u64)| CounterColumn {
            field: c.0,
            present: c.1,
            values: vec![c.3; c.2],
        };
        let tick = v1::Tick {
            gpu_uuids: vec!["GPU-1".to_owned(); column(2).2],
            nic_names: vec!["eth0".to_owned(); column(2).2],
            gpu_gauges: vec![floats(column(14)), floats(column(40))],
            gpu_counters: vec![counts(column(9))],
            nic_gauges: vec![floats(column(40))],
            nic_counters: vec![counts(column(50))],
            ..Default::default()
        };
        // Either answer is fine; a panic or an overflow is not.
        if let Ok(sample) = Decoder::new(node()).decode(&boot(), tick) {
            assert!(sample.gpus.len() <= DEVICES_MAX && sample.nics.len() <= DEVICES_MAX);
        }
    }
}

#[test]
fn a_stream_begins_with_names_and_may_hold_fields_of_a_newer_agent() {
    let mut encoder = Encoder::new();
    encoder.encode(&full(1));
    let nameless = encoder.encode(&full(2));
    let refusal = Decoder::new(node()).decode(&boot(), nameless).unwrap_err();
    assert_eq!(refusal.field, "gpu_uuids");

    let sample = full(1);
    let mut tick = Encoder::new().encode(&sample);
    tick.gpu_gauges.push(FloatColumn { field: 999, present: 1, values: vec![1.0] });
    tick.nic_counters.push(CounterColumn { field: 999, present: 0, values: vec![] });
    assert_eq!(Decoder::new(node()).decode(&boot(), tick), Ok(sample));
}

#[test]
fn readings_survive_the_round_trip() {
    for seed in 0..50 {
        let mut sample = Dice(seed).sample(1, 8, 8);
        sample.gpus.iter_mut().for_each(|g| g.counter_epoch = 0);
        let reply = latest(&sample);
        assert_eq!(reply.at_unix_ms, Some(sample.at.0));
        let gpus: Vec<_> = reply.gpus.iter().map(|g| gpu_from_reading(g).unwrap()).collect();
        let nics: Vec<_> = reply.nics.iter().map(nic_from_reading).collect();
        assert!(gpus.iter().all(|(_, at)| *at == sample.at), "seed {seed}");
        let gpus: Vec<_> = gpus.into_iter().map(|(g, _)| g).collect();
        assert_eq!((gpus, nics), (sample.gpus, sample.nics), "seed {seed}");
        assert_eq!(reply.host.as_ref().map(host_from_reading), Some(sample.host));
    }
}
