//! A whole cluster on loopback, from real binaries, for one test.
