//! Names that stay the same: UUIDs, serial numbers and seeded chance.
//!
//! In: the seed, the node's name and a label. Out: always the same number for the same three.
//! Nothing here knows what a GPU is.

/// Mixes 64 bits (the finalizer of SplitMix64).
pub fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A 64-bit hash of some bytes under a seed (FNV-1a, mixed).
pub fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = 0xcbf2_9ce4_8422_2325 ^ mix(seed);
    for &b in bytes {
        h = (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(h)
}

/// A number in 0..1 for a seed and a counter.
pub fn unit(seed: u64, n: u64) -> f64 {
    (mix(seed ^ mix(n)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Sixteen bytes shaped like a random UUID (version 4).
pub fn uuid_bytes(seed: u64, label: &str) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&hash(seed, label.as_bytes()).to_be_bytes());
    out[8..].copy_from_slice(&hash(!seed, label.as_bytes()).to_be_bytes());
    out[6] = (out[6] & 0x0f) | 0x40;
    out[8] = (out[8] & 0x3f) | 0x80;
    out
}

/// The usual text form of a UUID.
pub fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// What NVML calls a GPU's UUID.
pub fn gpu_uuid(seed: u64, node: &str, index: usize) -> String {
    format!("GPU-{}", uuid_text(&uuid_bytes(seed, &format!("{node}/gpu/{index}"))))
}

/// A board serial number: thirteen digits.
pub fn serial(seed: u64, node: &str, index: usize) -> String {
    format!("16{:011}", hash(seed, format!("{node}/serial/{index}").as_bytes()) % 100_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_depends_on_seed_node_and_index_only() {
        let one = gpu_uuid(1, "n0", 0);
        assert_eq!(one, gpu_uuid(1, "n0", 0));
        assert_eq!(one.len(), 40);
        for other in [gpu_uuid(2, "n0", 0), gpu_uuid(1, "n1", 0), gpu_uuid(1, "n0", 1)] {
            assert_ne!(one, other);
        }
    }
}
