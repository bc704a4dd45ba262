//! Files as `torch.save` writes them: a zip archive, uncompressed, with a pickle of a dictionary of tensors.

use std::{
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
};

use anyhow::Context;
use kaito_presets::DType;

use crate::{Job, plan::Planned, random};

/// PyTorch begins the bytes of every entry at a multiple of this.
const ALIGNMENT: u64 = 64;
/// Identifier of the extra field that PyTorch pads headers with ("FB").
const PADDING_FIELD: u16 = 0x4246;
const LOCAL_HEADER_LEN: u64 = 30;
/// Version of the zip format that has 64-bit sizes.
const ZIP64_VERSION: u16 = 45;

/// Writes `tensors` to `stem`.pth.
pub fn write(job: &Job, stem: &str, tensors: &[Planned], seed: impl Fn(&Planned) -> u64) -> anyhow::Result<()> {
    let dtype = job.preset.dtype;
    write_with(job, stem, tensors, |out, tensor| random::write(out, tensor, dtype, seed(tensor), job.progress))
}

/// The same, with elements that `fill` writes.
pub fn write_with(
    job: &Job,
    stem: &str,
    tensors: &[Planned],
    fill: impl Fn(&mut Checked<&mut BufWriter<File>>, &Planned) -> io::Result<()>,
) -> anyhow::Result<()> {
    let path = job.dir.join(format!("{stem}.pth"));
    let dtype = job.preset.dtype;
    let write = || -> io::Result<()> {
        let mut archive =
            Archive { out: BufWriter::new(File::create(&path)?), position: 0, directory: Vec::new(), entries: 0 };
        let program = pickle(tensors, dtype);
        archive.entry(&format!("{stem}/data.pkl"), program.len() as u64, |out| out.write_all(&program))?;
        archive.entry(&format!("{stem}/byteorder"), 6, |out| out.write_all(b"little"))?;
        for (number, tensor) in tensors.iter().enumerate() {
            let name = format!("{stem}/data/{number}");
            let size = (tensor.elements() * dtype.size()) as u64;
            archive.entry(&name, size, |out| fill(out, tensor))?;
        }
        archive.entry(&format!("{stem}/version"), 2, |out| out.write_all(b"3\n"))?;
        archive.finish()
    };
    write().with_context(|| path.display().to_string())
}

/// The pickle, protocol 2, of `{name: tensor, ...}` with one storage a tensor.
fn pickle(tensors: &[Planned], dtype: DType) -> Vec<u8> {
    let class = match dtype {
        DType::F32 => "FloatStorage",
        DType::Bf16 => "BFloat16Storage",
        DType::F16 => "HalfStorage",
    };
    let mut out = b"\x80\x02}(".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    // An integer of 8 bytes: LONG1.
    let number = |out: &mut Vec<u8>, value: usize| {
        out.extend([0x8a, 8]);
        out.extend((value as u64).to_le_bytes());
    };
    let tuple = |out: &mut Vec<u8>, values: &[usize]| {
        out.push(b'(');
        values.iter().for_each(|&value| number(out, value));
        out.push(b't');
    };
    for (index, tensor) in tensors.iter().enumerate() {
        text(&mut out, &tensor.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{class}\n").as_bytes());
        text(&mut out, &index.to_string());
        text(&mut out, "cpu");
        number(&mut out, tensor.elements());
        out.extend(b"tQ");
        number(&mut out, 0);
        tuple(&mut out, &tensor.shape);
        let strides: Vec<usize> = (1..=tensor.shape.len()).map(|dim| tensor.shape[dim..].iter().product()).collect();
        tuple(&mut out, &strides);
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

/// A zip archive in the making, with 64-bit sizes throughout.
struct Archive {
    out: BufWriter<File>,
    position: u64,
    directory: Vec<u8>,
    entries: u64,
}

impl Archive {
    fn entry(
        &mut self,
        name: &str,
        size: u64,
        write: impl FnOnce(&mut Checked<&mut BufWriter<File>>) -> io::Result<()>,
    ) -> io::Result<()> {
        let header_at = self.position;
        let unpadded = header_at + LOCAL_HEADER_LEN + name.len() as u64 + 4;
        let padding = unpadded.next_multiple_of(ALIGNMENT) - unpadded;
        // The checksum is known only afterwards; sizes of 4 GB and more do not occur in an entry.
        let short_size = u32::try_from(size).map_err(io::Error::other)?;
        let mut header = b"PK\x03\x04".to_vec();
        for field in [ZIP64_VERSION, 0, 0, 0, 0] {
            header.extend(field.to_le_bytes());
        }
        for field in [0, short_size, short_size] {
            header.extend(field.to_le_bytes());
        }
        for field in [name.len() as u16, 4 + padding as u16] {
            header.extend(field.to_le_bytes());
        }
        header.extend(name.as_bytes());
        header.extend(PADDING_FIELD.to_le_bytes());
        header.extend((padding as u16).to_le_bytes());
        header.resize(header.len() + padding as usize, b'Z');
        self.out.write_all(&header)?;
        let mut checked = Checked { out: &mut self.out, sum: crc32fast::Hasher::new() };
        write(&mut checked)?;
        let sum = checked.sum.finalize();
        self.position = header_at + header.len() as u64 + size;
        self.out.seek(SeekFrom::Start(header_at + 14))?;
        self.out.write_all(&sum.to_le_bytes())?;
        self.out.seek(SeekFrom::Start(self.position))?;
        self.list(name, sum, size, header_at);
        Ok(())
    }

    /// Adds an entry to the directory; sizes and place stand in the 64-bit field.
    fn list(&mut self, name: &str, sum: u32, size: u64, header_at: u64) {
        self.entries += 1;
        let directory = &mut self.directory;
        directory.extend(b"PK\x01\x02");
        for field in [ZIP64_VERSION, ZIP64_VERSION, 0, 0, 0, 0] {
            directory.extend(field.to_le_bytes());
        }
        for field in [sum, u32::MAX, u32::MAX] {
            directory.extend(field.to_le_bytes());
        }
        for field in [name.len() as u16, 28, 0, 0, 0] {
            directory.extend(field.to_le_bytes());
        }
        for field in [0, u32::MAX] {
            directory.extend(field.to_le_bytes());
        }
        directory.extend(name.as_bytes());
        for field in [1u16, 24] {
            directory.extend(field.to_le_bytes());
        }
        for field in [size, size, header_at] {
            directory.extend(field.to_le_bytes());
        }
    }

    fn finish(mut self) -> io::Result<()> {
        let (start, size) = (self.position, self.directory.len() as u64);
        let mut out = self.directory;
        out.extend(b"PK\x06\x06");
        out.extend(44u64.to_le_bytes());
        for field in [ZIP64_VERSION, ZIP64_VERSION] {
            out.extend(field.to_le_bytes());
        }
        out.extend([0; 8]);
        for field in [self.entries, self.entries, size, start] {
            out.extend(field.to_le_bytes());
        }
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend((start + size).to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([0xff; 12]);
        out.extend([0; 2]);
        self.out.write_all(&out)?;
        self.out.flush()
    }
}

/// A writer that sums up what passes.
pub struct Checked<W> {
    out: W,
    sum: crc32fast::Hasher,
}

#[cfg(test)]
impl<W: Seek> Checked<W> {
    /// Passes over `size` bytes without a sum of them: they take no room on the disk.
    pub fn leave_hole(&mut self, size: u64) -> io::Result<()> {
        self.out.seek(SeekFrom::Current(size as i64)).map(|_| ())
    }
}

impl<W: Write> Write for Checked<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
