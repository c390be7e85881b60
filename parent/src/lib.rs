//! The untrusted relay on the parent instance.
