//! The service inside the enclave: boot, keys, requests and answers.
