//! The tessera command: submit, watch, explain, and settle the bill.
