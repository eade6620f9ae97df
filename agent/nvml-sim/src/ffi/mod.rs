//! The exported functions, by the names real programs look up.
//!
//! In: arguments as C gives them. Out: return codes. A function that is not here is not exported,
//! so its lookup fails as it does with an older driver. Each runs inside `abi::guard`.

mod events; // event sets
mod gpm; // activity between two samples
mod health; // ECC, rows, clock event reasons
mod identity; // who a GPU is
mod load; // what it does
mod process; // who uses it
mod system; // init, version, handles
mod topology; // where it sits, NVLink, fabric, MIG

/// Functions about one GPU. The body gets it as `$d`.
macro_rules! device_fns {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) |$d:ident| $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name(device: $crate::call::Handle, $($arg: $ty),*)
            -> nvml_wrapper_sys::bindings::nvmlReturn_t
        {
            $crate::abi::guard(|| {
                let $d = $crate::call::enter_device(stringify!($name), device)?;
                $body
            })
        }
    )*};
}

/// Functions about no GPU. The body gets the session as `$s`.
macro_rules! system_fns {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) |$s:ident| $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($($arg: $ty),*) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
            $crate::abi::guard(|| {
                let $s = $crate::call::enter(stringify!($name))?;
                $body
            })
        }
    )*};
}

use {device_fns, system_fns};
