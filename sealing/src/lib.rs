//! AWS Encryption SDK messages and the HTTP messages inside them, sans I/O.
