//! A simulated libnvidia-ml.so.1: the real C ABI, and a node is a directory.
