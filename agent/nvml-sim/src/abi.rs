//! What crosses the C boundary: return codes, pointers, versions, struct sizes.
//!
//! In: raw pointers of a C caller, wrapped by the types here as they arrive. Out: checked reads and
//! writes. A null pointer is INVALID_ARGUMENT; that any other points at what the function's C
//! declaration says is the caller's promise, and the only thing the unsafe blocks here rely on.

use std::ffi::{CStr, c_char, c_uint};
use std::mem::size_of;

use nvml_wrapper_sys::bindings as sys;

/// An NVML return code other than SUCCESS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub u32);

macro_rules! codes {
    ($($name:ident = $sys:ident),* $(,)?) => {
        impl Code { $(pub const $name: Self = Self(sys::$sys);)* }
    };
}
codes! {
    UNINITIALIZED = nvmlReturn_enum_NVML_ERROR_UNINITIALIZED,
    INVALID_ARGUMENT = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    NOT_SUPPORTED = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
    NOT_FOUND = nvmlReturn_enum_NVML_ERROR_NOT_FOUND,
    INSUFFICIENT_SIZE = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE,
    DRIVER_NOT_LOADED = nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
    TIMEOUT = nvmlReturn_enum_NVML_ERROR_TIMEOUT,
    LIBRARY_NOT_FOUND = nvmlReturn_enum_NVML_ERROR_LIBRARY_NOT_FOUND,
    GPU_IS_LOST = nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
    RESET_REQUIRED = nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED,
    NO_DATA = nvmlReturn_enum_NVML_ERROR_NO_DATA,
    ARGUMENT_VERSION_MISMATCH = nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    UNKNOWN = nvmlReturn_enum_NVML_ERROR_UNKNOWN,
}

pub type Answer = Result<(), Code>;

/// Runs the body of an exported function. A panic must not reach C: it becomes UNKNOWN (999).
pub fn guard(body: impl FnOnce() -> Answer) -> sys::nvmlReturn_t {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => sys::nvmlReturn_enum_NVML_SUCCESS,
        Ok(Err(code)) => code.0,
        Err(_) => Code::UNKNOWN.0,
    }
}

/// A place the caller wants a value in.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    pub fn set(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller promises room for one T; write does not drop the old.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }
}

/// A place that holds a value which is read and replaced.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct InOut<T>(*mut T);

impl<T: Copy> InOut<T> {
    pub fn get(self) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller promises an initialised T.
        Ok(unsafe { self.0.read_unaligned() })
    }

    pub fn set(self, value: T) -> Answer {
        Out(self.0).set(value)
    }

    /// The version field: the first four bytes of every versioned struct. Only they are read, since
    /// an older struct may be shorter than T.
    pub fn version(self) -> Result<u32, Code> {
        InOut(self.0.cast::<u32>()).get()
    }

    /// The same place, seen as another struct of the same family.
    pub fn cast<U>(self) -> InOut<U> {
        InOut(self.0.cast())
    }

    pub fn address(self) -> *mut T {
        self.0
    }
}

/// A buffer for text; its length comes as a separate argument.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct OutText(*mut c_char);

impl OutText {
    /// Writes text and its end mark, or says INSUFFICIENT_SIZE.
    pub fn set(self, length: c_uint, text: &str) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        if text.len() + 1 > length as usize {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        // SAFETY: not null, the caller promises `length` bytes, and text with its end mark fits.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast::<u8>(), text.len());
            self.0.add(text.len()).write(0);
        }
        Ok(())
    }
}

/// Text of the caller.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct InText(*const c_char);

impl InText {
    pub fn get(self) -> Result<String, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller promises a string with an end mark.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map(str::to_owned).map_err(|_| Code::INVALID_ARGUMENT)
    }
}

/// An array of the caller; its length comes as a separate argument.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct OutArray<T>(*mut T);

impl<T: Copy> OutArray<T> {
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Writes `items` to the front. The caller of this has checked that they fit.
    pub fn fill(self, items: &[T]) -> Answer {
        if items.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the C caller promises at least the length it gave, which the
        // function has compared with items.len().
        unsafe { std::ptr::copy_nonoverlapping(items.as_ptr(), self.0, items.len()) };
        Ok(())
    }

    /// One element in place.
    pub fn at(self, index: usize) -> InOut<T> {
        InOut(if self.0.is_null() { self.0 } else { self.0.wrapping_add(index) })
    }

    pub fn of(pointer: *mut T) -> Self {
        Self(pointer)
    }
}

/// Answers a list call: the count in, the count out, INSUFFICIENT_SIZE when it does not fit.
pub fn list<T: Copy>(count: InOut<c_uint>, array: OutArray<T>, items: &[T]) -> Answer {
    let room = count.get()? as usize;
    count.set(items.len() as c_uint)?;
    if items.is_empty() {
        return Ok(());
    }
    if array.is_null() || room < items.len() {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    array.fill(items)
}

/// `sizeof | n << 24`: the version of nearly all versioned structs.
pub const fn version<T>(n: u32) -> u32 {
    size_of::<T>() as u32 | n << 24
}

/// A fixed-length C string inside a struct.
pub fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(text.bytes().take(N - 1)) {
        *to = from as c_char;
    }
    out
}

macro_rules! sizes {
    ($($ty:ident = $size:literal),* $(,)?) => {
        $(const _: () = assert!(size_of::<sys::$ty>() == $size, stringify!($ty));)*
    };
}
// The sizes of the real library on x86-64 and aarch64 Linux.
sizes! {
    nvmlPciInfo_t = 68, nvmlMemory_v2_t = 40, nvmlProcessInfo_t = 24, nvmlFieldValue_t = 40,
    nvmlEventData_t = 32, nvmlGpuFabricInfo_t = 28, nvmlGpuFabricInfo_v2_t = 36,
    nvmlGpuFabricInfo_v3_t = 40, nvmlPlatformInfo_v1_t = 44, nvmlPlatformInfo_v2_t = 44,
    nvmlTemperature_v1_t = 12, nvmlMarginTemperature_v1_t = 8, nvmlEccSramErrorStatus_v1_t = 104,
    nvmlAccountingStats_t = 56, nvmlDeviceAttributes_t = 40, nvmlSample_t = 16,
    nvmlViolationTime_t = 16, nvmlProcessUtilizationSample_t = 32, nvmlGpmMetric_t = 40,
    nvmlGpmMetricsGet_t = 8424, nvmlGpmSupport_t = 8,
}
