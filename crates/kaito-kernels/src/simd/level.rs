//! Which instructions kernels are compiled for and run with: what the processor has, or what was asked for.

use std::{fmt, str::FromStr, sync::OnceLock};

use super::Level;

/// What kernels of this process run with, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelLevel {
    /// AVX-512 with VNNI and BF16, and tile registers (AMX) that the system lets this process use.
    Amx,
    /// AVX-512 F and VL; VNNI and BF16 where the processor has them.
    Avx512,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// Advanced SIMD of 64-bit ARM processors; dot products of bytes where the processor has them.
    Neon,
    /// What every processor of the kind has.
    Portable,
}

/// The environment variable that names a [`KernelLevel`].
const VARIABLE: &str = "KAITO_KERNELS";

/// A level was asked for that kernels cannot run with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// No level has this name.
    #[error("no kernels are called {0:?}: there are amx, avx512, avx2, neon and portable")]
    Unknown(String),
    /// The processor lacks the instructions, or the system does not let this process use them.
    #[error("this machine cannot run {level} kernels, only {}", names(KernelLevel::available()))]
    Unavailable {
        /// The level that was asked for.
        level: KernelLevel,
    },
    /// Another level was chosen, or kernels have run with it: results of one process all come from the same kernels.
    #[error("kernels of this process run as {chosen} already, not as {level}")]
    AlreadyChosen {
        /// The level that was asked for.
        level: KernelLevel,
        /// The level of this process.
        chosen: KernelLevel,
    },
}

fn names(levels: &[KernelLevel]) -> String {
    levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(", ")
}

static CHOSEN: OnceLock<KernelLevel> = OnceLock::new();

impl KernelLevel {
    const ALL: [Self; 5] = [Self::Amx, Self::Avx512, Self::Avx2, Self::Neon, Self::Portable];

    /// The levels that this machine has, best first.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<KernelLevel>> = OnceLock::new();
        AVAILABLE.get_or_init(|| Self::ALL.into_iter().filter(|level| level.detect()).collect())
    }

    /// The best level that this machine has.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// The level of this process: that of [`choose_level`], else that of the environment variable `KAITO_KERNELS` if it names one that
    /// this machine has ([`KernelLevel::from_environment`] says why not), else the best one. From the first call on it stays.
    pub fn chosen() -> Self {
        *CHOSEN.get_or_init(|| Self::from_environment().ok().flatten().unwrap_or_else(Self::best))
    }

    /// The level that the environment variable `KAITO_KERNELS` names, if it is set.
    ///
    /// # Errors
    /// If it names none, or one that this machine lacks.
    pub fn from_environment() -> Result<Option<Self>, LevelError> {
        match std::env::var_os(VARIABLE) {
            Some(name) => name.to_string_lossy().parse::<Self>()?.checked().map(Some),
            None => Ok(None),
        }
    }

    fn checked(self) -> Result<Self, LevelError> {
        if Self::available().contains(&self) { Ok(self) } else { Err(LevelError::Unavailable { level: self }) }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn detect(self) -> bool {
        match self {
            Self::Amx => {
                Self::Avx512.detect()
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
                    && is_x86_feature_detected!("avx512bf16")
                    && crate::amx::Hardware::new().is_some()
            }
            Self::Avx512 => {
                Self::Avx2.detect()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            }
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            Self::Neon => false,
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect(self) -> bool {
        match self {
            Self::Neon => cfg!(all(target_arch = "aarch64", target_endian = "little")),
            Self::Portable => true,
            Self::Amx | Self::Avx512 | Self::Avx2 => false,
        }
    }

    /// The vectors of `f32` that it has. It is one of [`KernelLevel::available`].
    pub(crate) fn vectors(self) -> Level {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Avx512 => Level::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Level::Avx2,
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Self::Neon => Level::Neon,
            _ => Level::Portable,
        }
    }
}

impl fmt::Display for KernelLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KernelLevel {
    type Err = LevelError;

    /// The name of a level, whether or not this machine has it.
    fn from_str(name: &str) -> Result<Self, LevelError> {
        let level = Self::ALL.into_iter().find(|level| level.name() == name);
        level.ok_or_else(|| LevelError::Unknown(name.to_owned()))
    }
}

/// Chooses the level that all kernels of this process run with, before any of them has run.
///
/// # Errors
/// If this machine lacks it, or kernels already run at another one.
pub fn choose_level(level: KernelLevel) -> Result<(), LevelError> {
    let level = level.checked()?;
    let chosen = *CHOSEN.get_or_init(|| level);
    if chosen == level { Ok(()) } else { Err(LevelError::AlreadyChosen { level, chosen }) }
}

/// The instruction set that kernels of this process use, for logs: `amx`, `avx512`, `avx2`, `neon` or `portable`.
pub fn instruction_set() -> &'static str {
    KernelLevel::chosen().name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for level in KernelLevel::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        let error = "AMX".parse::<KernelLevel>().unwrap_err();
        assert_eq!(error.to_string(), "no kernels are called \"AMX\": there are amx, avx512, avx2, neon and portable");
    }

    #[test]
    fn each_machine_has_portable_kernels_and_the_chosen_ones() {
        let available = KernelLevel::available();
        assert_eq!(available.last(), Some(&KernelLevel::Portable));
        assert!(available.contains(&KernelLevel::chosen()));
        assert_eq!(instruction_set(), KernelLevel::chosen().to_string());
    }

    #[test]
    fn the_choice_stays() {
        let chosen = KernelLevel::chosen();
        assert_eq!(choose_level(chosen), Ok(()));
        for level in KernelLevel::ALL.into_iter().filter(|&level| level != chosen) {
            let expected = if KernelLevel::available().contains(&level) {
                LevelError::AlreadyChosen { level, chosen }
            } else {
                LevelError::Unavailable { level }
            };
            assert_eq!(choose_level(level), Err(expected));
        }
        assert_eq!(KernelLevel::chosen(), chosen);
    }
}
