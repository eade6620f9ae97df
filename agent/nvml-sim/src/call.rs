//! The way into every call: init and shutdown, handles, and the faults that bar the way.
//!
//! In: a function's name and the handle it was given. Out: the GPU it may work on, or the code it
//! has to answer. A handle is a number (tag, generation, node, kind, index), never an address, and is
//! checked on every call: one from before a shutdown or a driver reload is INVALID_ARGUMENT.

use std::ffi::{CStr, c_void};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use crate::abi::{Answer, Code};
use crate::fault::{GpuEffects, Hold};
use crate::hardware::{GpuHw, MigHw};
use crate::identity;
use crate::node::Node;
use crate::scenario::Preset;

/// The node of this copy of the library, and who has it open.
#[derive(Debug)]
struct Life {
    node: Option<Arc<Node>>,
    /// `node.toml` as it was when the node was opened.
    text: String,
    refs: u32,
    generation: u32,
    /// The node's driver generation when it was initialised.
    driver: u64,
}

static LIFE: RwLock<Life> =
    RwLock::new(Life { node: None, text: String::new(), refs: 0, generation: 0, driver: 0 });

/// The folder this copy of the library lies in.
pub fn own_dir() -> Option<PathBuf> {
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: any address may be asked about, and info outlives the call.
    let found = unsafe { libc::dladdr(own_dir as *const c_void, &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr succeeded, so the name is a string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = PathBuf::from(name.to_str().ok()?).canonicalize().ok()?;
    path.parent().map(PathBuf::from)
}

pub fn init() -> Answer {
    let mut life = LIFE.write();
    if life.refs > 0 {
        let node = life.node.as_ref().ok_or(Code::UNKNOWN)?;
        node.tick();
        if node.driver_generation() == life.driver {
            life.refs += 1;
            return Ok(());
        }
        // The driver went away under us: whoever was there before has nothing any more.
        life.refs = 0;
    }
    let dir = own_dir().ok_or(Code::LIBRARY_NOT_FOUND)?;
    let text = std::fs::read_to_string(dir.join("node.toml")).unwrap_or_default();
    if life.node.is_none() || life.text != text {
        let node = Node::open(&dir).map_err(|error| {
            eprintln!("tessera-nvml-sim: {error}");
            Code::LIBRARY_NOT_FOUND
        })?;
        life.node = Some(Arc::new(node));
        life.text = text;
    }
    let node = life.node.clone().ok_or(Code::UNKNOWN)?;
    node.tick();
    if node.scenario.node.preset == Preset::CpuOnly || node.effects().driver_down {
        return Err(Code::DRIVER_NOT_LOADED);
    }
    node.events.clear();
    life.driver = node.driver_generation();
    life.generation = life.generation.wrapping_add(1) & GENERATION;
    life.refs = 1;
    drop(life);
    hold(&node, None, "nvmlInit_v2");
    Ok(())
}

pub fn shutdown() -> Answer {
    let mut life = LIFE.write();
    let node = life.node.clone().filter(|_| life.refs > 0).ok_or(Code::UNINITIALIZED)?;
    node.tick();
    if node.driver_generation() != life.driver {
        life.refs = 0;
        return Err(Code::UNINITIALIZED);
    }
    life.refs -= 1;
    if life.refs == 0 {
        node.events.clear();
        node.rest();
    }
    Ok(())
}

/// The node, for a call that is made while NVML is initialised.
#[derive(Debug, Clone)]
pub struct Session {
    pub node: Arc<Node>,
    pub generation: u32,
}

fn session() -> Result<Session, Code> {
    let life = LIFE.read();
    let node = life.node.clone().filter(|_| life.refs > 0).ok_or(Code::UNINITIALIZED)?;
    let (driver, generation) = (life.driver, life.generation);
    drop(life);
    node.tick();
    if node.driver_generation() != driver {
        return Err(Code::UNINITIALIZED);
    }
    Ok(Session { node, generation })
}

/// The way in for a call that is about no GPU.
pub fn enter(function: &str) -> Result<Session, Code> {
    let session = session()?;
    session.node.count_call(None);
    if session.node.answers_not_supported(function) {
        return Err(Code::NOT_SUPPORTED);
    }
    hold(&session.node, None, function);
    Ok(session)
}

/// A GPU a call may work on.
#[derive(Debug)]
pub struct Device {
    pub session: Session,
    pub index: usize,
    /// The call is about this MIG instance of the GPU.
    pub mig: Option<usize>,
    pub fx: Arc<GpuEffects>,
}

impl Device {
    pub fn node(&self) -> &Node {
        &self.session.node
    }

    pub fn hw(&self) -> &GpuHw {
        self.node().gpu_hw(self.index)
    }

    /// The instance the call is about.
    pub fn instance(&self) -> Option<&MigHw> {
        self.hw().mig.as_ref()?.get(self.mig?)
    }

    pub fn handle(&self) -> Handle {
        self.session.device(self.index)
    }
}

/// Calls that a GPU in need of a reset still answers: who and where it is.
const IDENTITY: [&str; 10] = [
    "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetHandleByUUID",
    "nvmlDeviceGetHandleByPciBusId_v2",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetSerial",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetModuleId",
];

/// The way in for a call on a GPU's handle.
pub fn enter_device(function: &str, handle: Handle) -> Result<Device, Code> {
    let session = session()?;
    if let Ok(number) = session.resolve(handle, Kind::Mig) {
        let (index, mig) = split_mig(number);
        let device = enter_gpu(session, function, index)?;
        let known = device.hw().mig.as_ref().is_some_and(|all| mig < all.len());
        return match (known, MIG_CALLS.contains(&function)) {
            (false, _) => Err(Code::INVALID_ARGUMENT),
            // Utilization, power, clocks, links: of the whole GPU only.
            (true, false) => Err(Code::NOT_SUPPORTED),
            (true, true) => Ok(Device { mig: Some(mig), ..device }),
        };
    }
    let index = session.resolve(handle, Kind::Device)? as usize;
    enter_gpu(session, function, index)
}

/// Calls that a MIG instance answers.
const MIG_CALLS: [&str; 14] = [
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
    "nvmlDeviceIsMigDeviceHandle",
    "nvmlDeviceGetAttributes_v2",
    "nvmlDeviceGetGpuInstanceId",
    "nvmlDeviceGetComputeInstanceId",
    "nvmlDeviceGetMaxMigDeviceCount",
];

/// Instances of one GPU at most, in the number of a handle.
const MIG_STEP: u32 = 16;

fn split_mig(number: u32) -> (usize, usize) {
    ((number / MIG_STEP) as usize, (number % MIG_STEP) as usize)
}

/// The same once the GPU is known.
pub fn enter_gpu(session: Session, function: &str, index: usize) -> Result<Device, Code> {
    let node = &session.node;
    if index >= node.gpus.len() {
        return Err(Code::INVALID_ARGUMENT);
    }
    node.count_call(Some(index));
    if node.answers_not_supported(function) {
        return Err(Code::NOT_SUPPORTED);
    }
    hold(node, Some(index), function);
    // After a call has hung the GPU may be another one than it was before.
    let fx = node.gpu_effects(index);
    if fx.lost || fx.vanished {
        return Err(Code::GPU_IS_LOST);
    }
    if fx.reset_required && !IDENTITY.contains(&function) {
        return Err(Code::RESET_REQUIRED);
    }
    Ok(Device { session, index, mig: None, fx })
}

/// Sleeps for the faults that make this call slow. No lock is held meanwhile.
fn hold(node: &Node, gpu: Option<usize>, function: &str) {
    let holds = |node: &Node| -> Vec<Hold> {
        match gpu {
            Some(gpu) => node.gpu_effects(gpu).holds.clone(),
            None => node.effects().holds.clone(),
        }
    };
    for held in holds(node).iter().filter(|h| h.matches(function)) {
        match held.ms {
            Some(ms) => std::thread::sleep(Duration::from_millis(ms)),
            None => {
                while holds(node).iter().any(|h| h.id == held.id) {
                    std::thread::sleep(node.until_next().min(Duration::from_millis(50)));
                    node.tick();
                }
            }
        }
    }
}

/// What C sees as a pointer and we as a number.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle(pub *mut c_void);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Kind {
    Mig = 0,
    Device = 1,
    EventSet = 2,
    GpmSample = 3,
}

// 63..56 tag, 55..40 generation, 39..30 node, 29..28 kind, 27..0 number.
const TAG: u64 = 0x7e;
const GENERATION: u32 = 0xffff;
const NUMBER: u64 = 0x0fff_ffff;

impl Session {
    fn stem(&self, kind: Kind) -> u64 {
        let node = identity::hash(0, self.node.dir.as_os_str().as_encoded_bytes()) & 0x3ff;
        TAG << 56 | u64::from(self.generation) << 40 | node << 30 | (kind as u64) << 28
    }

    pub fn handle(&self, kind: Kind, number: u32) -> Handle {
        let value = self.stem(kind) | u64::from(number) & NUMBER;
        Handle(std::ptr::without_provenance_mut(value as usize))
    }

    pub fn device(&self, index: usize) -> Handle {
        self.handle(Kind::Device, index as u32)
    }

    pub fn mig(&self, gpu: usize, instance: usize) -> Handle {
        self.handle(Kind::Mig, gpu as u32 * MIG_STEP + instance as u32)
    }

    /// The number in a handle, if it is one we have given out in this life.
    pub fn resolve(&self, handle: Handle, kind: Kind) -> Result<u32, Code> {
        let value = handle.0.addr() as u64;
        if value & !NUMBER != self.stem(kind) {
            return Err(Code::INVALID_ARGUMENT);
        }
        Ok((value & NUMBER) as u32)
    }
}
