//! The scheduler's pure core: cluster state, queue, placement, ledger, verifier. No clock, file, socket or thread.
