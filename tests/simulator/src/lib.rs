//! Simulated hypervisor with a signing NSM, and a simulated KMS; never linked by a shipped program.
