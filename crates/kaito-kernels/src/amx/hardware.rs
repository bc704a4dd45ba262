//! The processor's tile registers. Stable Rust has no intrinsics for them, so that each instruction is inline assembly.

use std::{
    arch::{asm, x86_64::__cpuid_count},
    cell::Cell,
    marker::PhantomData,
    sync::OnceLock,
};

use super::{TileShapes, TileUnit, Tiles};

thread_local! {
    /// Whether a [`HardwareTiles`] of this thread lives.
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// The tile unit of a processor that has products of bytes and of bf16, which this process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Hardware(());

impl Hardware {
    /// The unit, if there is one. The first call asks the operating system for permission, which then holds for all threads.
    pub(crate) fn new() -> Option<Self> {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        AVAILABLE.get_or_init(|| has_instructions() && system_saves_tiles() && is_permitted()).then_some(Self(()))
    }
}

/// CPUID: AMX-BF16, AMX-TILE and AMX-INT8 are bits 22, 24 and 25 of EDX of leaf 7.
fn has_instructions() -> bool {
    const BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    let leaves = __cpuid_count(0, 0).eax;
    leaves >= 7 && __cpuid_count(7, 0).edx & BITS == BITS
}

/// Whether the operating system saves the registers of a thread that loses its core: bits 17 and 18 of XCR0.
fn system_saves_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const BITS: u32 = 1 << 17 | 1 << 18;
    if __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: with OSXSAVE there is the instruction, and register 0. It writes EAX and EDX alone.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    low & BITS == BITS
}

/// Linux lets a process use tile registers when it has asked, since they make the state of a thread 8 KiB larger.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    // asm/prctl.h and asm/fpu/types.h of Linux.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes what this process may do, nothing in its memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

impl TileUnit for Hardware {
    type Tiles = HardwareTiles;

    #[inline(always)]
    fn configure(self, shapes: &TileShapes) -> HardwareTiles {
        assert!(!CONFIGURED.replace(true), "this thread's tile registers are in use");
        // SAFETY: a value of `Hardware` proves that there is the instruction, and that it is permitted. It reads 64 bytes, which are a valid
        // configuration: `TileShapes` makes no other. The registers that it writes hold nothing of the compiler's, see below.
        unsafe {
            asm!("ldtilecfg [{shapes}]", shapes = in(reg) shapes, options(readonly, nostack, preserves_flags));
        }
        HardwareTiles { this_thread: PhantomData }
    }
}

/// The calling thread's registers, which are given back when this is dropped.
pub(crate) struct HardwareTiles {
    /// Registers cannot go to another thread.
    this_thread: PhantomData<*mut ()>,
}

impl Drop for HardwareTiles {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: as for the other instructions.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        CONFIGURED.set(false);
    }
}

/// One instruction that writes a tile register.
macro_rules! tile_asm {
    ($text:expr, $($rest:tt)*) => {
        asm!(
            $text,
            $($rest)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        )
    };
}

/// A product of registers `A` and `B` that is added to register `C`.
macro_rules! product {
    ($name:ident, $instruction:literal) => {
        #[inline(always)]
        unsafe fn $name<const C: usize, const A: usize, const B: usize>(&mut self) {
            // SAFETY: see above; the shapes fit by contract.
            unsafe {
                tile_asm!(
                    concat!($instruction, " tmm{c}, tmm{a}, tmm{b}"),
                    c = const C, a = const A, b = const B,
                    options(nomem, nostack, preserves_flags),
                )
            }
        }
    };
}

// SAFETY of every block below: a value of `HardwareTiles` exists only where the registers are configured, on this thread. What they
// hold goes from one block of assembly to the next behind the compiler's back. That is sound because nothing else in this process
// touches them: Rust has no type that lives in tile registers and no intrinsics for them are used, so that the compiler keeps nothing
// there; `CONFIGURED` lets a thread have one `HardwareTiles` at a time; and the operating system saves them with the thread's other
// registers. Blocks of assembly that are not `pure` keep their order.
impl Tiles for HardwareTiles {
    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: see above.
        unsafe { tile_asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags),) }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize) {
        // SAFETY: see above; the memory can be read by contract.
        unsafe {
            tile_asm!(
                "tileloadd tmm{t}, [{p} + {stride}*1]",
                t = const T, p = in(reg) p, stride = in(reg) stride,
                options(readonly, nostack, preserves_flags),
            )
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize) {
        // SAFETY: see above; the memory can be written by contract.
        unsafe {
            asm!(
                "tilestored [{p} + {stride}*1], tmm{t}",
                t = const T, p = in(reg) p, stride = in(reg) stride,
                options(nostack, preserves_flags),
            )
        }
    }

    product!(add_bf16, "tdpbf16ps");
    product!(add_i8_u8, "tdpbsud");
    product!(add_i8_i8, "tdpbssd");
}
