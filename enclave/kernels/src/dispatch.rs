//! From a body that is generic over its lanes to the function of a family.

/// Defines `$name`, which runs `$body::<V>` with the instructions of a family, for each of the families.
///
/// The body is `#[inline(always)] unsafe fn body<V: Vector>(...)`: it is compiled anew inside each of the functions, which
/// differ by the instructions that are switched on.
macro_rules! for_each_family {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident = $body:ident ( $($argument:ident : $type:ty),* $(,)? ) ) => {
        $(#[$meta])*
        $visibility fn $name(family: $crate::Family, $($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512($($argument: $type),*) {
                // SAFETY: the instructions are enabled here, and the caller knows that the processor has them.
                unsafe { $body::<$crate::avx512::Avx512>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2($($argument: $type),*) {
                // SAFETY: as above.
                unsafe { $body::<$crate::avx2::Avx2>($($argument),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod")]
            unsafe fn neon_dotprod($($argument: $type),*) {
                // SAFETY: as above.
                unsafe { $body::<$crate::neon::Neon<false>>($($argument),*) }
            }
            #[cfg(target_arch = "aarch64")]
            #[target_feature(enable = "neon,dotprod,i8mm")]
            unsafe fn neon_i8mm($($argument: $type),*) {
                // SAFETY: as above.
                unsafe { $body::<$crate::neon::Neon<true>>($($argument),*) }
            }
            assert!($crate::Family::all().contains(&family), "a family that this processor has");
            match family {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: this processor has the family's instructions.
                $crate::Family::Avx512Vnni | $crate::Family::Avx512Amx => unsafe { avx512($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: this processor has the family's instructions.
                $crate::Family::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: this processor has the family's instructions.
                $crate::Family::NeonDotprod => unsafe { neon_dotprod($($argument),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: this processor has the family's instructions.
                $crate::Family::NeonI8mm => unsafe { neon_i8mm($($argument),*) },
                // SAFETY: plain Rust runs anywhere.
                _ => unsafe { $body::<$crate::plain::Plain>($($argument),*) },
            }
        }
    };
}

pub(crate) use for_each_family;
