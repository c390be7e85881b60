//! No secret can be printed, copied or compared by accident: this file does not compile when one can.
#![allow(missing_docs, reason = "a test program")]

use std::fmt::{Debug, Display};

use sealing::SecretBytes;
use sealing::http::{Request, RequestWriter, ResponseHead, ResponseHeadReader, SsePacker};
use sealing::message::DataKey;
use sealing::raw_aes::{Keyring, WrappingKey};
use sealing::reader::{BodyReader, Held, Plaintext, Provisional};
use sealing::writer::MessageWriter;

/// Fails to compile ("type annotations needed") where a type has the trait: then two impls fit, not one.
macro_rules! lack {
    ($($bound:path: $($secret:ty),+;)+) => {$($(
        const _: fn() = || {
            trait Lacks<Marker> { fn proof() {} }
            impl<T: ?Sized> Lacks<()> for T {}
            struct Has;
            impl<T: ?Sized + $bound> Lacks<Has> for T {}
            let _ = <$secret as Lacks<_>>::proof;
        };
    )+)+};
}

lack! {
    Debug: SecretBytes, DataKey, WrappingKey, Keyring, Plaintext, Held, Provisional<'static>, Request<'static>,
        RequestWriter, ResponseHead, ResponseHeadReader, SsePacker, MessageWriter, BodyReader;
    Display: SecretBytes, DataKey, WrappingKey, Keyring, Plaintext, Held, Provisional<'static>, Request<'static>,
        RequestWriter, ResponseHead, ResponseHeadReader, SsePacker, MessageWriter, BodyReader;
    Clone: SecretBytes, DataKey, WrappingKey, Keyring, Plaintext, Held, Provisional<'static>, Request<'static>,
        RequestWriter, ResponseHead, ResponseHeadReader, SsePacker, MessageWriter, BodyReader;
}

#[test]
fn no_secret_can_be_printed_or_cloned() {
    // Checked above, by the compiler.
}
