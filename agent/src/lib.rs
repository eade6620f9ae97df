//! The agent, one per node: reads GPUs and NICs, streams what it sees, and runs the tasks it is told to.
