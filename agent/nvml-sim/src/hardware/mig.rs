//! MIG: how a GPU may be cut, and what comes of it.
//!
//! In: profiles by NVIDIA's names. Out: instances with UUIDs and sizes. A profile takes compute
//! slices of seven and memory slices of eight; where on the GPU they lie is not our subject.

use crate::hardware::GpuSpec;
use crate::identity;

/// Compute and memory slices of each profile.
const SHAPES: [(u32, u32); 6] = [(1, 1), (1, 2), (2, 2), (3, 4), (4, 4), (7, 8)];

/// One instance, with one compute instance that fills it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigHw {
    pub uuid: String,
    /// `1g.10gb`
    pub profile: String,
    pub compute_slices: u32,
    pub memory_slices: u32,
    pub mem_mib: u64,
}

fn shape(profile: &str, spec: &GpuSpec) -> Option<(u32, u32)> {
    SHAPES.into_iter().find(|shape| name(*shape, spec) == profile)
}

/// As NVIDIA counts: eighths of whole gigabytes, rounded.
fn name((compute, memory): (u32, u32), spec: &GpuSpec) -> String {
    let gb = spec.mem_mib.div_ceil(1024) * u64::from(memory);
    format!("{compute}g.{}gb", (gb + 4) / 8)
}

/// What is wrong with a cut, if anything.
pub fn check(profiles: &[String], spec: &GpuSpec) -> Result<(), String> {
    if !spec.mig {
        return Err(format!("{} cannot be cut", spec.name));
    }
    let (mut compute, mut memory) = (0, 0);
    for profile in profiles {
        let Some((c, m)) = shape(profile, spec) else {
            let names: Vec<String> = SHAPES.iter().map(|shape| name(*shape, spec)).collect();
            let names = names.join(", ");
            return Err(format!("{} has no profile {profile:?}; there are {names}", spec.name));
        };
        compute += c;
        memory += m;
    }
    if compute > 7 || memory > 8 {
        return Err(format!(
            "{} take {compute} compute and {memory} memory slices; a GPU has 7 and 8",
            profiles.join(",")
        ));
    }
    Ok(())
}

/// The instances of a cut that was checked.
pub fn cut(profiles: &[String], spec: &GpuSpec, seed: u64, gpu: &str) -> Vec<MigHw> {
    let one = |(number, profile): (usize, &String)| {
        let (compute_slices, memory_slices) = shape(profile, spec)?;
        let bytes = identity::uuid_bytes(seed, &format!("{gpu}/mig/{number}"));
        Some(MigHw {
            uuid: format!("MIG-{}", identity::uuid_text(&bytes)),
            profile: profile.clone(),
            compute_slices,
            memory_slices,
            mem_mib: spec.mem_mib * u64::from(memory_slices) / 8,
        })
    };
    profiles.iter().enumerate().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::models::{A100, GB200, H100, L40S};

    #[test]
    fn profiles_have_the_names_of_the_data_sheets() {
        let names = |spec: &GpuSpec| SHAPES.map(|shape| name(shape, spec)).join(" ");
        assert_eq!(names(&H100), "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb");
        assert_eq!(names(&A100), "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb");
        assert_eq!(names(&GB200), "1g.23gb 1g.47gb 2g.47gb 3g.93gb 4g.93gb 7g.186gb");
        let cut = |profiles: &str| profiles.split(',').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(check(&cut("3g.40gb,2g.20gb,1g.10gb,1g.10gb"), &H100), Ok(()));
        for (profiles, spec, want) in [
            ("3g.40gb,3g.40gb,1g.10gb", &H100, "9 memory slices"),
            ("4g.40gb,4g.40gb", &H100, "8 compute"),
            ("1g.5gb", &H100, "1g.20gb"),
            ("1g.10gb", &L40S, "cannot be cut"),
        ] {
            let error = check(&cut(profiles), spec).unwrap_err();
            assert!(error.contains(want), "{profiles}: {error}");
        }
    }
}
