//! A simulated world around the shipping core: virtual clock, seeded faults, broken-promise checker.
