//! What others can ask the scheduler, all on one port.

pub mod listen; // TLS, HTTP/2 and HTTP/1.1 on one port, and whose certificate a connection shows
